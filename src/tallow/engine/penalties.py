"""What changes logits before they become probabilities: penalties, biases, and tokens that may not come yet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tallow.engine.request import SamplingParams

Penalty = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits (V, fp32) and the answer so far → logits."""

LONGEST_REPEAT = 64
"""DRY looks for repeats of at most so many tokens: beyond that, its penalty is without bound anyway."""


def make_penalties(params: SamplingParams, prompt_ids: Sequence[int], stop_ids: Collection[int]) -> list[Penalty]:
    """Those that a request asks for, in the order in which they apply.

    Args:
        params: What is asked for.
        prompt_ids: The prompt, which the repetition penalty and DRY count as seen.
        stop_ids: Tokens that end the answer, held back until it has its least length.
    """
    penalties: list[Penalty] = []
    if params.repetition_penalty != 1.0:
        prompt = frozenset(prompt_ids)
        penalties.append(lambda logits, ids: repetition(logits, list(prompt.union(ids)), params.repetition_penalty))
    if params.frequency_penalty or params.presence_penalty:
        penalties.append(lambda logits, ids: counts(logits, ids, params.frequency_penalty, params.presence_penalty))
    if params.dry_multiplier:
        penalties.append(lambda logits, ids: dry(logits, [*prompt_ids, *ids], params))
    if params.logit_bias:
        penalties.append(lambda logits, _ids: bias(logits, params.logit_bias))
    if params.min_new_tokens:
        penalties.append(lambda logits, ids: without(logits, stop_ids) if len(ids) < params.min_new_tokens else logits)
    return penalties


def repetition(logits_V: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Make the tokens in `seen` less likely (arXiv 1909.05858, section 4.1; for both signs as `transformers` does)."""
    seen_N = torch.tensor(seen, dtype=torch.int64, device=logits_V.device)
    given_N = logits_V[seen_N]
    return logits_V.index_copy(0, seen_N, torch.where(given_N > 0, given_N / penalty, given_N * penalty))


def counts(logits_V: Tensor, ids: Sequence[int], frequency: float, presence: float) -> Tensor:
    """Subtract `frequency` for each time that a token is in the answer, and `presence` once, as OpenAI's API does."""
    if not ids:
        return logits_V
    tokens_N, times_N = torch.tensor(ids, device=logits_V.device).unique(return_counts=True)
    return logits_V.index_add(0, tokens_N, -(frequency * times_N + presence).to(logits_V.dtype))


def dry(logits_V: Tensor, ids: Sequence[int], params: SamplingParams) -> Tensor:
    """Make tokens less likely that would go on with a repeat of what was before ("don't repeat yourself").

    A token that would make a repeat of n + 1 tokens, n ≥ `dry_allowed_length`, loses `dry_multiplier ·
    dry_base^(n − dry_allowed_length)`. Repeats do not reach across the tokens `dry_breaker_ids`.
    """
    longest: dict[int, int] = {}
    breakers = frozenset(params.dry_breaker_ids)
    for end in range(len(ids) - 1):  # ids[: end + 1] ends as the whole does, in `length` tokens
        length = 0
        while (
            length < min(end + 1, LONGEST_REPEAT)
            and ids[end - length] == ids[len(ids) - 1 - length]
            and ids[end - length] not in breakers
        ):
            length += 1
        if length >= params.dry_allowed_length:
            longest[ids[end + 1]] = max(longest.get(ids[end + 1], 0), length)
    if not longest:
        return logits_V
    tokens_N = torch.tensor(list(longest), device=logits_V.device)
    excess_N = torch.tensor(list(longest.values()), device=logits_V.device) - params.dry_allowed_length
    return logits_V.index_add(0, tokens_N, (-params.dry_multiplier * params.dry_base**excess_N).to(logits_V.dtype))


def bias(logits_V: Tensor, values: Mapping[int, float]) -> Tensor:
    """Add to the logits of some tokens."""
    tokens_N = torch.tensor(list(values), device=logits_V.device)
    return logits_V.index_add(
        0, tokens_N, torch.tensor(list(values.values()), dtype=logits_V.dtype).to(logits_V.device)
    )


def without(logits_V: Tensor, ids: Collection[int]) -> Tensor:
    """Make tokens impossible."""
    if not ids:
        return logits_V
    return logits_V.index_fill(0, torch.tensor(list(ids), device=logits_V.device), float("-inf"))
