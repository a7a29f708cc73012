"""What changes logits before they become probabilities: penalties, biases, and tokens that may not come yet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tallow.engine.runner import Floats

if TYPE_CHECKING:
    from tallow.engine.request import SamplingParams

Tokens = Sequence[int] | npt.NDArray[np.int64]
Penalty = Callable[[Floats, Tokens], None]
"""Changes logits (V, fp32) in place, given the answer so far."""

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
    prompt_N = _as_array(prompt_ids)
    if params.repetition_penalty != 1.0:
        distinct_N = np.unique(prompt_N)
        penalties.append(
            lambda logits, ids: repetition(
                logits, np.concatenate([distinct_N, _as_array(ids)]), params.repetition_penalty
            )
        )
    if params.frequency_penalty or params.presence_penalty:
        penalties.append(lambda logits, ids: counts(logits, ids, params.frequency_penalty, params.presence_penalty))
    if params.dry_multiplier:
        penalties.append(lambda logits, ids: dry(logits, np.concatenate([prompt_N, _as_array(ids)]), params))
    if params.logit_bias:
        penalties.append(lambda logits, _ids: bias(logits, params.logit_bias))
    if params.min_new_tokens:
        penalties.append(lambda logits, ids: without(logits, stop_ids if len(ids) < params.min_new_tokens else ()))
    return penalties


def repetition(logits_V: Floats, seen: Tokens, penalty: float) -> None:
    """Make the tokens in `seen` less likely (arXiv 1909.05858, section 4.1; for both signs as `transformers` does)."""
    seen_N = _as_array(seen)
    given_N = logits_V[seen_N]
    # a token that is there several times gets the same value several times
    logits_V[seen_N] = np.where(given_N > 0, given_N / penalty, given_N * penalty)


def counts(logits_V: Floats, ids: Tokens, frequency: float, presence: float) -> None:
    """Subtract `frequency` for each time that a token is in the answer, and `presence` once, as OpenAI's API does."""
    tokens_N, times_N = np.unique(_as_array(ids), return_counts=True)
    _add(logits_V, tokens_N, -(frequency * times_N + presence))


def dry(logits_V: Floats, ids: Tokens, params: SamplingParams) -> None:
    """Make tokens less likely that would go on with a repeat of what was before ("don't repeat yourself").

    A token that would make a repeat of n + 1 tokens, n ≥ `dry_allowed_length`, loses `dry_multiplier ·
    dry_base^(n − dry_allowed_length)`. Repeats do not reach across the tokens `dry_breaker_ids`.
    """
    ids_N = _as_array(ids)
    ends_N = np.flatnonzero(ids_N[:-1] == ids_N[-1:])  # of beginnings that end as the whole does
    lengths_N = np.zeros(len(ids_N), dtype=np.int64)
    for length in range(1, LONGEST_REPEAT + 1):
        if not len(ends_N) or ids_N[-length] in params.dry_breaker_ids:
            break
        lengths_N[ends_N] = length
        ends_N = ends_N[ends_N >= length]
        ends_N = ends_N[ids_N[ends_N - length] == ids_N[-1 - length]]
    ends_N = np.flatnonzero(lengths_N >= params.dry_allowed_length)
    tokens_N, places_N = np.unique(ids_N[ends_N + 1], return_inverse=True)
    excess_N = np.zeros(len(tokens_N))
    np.maximum.at(excess_N, places_N, lengths_N[ends_N] - params.dry_allowed_length)
    _add(logits_V, tokens_N, -params.dry_multiplier * params.dry_base**excess_N)


def bias(logits_V: Floats, values: Mapping[int, float]) -> None:
    """Add to the logits of some tokens."""
    _add(logits_V, list(values), np.array(list(values.values())))


def without(logits_V: Floats, ids: Collection[int]) -> None:
    """Make tokens impossible."""
    logits_V[_as_array(list(ids))] = -np.inf


def _add(logits_V: Floats, tokens: Tokens, values_N: npt.NDArray[np.floating[Any]]) -> None:
    logits_V[_as_array(tokens)] += values_N.astype(np.float32)


def _as_array(tokens: Tokens) -> npt.NDArray[np.int64]:
    return np.asarray(tokens, dtype=np.int64)
