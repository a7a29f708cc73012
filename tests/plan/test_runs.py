from __future__ import annotations

from pathlib import Path

import pytest
from tests.plan.conftest import Pretender, make_config, make_tokens

from tallow.errors import DataError, UsageError
from tallow.models.skeletons import build
from tallow.plan.dial import SizedPretrainConfig
from tallow.plan.runs import find_runs, group_runs, read_run
from tallow.recipe import replace_settings


def test_a_run_is_what_it_was(config: SizedPretrainConfig, tmp_path: Path) -> None:
    config = replace_settings(config, {"token_budget": 64_000, "loop.batch_size": 10})
    result = Pretender()(config, tmp_path / "run")
    run = read_run(tmp_path / "run")
    model = build(config.shape)
    assert run.parameters == model.num_parameters()
    assert run.parameters - run.inner == 300 * config.shape.hidden_size
    assert (run.tokens, run.batch_tokens, run.sequence_length) == (64_000, 640, 64)
    assert run.loss == result["validation_loss"]
    assert run.unique_tokens == 10**9


def test_runs_are_found_where_they_lie(config: SizedPretrainConfig, tmp_path: Path) -> None:
    for place in ("a/pretrain", "many/x", "many/y", "b"):
        Pretender()(config, tmp_path / place)
    found = find_runs(tmp_path / place for place in ("a", "many", "b"))
    assert [Path(run.directory) for run in found] == [
        tmp_path / place for place in ("a/pretrain", "many/x", "many/y", "b")
    ]


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no finished pretraining run"):
        find_runs([tmp_path])
    with pytest.raises(DataError, match="is no finished pretraining run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "what"), [({"loop.sequence_length": 32}, "sequence lengths"), ({"tokens": "other"}, "tokens")]
)
def test_runs_of_different_text_are_refused(
    config: SizedPretrainConfig, tmp_path: Path, change: dict[str, object], what: str
) -> None:
    other = make_config(make_tokens(tmp_path / "other", 5000))
    Pretender()(config, tmp_path / "a")
    Pretender()(other if "tokens" in change else replace_settings(config, change), tmp_path / "b")
    with pytest.raises(UsageError, match=f"different {what}"):
        find_runs([tmp_path / "a", tmp_path / "b"])


def test_budgets_that_differ_by_a_batch_are_the_same(config: SizedPretrainConfig, tmp_path: Path) -> None:
    for number, budget in enumerate((1_000_000, 1_001_000, 2_000_000)):
        Pretender()(replace_settings(config, {"token_budget": budget}), tmp_path / str(number))
    assert [len(group) for group in group_runs(find_runs([tmp_path]))] == [2, 1]
