"""SmolLM2-135M-Instruct in `transformers`: the prompts that are compared, and the judge of greedy continuations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tallow.models.decoder import Decoder
from tallow.models.families import find_family

NEW_TOKENS = 48
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "Die wichtigste Regel beim Kochen ist",
    "Q: What is 17 + 25?\nA:",
    "The following is a list of the planets of the solar system:\n1.",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "In 1905 Albert Einstein published four papers. The first of them",
)


def transformers_twin(model: Decoder) -> PreTrainedModel:
    """The `transformers` model with the weights of `model`, which it shares."""
    family = find_family(model.config.family)
    values = family.hub_config(model.config)
    values.pop("architectures")
    twin = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), attn_implementation="eager")
    parameters = dict(model.named_parameters())
    state = {entry.hub: entry.join([parameters[name] for name in entry.ours]) for entry in family.tensors(model.config)}
    missing, unexpected = twin.load_state_dict(state, strict=False, assign=True)
    assert not unexpected
    assert missing == (["lm_head.weight"] if model.config.tied_embeddings else [])
    twin.tie_weights()
    return twin.eval()


def greedy_tokens(
    twin: PreTrainedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[list[int]]:
    """What `transformers` takes for the likeliest token at each place of the answers, given all before it.

    Equal to `answers` if and only if these are its own greedy continuations, token for token.
    """
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    with torch.inference_mode():
        # padded behind the end, where causal attention does not look
        logits_BTV = twin(input_ids=pad_sequence(rows, batch_first=True)).logits
    likeliest_BT = logits_BTV.argmax(-1)
    return [
        likeliest_T[len(prompt) - 1 : len(prompt) - 1 + len(answer)].tolist()
        for likeliest_T, prompt, answer in zip(likeliest_BT, prompts, answers, strict=True)
    ]
