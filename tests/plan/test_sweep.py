"""Ladders of runs that end as a known law says."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.plan.conftest import BEST_RATE, LAW, Pretender, make_config, make_tokens

from tallow.errors import DataError, Interrupted, TallowError, UsageError
from tallow.plan.dial import SizedPretrainConfig
from tallow.plan.hyper_laws import LEARNING_RATE
from tallow.plan.scaling import fit_scaling_laws, load_scaling_laws, save_scaling_laws
from tallow.plan.sweep import Sweep
from tallow.recipe import replace_settings


def test_the_law_behind_the_runs_is_found(config: SizedPretrainConfig, tmp_path: Path) -> None:
    runs = Sweep(config, tmp_path / "scaling", Pretender(noise=0.0005)).run(3600)
    laws = fit_scaling_laws(runs)
    target = (8 * laws.largest.parameters, 160 * laws.largest.parameters)
    predicted = laws.predict(*target)
    assert predicted.low < LAW.loss(*target) < predicted.high
    assert predicted.loss == pytest.approx(LAW.loss(*target), rel=0.03)
    assert laws.check is not None
    assert laws.check.predicted == pytest.approx(laws.check.loss, rel=0.02)
    rate = laws.learning_rate.value(1e6, 1e8) / LEARNING_RATE.value(1e6, 1e8)
    assert rate == pytest.approx(BEST_RATE, rel=0.2)
    assert laws.speed.seconds(*target) == pytest.approx(6 * target[0] * target[1] / 2e10, rel=0.01)

    path = tmp_path / "scaling.json"
    save_scaling_laws(laws, path)
    assert load_scaling_laws(path) == laws


def test_the_ladder_takes_about_its_time(config: SizedPretrainConfig, tmp_path: Path) -> None:
    runs = Sweep(config, tmp_path, Pretender()).run(3600)
    assert 1800 < sum(run.tokens / run.tokens_per_s for run in runs) < 3700


def test_what_is_done_is_not_done_again(config: SizedPretrainConfig, tmp_path: Path) -> None:
    first = Sweep(config, tmp_path, Pretender()).run(3600)
    again = Pretender()
    assert Sweep(config, tmp_path, again).run(3600) == first
    assert again.done == []


def test_an_interrupted_ladder_goes_on(config: SizedPretrainConfig, tmp_path: Path) -> None:
    whole = Pretender()
    Sweep(config, tmp_path / "whole", whole).run(3600)

    class Stopped(Pretender):
        def __call__(self, config: SizedPretrainConfig, directory: Path) -> dict[str, object]:
            if len(self.done) == 9:
                raise Interrupted("stopped")
            return dict(super().__call__(config, directory))

    stopped, rest = Stopped(), Pretender()
    with pytest.raises(Interrupted):
        Sweep(config, tmp_path / "half", stopped).run(3600)
    Sweep(config, tmp_path / "half", rest).run(3600)
    names = [path.name for path in [*stopped.done, *rest.done]]
    assert names == [path.name for path in whole.done]


def test_more_time_adds_to_it(config: SizedPretrainConfig, tmp_path: Path) -> None:
    first = Sweep(config, tmp_path, Pretender()).run(3600)
    both = Sweep(config, tmp_path, Pretender()).run(4 * 3600)
    assert {run.directory for run in first} < {run.directory for run in both}
    assert max(run.parameters for run in both) > max(run.parameters for run in first)


def test_runs_with_other_settings_do_not_count(config: SizedPretrainConfig, tmp_path: Path) -> None:
    first = Sweep(config, tmp_path, Pretender()).run(3600)
    other = replace_settings(config, {"loop.weight_decay": 0.0})
    second = Sweep(other, tmp_path, Pretender()).run(7200)
    assert {run.directory for run in first}.isdisjoint(run.directory for run in second)


def test_shape_batch_and_rate_of_the_recipe_do_not_count(tokens: Path, tmp_path: Path) -> None:
    loop = {"sequence_length": 64, "precision": "fp32", "batch_size": 7, "learning_rate": 1.0, "steps": 3}
    model = {"vocab_size": 300, "hidden_size": 256, "num_layers": 9, "qk_norm": "head", "family": "qwen3"}
    config = make_config(tokens, model=model, loop={**loop, "batch_ramp": {"start": 2}}, size="1b", token_budget=5)
    seen: list[SizedPretrainConfig] = []

    class Watcher(Pretender):
        def __call__(self, config: SizedPretrainConfig, directory: Path) -> dict[str, object]:
            seen.append(config)
            return dict(super().__call__(config, directory))

    Sweep(config, tmp_path, Watcher()).run(3600)
    assert len({config.shape.hidden_size for config in seen}) > 2
    assert len({config.loop.learning_rate for config in seen}) > 5
    assert {(config.shape.qk_norm, config.shape.vocab_size) for config in seen} == {("head", 300)}  # type: ignore[union-attr]
    assert all(config.size is None and config.loop.batch_ramp is None for config in seen)


def test_a_rate_that_diverges_is_left(config: SizedPretrainConfig, tmp_path: Path) -> None:
    class Fragile(Pretender):
        def result(self, config: SizedPretrainConfig) -> dict[str, object]:
            if config.token_budget and config.loop.learning_rate > 0.02:
                raise TallowError("training diverged at step 3")
            return super().result(config)

    runs = Sweep(config, tmp_path, Fragile()).run(3600)
    assert max(run.learning_rate for run in runs) <= 0.02
    assert len({run.parameters for run in runs}) == 4


def test_what_cannot_be_planned_is_refused(config: SizedPretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="minutes are too few"):
        Sweep(config, tmp_path / "short", Pretender()).run(1)
    little, pretender = make_config(make_tokens(tmp_path / "little", 1000)), Pretender()
    with pytest.raises(UsageError, match="too few for small runs"):
        Sweep(little, tmp_path / "little-runs", pretender).run(3600)
    assert pretender.done == []
    blind = make_config(make_tokens(tmp_path / "blind", 10**9, validation=0))
    with pytest.raises(DataError, match="no held-out text"):
        Sweep(blind, tmp_path, Pretender())
    with pytest.raises(UsageError, match=r"pretrain\.init is set"):
        Sweep(make_config(config.tokens, model=None, init=tmp_path), tmp_path, Pretender())
