"""Penalties by their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.engine.penalties import LONGEST_REPEAT, counts, dry, make_penalties
from tallow.engine.request import GREATEST_CHANGE, SamplingParams
from tallow.engine.runner import Floats
from tallow.engine.sampler import Sampler
from tallow.errors import UsageError

VOCABULARY = 12
ZEROS_V = np.zeros(VOCABULARY, np.float32)
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=30)


def penalized(params: SamplingParams, prompt: list[int], ids: list[int], stop_ids: tuple[int, ...] = ()) -> Floats:
    logits_V = ZEROS_V.copy()
    for penalty in make_penalties(params, prompt, stop_ids):
        penalty(logits_V, ids)
    return logits_V


@given(ids=TOKENS, frequency=st.floats(-2, 2), presence=st.floats(-2, 2))
def test_counts(ids: list[int], frequency: float, presence: float) -> None:
    expected = [-(frequency * ids.count(token) + presence * (token in ids)) for token in range(VOCABULARY)]
    logits_V = ZEROS_V.copy()
    counts(logits_V, ids, frequency, presence)
    np.testing.assert_allclose(logits_V, expected, atol=1e-5, rtol=0)


def test_counts_leave_the_prompt_out() -> None:
    params = SamplingParams(frequency_penalty=1.0, presence_penalty=0.5)
    assert penalized(params, [1, 1, 2], [3, 3]).tolist() == [0, 0, 0, -2.5, *[0] * 8]


def brute_dry(ids: list[int], params: SamplingParams) -> list[float]:
    """For each token the longest repeat that it would make, by comparing all ends."""
    penalties = []
    for token in range(VOCABULARY):
        whole, best = [*ids, token], 0
        for end in range(1, len(ids)):
            length = 0
            while length <= end and whole[end - length] == whole[len(ids) - length]:
                if length and whole[end - length] in params.dry_breaker_ids:
                    break
                length += 1
            best = max(best, length - 1)
        penalties.append(
            -params.dry_multiplier * params.dry_base ** (best - params.dry_allowed_length)
            if best >= params.dry_allowed_length
            else 0.0
        )
    return penalties


@given(
    ids=st.lists(st.integers(0, 3), max_size=24),
    allowed=st.integers(1, 4),
    breakers=st.lists(st.integers(0, 3), max_size=2).map(tuple),
)
def test_dry_equals_brute_force(ids: list[int], allowed: int, breakers: tuple[int, ...]) -> None:
    params = SamplingParams(dry_multiplier=0.8, dry_allowed_length=allowed, dry_breaker_ids=breakers)
    logits_V = ZEROS_V.copy()
    dry(logits_V, ids, params)
    np.testing.assert_allclose(logits_V, brute_dry(ids, params), atol=1e-4, rtol=1e-5)


def test_dry_counts_the_prompt() -> None:
    params = SamplingParams(dry_multiplier=1.0, dry_allowed_length=2, dry_base=2.0)
    # 5 6 7 was there: after 5 6 the 7 would repeat it
    assert penalized(params, [5, 6, 7, 0], [5, 6])[7] == -1.0
    assert penalized(params, [4, 5, 6, 7, 0, 4], [5, 6])[7] == -2.0
    assert penalized(params, [1] * 400, [1] * 100)[1] == -(2.0 ** (LONGEST_REPEAT - 2))


ALL = SamplingParams(
    repetition_penalty=1.5,
    frequency_penalty=0.5,
    presence_penalty=0.1,
    dry_multiplier=1.0,
    logit_bias={1: 2.0},
    min_new_tokens=9,
)


@given(prompt=TOKENS, ids=TOKENS)
def test_penalties_change_a_copy(prompt: list[int], ids: list[int]) -> None:
    logits_V = np.random.default_rng(len(prompt) + 31 * len(ids)).standard_normal(VOCABULARY, np.float32)
    before_V, expected_V = logits_V.copy(), logits_V.copy()
    for penalty in make_penalties(ALL, prompt, (3,)):
        penalty(expected_V, ids)
    assert Sampler(ALL, prompt, (3,)).choose(logits_V, ids) == int(expected_V.argmax())
    assert np.array_equal(logits_V, before_V)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_there_may_be_nothing_left(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, min_new_tokens=1)
    assert Sampler(params, [], range(VOCABULARY)).choose(ZEROS_V, []) == -1
    least = SamplingParams(temperature=temperature, logit_bias=dict.fromkeys(range(VOCABULARY), -GREATEST_CHANGE))
    assert 0 <= Sampler(least, []).choose(ZEROS_V, []) < VOCABULARY


def test_a_greedy_sampler_with_penalties_looks_at_them() -> None:
    logits_V = np.arange(VOCABULARY, dtype=np.float32)
    assert Sampler(SamplingParams(), []).is_greedy
    sampler = Sampler(SamplingParams(logit_bias={0: 100.0}), [])
    assert not sampler.is_greedy
    assert sampler.choose(logits_V, []) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_new_tokens": 200},
        {"typical_p": 0.0},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"dry_multiplier": -1.0},
        {"dry_base": 0.5},
        {"dry_allowed_length": 0},
        {"logit_bias": {1: float("inf")}},
    ],
    ids=str,
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        SamplingParams(**wrong)
