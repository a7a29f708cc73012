"""SmolLM2's greedy continuations in bf16, by the engine, against `transformers` in bf16: equal up to near-ties.

Both round to bf16, but in different places, so where two tokens are about as likely each may choose another.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.parity.smollm2_reference import NEW_TOKENS, PROMPTS, transformers_twin
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tallow.engine.language_model import load
from tallow.engine.request import RequestState, SamplingParams
from tallow.models.formats import load_model

pytestmark = pytest.mark.smollm2
STEP = 0.125
"""Nats: a step of bf16 from 16 to 32, where the greatest logits are. `transformers` rounds the logits themselves, too,
and what it rounds within depends on the processor: of two tokens up to two steps apart either may come first."""

PARAMS = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True, top_log_probs=3)


def test_at_the_first_difference_each_token_is_among_the_other_s_three_likeliest(smollm2_gguf: Path) -> None:
    model = load(smollm2_gguf, "bf16")
    requests = [model.engine.submit(model.tokenizer.encode(prompt, parse_special=True), PARAMS) for prompt in PROMPTS]
    while any(request.state is not RequestState.FINISHED for request in requests):
        model.engine.step()
    twin = transformers_twin(load_model(smollm2_gguf, dtype=torch.bfloat16))
    with torch.inference_mode():
        # one pass over an answer says what would come at each place, given all before it; padded behind the end
        rows = [torch.tensor(request.token_ids) for request in requests]
        logits_BTV = twin(input_ids=pad_sequence(rows, batch_first=True)).logits.float()
    for request, logits_TV in zip(requests, logits_BTV, strict=True):
        assert len(request.ids) == NEW_TOKENS
        theirs_TV = logits_TV[len(request.prompt_ids) - 1 :][:NEW_TOKENS].log_softmax(-1)
        place = first_difference(torch.tensor(request.ids), theirs_TV.argmax(-1))
        if place is not None:
            ours, their_three = dict(request.top_log_probs[place]), theirs_TV[place].topk(3)
            likeliest, theirs = int(their_three.indices[0]), theirs_TV[place]
            assert request.ids[place] in their_three.indices
            assert likeliest in ours
            assert ours[request.ids[place]] - ours[likeliest] <= 2 * STEP
            assert theirs[likeliest] - theirs[request.ids[place]] <= 2 * STEP


def first_difference(ours_T: Tensor, theirs_T: Tensor) -> int | None:
    places = (ours_T != theirs_T).nonzero()
    return int(places[0]) if len(places) else None
