from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, weights

from tallow.data.batch import Packed
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.train.loop import train
from tallow.train.loss_scale import GROW_AFTER, LARGEST, LossScale
from tallow.train.update import Updater


def test_the_scale_grows_when_all_went_well_for_long() -> None:
    scale = LossScale(factor=4.0)
    for _ in range(GROW_AFTER - 1):
        scale = scale.after_update()
        assert scale.factor == 4.0
    assert scale.after_update() == LossScale(factor=8.0)
    assert LossScale(factor=LARGEST, updates=GROW_AFTER).after_update().factor == LARGEST
    assert LossScale(factor=1.5).smaller().factor == 1.0


def test_gradients_too_large_for_fp16_are_computed_again_and_change_nothing() -> None:
    """With a scale beyond fp16's largest number the update is that of a smaller scale, but for rounding."""
    config = loop_config()
    [packed] = markov_batches(config)(0)
    models, updaters = [tiny_model(), tiny_model()], []
    for model, factor in zip(models, (2.0**24, 2.0**10), strict=True):
        updater = Updater(Layout(model), causal, config)
        updater.scale = LossScale(factor=factor)
        found = updater.update(1, [packed], 1e-2, "fp16")
        updaters.append((updater, found))
    (large, found), (_, expected) = updaters
    assert large.scale.factor < 2.0**24
    assert found.loss == expected.loss
    assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-2)
    torch.testing.assert_close(weights(models[0]), weights(models[1]), atol=1e-2, rtol=0)


def test_gradients_that_no_scale_makes_finite_leave_it_as_it_is() -> None:
    config, model = loop_config(), tiny_model()
    [packed] = markov_batches(config)(0)
    updater = Updater(Layout(model), causal, config)
    updater.scale = scale = LossScale(factor=4.0, updates=3)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")

    handle = next(model.parameters()).register_hook(spoil)
    assert math.isnan(updater.find(1, [packed], 1e-2, "fp16").gradient_norm)
    updater.discard()
    assert updater.scale == scale
    handle.remove()
    assert math.isfinite(updater.find(1, [packed], 1e-2, "fp16").gradient_norm)


def test_an_estimate_of_curvature_too_large_for_fp16_is_made_again() -> None:
    config = loop_config(optimizer={"name": "sophia", "every": 1})
    [packed] = markov_batches(config)(0)
    updater = Updater(Layout(tiny_model()), causal, config)
    updater.find(1, [packed], 1e-2, "fp16")
    updater.scale = LossScale(factor=2.0**24)  # as if what the model draws had far larger gradients
    updater.apply(1, [packed], 1e-2, "fp16")
    assert updater.scale.factor < 2.0**24
    curvatures = [value for name, value in updater.optimizer.state()[0].items() if name.endswith("/curvature")]
    assert all(curvature.isfinite().all() for curvature in curvatures)
    assert any(curvature.any() for curvature in curvatures)


def test_the_scale_is_taken_out_again() -> None:
    config = loop_config()
    [packed] = markov_batches(config)(0)
    norms = []
    for precision in ("fp32", "fp16"):
        updater = Updater(Layout(tiny_model()), causal, config)
        norms.append(updater.find(1, [packed], 1e-2, precision).gradient_norm)
    assert norms[1] == pytest.approx(norms[0], rel=1e-2)


class Stop(Exception):
    """Ends a run as suddenly as a signal that cannot be caught."""


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    config = loop_config(precision="fp16", save_every=3)
    plain = markov_batches(config)

    def dying(step: int) -> list[Packed]:
        if step == 7:
            raise Stop
        return plain(step)

    whole, parts = tiny_model(), tiny_model(seed=7)
    train(Layout(whole), causal, plain, config, new_run(tmp_path / "whole"))
    with pytest.raises(Stop):
        train(Layout(tiny_model()), causal, dying, config, new_run(tmp_path / "parts"))
    train(Layout(parts), causal, plain, config, new_run(tmp_path / "parts"))
    assert torch.equal(weights(parts), weights(whole))
