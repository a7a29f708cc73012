"""SmolLM2's greedy continuations, by the engine with its cache, against `transformers` in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.parity.smollm2_reference import NEW_TOKENS, PROMPTS, greedy_tokens, transformers_twin
from transformers import PreTrainedModel

from tallow.engine.language_model import LanguageModel, load
from tallow.engine.request import SamplingParams
from tallow.models.formats import load_model

pytestmark = pytest.mark.smollm2
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def lm(smollm2_gguf: Path) -> LanguageModel:
    return load(smollm2_gguf, "fp32")


@pytest.fixture(scope="module")
def twin(smollm2_gguf: Path) -> PreTrainedModel:
    return transformers_twin(load_model(smollm2_gguf, dtype=torch.float32))


def test_greedy_continuations_equal_transformers_token_for_token(lm: LanguageModel, twin: PreTrainedModel) -> None:
    prompts = [lm.tokenizer.encode(prompt, parse_special=True) for prompt in PROMPTS]
    answers = [answer.ids for answer in lm.generate_batch(prompts, GREEDY)]
    assert [len(answer) for answer in answers] == [NEW_TOKENS] * len(PROMPTS)
    assert greedy_tokens(twin, prompts, answers) == answers
    assert lm.generate(prompts[0], replace(GREEDY, max_new_tokens=8)).ids == answers[0][:8]


def test_log_probs_equal_transformers(lm: LanguageModel, twin: PreTrainedModel) -> None:
    ids = lm.tokenizer.encode(" ".join(PROMPTS))
    with torch.inference_mode():
        logits_TV = twin(input_ids=torch.tensor([ids])).logits[0]
    expected_T = logits_TV.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(lm.log_probs(ids), expected_T, atol=2e-4, rtol=0)


def test_it_answers(lm: LanguageModel) -> None:
    stream = lm.stream_chat(
        [{"role": "user", "content": "What is the capital of France?"}], SamplingParams(max_new_tokens=40)
    )
    pieces = list(stream)
    answer = stream.result()
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert "".join(pieces) == answer.text
