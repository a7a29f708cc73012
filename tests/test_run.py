"""Run directories: what is done is known, what changed is done again, what was interrupted goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tallow import run as run_module
from tallow.errors import UsageError
from tallow.recipe import Section
from tallow.run import StageRun, fingerprint_stage, hash_input


class Config(Section):
    source: Path
    steps: int = 1


def finish(run: StageRun, fingerprint: str) -> None:
    product = run.directory / "model"
    product.mkdir()
    (product / "weights").write_text("w")
    run.finish(fingerprint, {"source": "abc"}, product, {"loss": 1.5})


def test_a_finished_stage_is_known_until_its_product_or_its_work_changes(tmp_path: Path) -> None:
    run, config = StageRun(tmp_path / "s"), Config(source=tmp_path)
    run.begin("s", config, "f1")
    assert run.finished("f1") is None
    finish(run, "f1")
    assert run.finished("f1") == {"loss": 1.5}
    assert run.finished("f2") is None
    weights = tmp_path / "s" / "model" / "weights"
    weights.touch()
    assert run.finished("f1") == {"loss": 1.5}, "a new time stamp alone changes nothing"
    weights.write_text("tampered")
    assert run.finished("f1") is None


def test_same_work_resumes_and_other_work_starts_clean(tmp_path: Path) -> None:
    config = Config(source=tmp_path)
    run = StageRun(tmp_path / "s")
    run.begin("s", config, "f1")
    run.log(step=1, loss=2.0)
    run.ledger.tokens = 100
    run.save_ledger()
    again = StageRun(tmp_path / "s")
    again.begin("s", config, "f1")
    assert (again.ledger.tokens, len(again.metrics())) == (100, 1)
    other = StageRun(tmp_path / "s")
    other.begin("s", config, "f2")
    assert (other.ledger.tokens, len(other.metrics())) == (0, 0)


def test_fresh_forgets_an_interrupted_run(tmp_path: Path) -> None:
    StageRun(tmp_path / "s").begin("s", Config(source=tmp_path), "f1")
    (tmp_path / "s" / "checkpoint").write_text("")
    StageRun(tmp_path / "s", resume=False).begin("s", Config(source=tmp_path), "f1")
    assert not (tmp_path / "s" / "checkpoint").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), "f1")
    for name in (".model.x1.partial", ".model.x2.old", "checkpoints/.step-5.x3.partial", "checkpoints/step-4"):
        (run.directory / name).mkdir(parents=True)
        (run.directory / name / "weights").write_text("w")
    (run.directory / ".ledger.json.x4.partial").write_text("{")
    StageRun(tmp_path / "s").begin("s", Config(source=tmp_path), "f1")
    left = {str(path.relative_to(run.directory)) for path in run.directory.rglob("*")}
    assert left == {"recipe.yaml", "started.json", "checkpoints", "checkpoints/step-4", "checkpoints/step-4/weights"}


def test_two_processes_never_work_in_one_directory(tmp_path: Path) -> None:
    with StageRun(tmp_path / "r" / "s").alone():
        with pytest.raises(UsageError, match="another process"), StageRun(tmp_path / "r" / "s").alone():
            pass
        with StageRun(tmp_path / "r" / "t").alone():
            pass
    with StageRun(tmp_path / "r" / "s").alone():
        pass


def test_damaged_marks_mean_that_the_work_is_done_anew(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    for damage in ("", "{}", '{"fingerprint": '):
        run.begin("s", Config(source=tmp_path), "f1")
        finish(run, "f1")
        for mark in ("lineage.json", "started.json"):
            (tmp_path / "s" / mark).write_text(damage)
        assert run.finished("f1") is None
        run.begin("s", Config(source=tmp_path), "f1")


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not of a tallow run"):
        StageRun(tmp_path).begin("s", Config(source=tmp_path), "f1")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_metrics_survive_a_cut_line_and_rewind(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), "f1")
    for step in range(1, 5):
        run.log(step=step, loss=float(step))
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [record["step"] for record in run.metrics()] == [1, 2, 3, 4]
    run.rewind_metrics(2)
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2]


def test_the_fingerprint_follows_content_not_paths(tmp_path: Path) -> None:
    here, there = Config(source=tmp_path / "a"), Config(source=tmp_path / "b")
    assert fingerprint_stage("s", here, {"source": "1"}) == fingerprint_stage("s", there, {"source": "1"})
    different = [
        fingerprint_stage("s", here, {"source": "1"}),
        fingerprint_stage("s", here, {"source": "2"}),
        fingerprint_stage("t", here, {"source": "1"}),
        fingerprint_stage("s", Config(source=here.source, steps=2), {"source": "1"}),
    ]
    assert len(set(different)) == 4


def test_a_product_counts_by_its_recorded_hash(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), "f1")
    finish(run, "f1")
    product = tmp_path / "s" / "model"
    recorded = json.loads((tmp_path / "s" / "lineage.json").read_text())["product_hash"]
    assert hash_input(product) == recorded
    (product / "weights").write_text("changed")
    assert hash_input(product) != recorded


def test_the_ledger_measures_time_memory_and_cost(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s", price_per_hour=3600.0)
    run.begin("s", Config(source=tmp_path), "f1")
    sum(range(3_000_000))
    run.save_ledger()
    ledger = json.loads((tmp_path / "s" / "ledger.json").read_text())
    assert ledger["wall_s"] > 0
    assert ledger["cpu_s"] > 0
    assert ledger["peak_rss_bytes"] > 1_000_000
    assert ledger["cost"] == pytest.approx(ledger["wall_s"])


@pytest.mark.parametrize(
    "left", [[], [".started.json.abc.partial"], ["started.json", "recipe.yaml", ".recipe.yaml.x.partial"]]
)
def test_a_kill_at_the_very_start_leaves_nothing_in_the_way(tmp_path: Path, left: list[str]) -> None:
    (tmp_path / "s").mkdir()
    for name in left:
        (tmp_path / "s" / name).touch()
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), "f1")
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["recipe.yaml", "started.json"]


def test_the_mark_of_begun_work_is_the_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_path: Path, _text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        StageRun(tmp_path / "s").begin("s", Config(source=tmp_path), "f1")
    monkeypatch.undo()
    StageRun(tmp_path / "s").begin("s", Config(source=tmp_path), "f1")


def test_a_new_price_is_the_price_of_finished_work(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), "f1")
    finish(run, "f1")
    later = StageRun(tmp_path / "s", price_per_hour=7200.0)
    later.reprice()
    ledger = json.loads((tmp_path / "s" / "ledger.json").read_text())
    assert ledger["cost"] == pytest.approx(2 * ledger["wall_s"])
    assert later.finished("f1") is not None
