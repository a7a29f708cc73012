from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallow.errors import UsageError
from tallow.train.anomaly import AnomalyConfig, AnomalyState, Judge


def judged(config: AnomalyConfig, batches: list[tuple[float, float]]) -> list[bool]:
    """Which of the batches, by loss and norm, are bad."""
    judge = Judge(config)
    return [judge.complaint(step, loss, norm) is not None for step, (loss, norm) in enumerate(batches, 1)]


def noisy(steps: int, seed: int, *, norm: float = 0.5) -> list[tuple[float, float]]:
    """A run that learns, with 3 % of noise on its loss and 40 % on its gradient."""
    chance = random.Random(seed)
    losses = [3 * (0.4 + 0.6 * math.exp(-step / 100)) * chance.lognormvariate(0, 0.03) for step in range(steps)]
    return [(loss, norm * chance.lognormvariate(0, 0.4)) for loss in losses]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_noise_is_borne_whatever_the_scale(seed: int, scale: float) -> None:
    assert not any(judged(AnomalyConfig(), noisy(200, seed, norm=scale)))


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(70, 199), st.sampled_from(["loss", "norm"]))
def test_a_spike_is_seen_and_nothing_else(seed: int, place: int, what: str) -> None:
    batches = noisy(200, seed)
    loss, norm = batches[place]
    batches[place] = (loss * 20, norm) if what == "loss" else (loss, norm * 1000)
    assert [step for step, bad in enumerate(judged(AnomalyConfig(), batches)) if bad] == [place]


def test_only_what_is_above_the_ordinary_is_a_spike() -> None:
    assert judged(AnomalyConfig(), [*noisy(100, 0), (0.01, 1e-6)])[-1] is False


def test_a_steady_run_may_still_move_a_little() -> None:
    steady = [(2.0, 1.0)] * 80
    assert judged(AnomalyConfig(), [*steady, (2.3, 2.5)])[-1] is False
    assert judged(AnomalyConfig(), [*steady, (2.6, 1.0)])[-1] is True
    assert judged(AnomalyConfig(), [*steady, (2.0, 3.0)])[-1] is True


def test_negative_and_tiny_losses_have_spikes_too() -> None:
    for loss in (-5.0, 1e-4):
        assert judged(AnomalyConfig(), [*[(loss, 1.0)] * 80, (loss + 0.05, 1.0), (loss + 5, 1.0)])[-2:] == [False, True]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_bad_from_the_first_step_on(value: float) -> None:
    config = AnomalyConfig(threshold=None)
    assert judged(config, [(value, 1.0), (1.0, value), (1.0, 1.0), (1e9, 1e9)]) == [True, True, False, False]


def test_spikes_are_told_after_the_warmup_only() -> None:
    config = AnomalyConfig(warmup=10, window=20)
    assert judged(config, [*[(1.0, 1.0)] * 9, (99.0, 1.0)])[-1] is False
    assert judged(config, [*[(1.0, 1.0)] * 10, (99.0, 1.0)])[-1] is True


def test_bad_batches_do_not_become_ordinary() -> None:
    assert all(judged(AnomalyConfig(), [*[(1.0, 1.0)] * 70, *[(50.0, 1.0)] * 300])[70:])


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 150))
def test_what_is_remembered_is_all_there_is(seed: int, stop: int) -> None:
    batches = noisy(150, seed)
    batches[100] = (math.nan, 1.0)
    batches[120] = (30.0, 1.0)
    whole, part = Judge(AnomalyConfig()), Judge(AnomalyConfig())
    for step, batch in enumerate(batches):
        if step == stop:
            part.state = AnomalyState.model_validate(json.loads(json.dumps(part.state.model_dump(mode="json"))))
        assert whole.complaint(step, *batch) == part.complaint(step, *batch)
    assert whole.state == part.state


def test_the_budget_is_for_a_horizon() -> None:
    judge = Judge(AnomalyConfig(budget=2, horizon=10))
    for step in range(1, 40):
        judge.complaint(step, math.nan if step % 5 == 0 else 1.0, 1.0)
        assert len(judge.state.bad_steps) <= judge.config.budget
    judge.complaint(41, math.nan, 1.0)
    judge.complaint(42, math.nan, 1.0)
    assert len(judge.state.bad_steps) > judge.config.budget
    assert judge.state.skipped == 9


def test_going_back_remembers_what_was_bad_and_what_is_left_out() -> None:
    judge = Judge(AnomalyConfig())
    for step in range(1, 8):
        judge.complaint(step, 1.0, 1.0)
    earlier = judge.state
    for step in range(8, 14):
        judge.complaint(step, math.nan, 1.0)
    judge.take_up(earlier, done=7, first=6, last=13)
    assert judge.state.avoided == tuple(range(8, 14))
    assert (judge.state.streak, judge.state.skipped, judge.state.bad_steps) == (0, 6, tuple(range(8, 14)))
    assert judge.state.losses == earlier.losses


def test_a_warmup_longer_than_the_window_is_refused() -> None:
    with pytest.raises(UsageError, match="only 10 batches"):
        AnomalyConfig(window=10, warmup=11)
