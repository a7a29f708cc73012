"""Run directories: what is done is known, what changed is done again, what was interrupted goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tallow import run as run_module
from tallow.errors import UsageError
from tallow.recipe import Section
from tallow.run import StageRun, hash_input
from tallow.train.anomaly_log import AnomalyLog
from tallow.work import fingerprint_stage


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
    run.begin("s", config, {})
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
    run.begin("s", config, {})
    run.log(step=1, loss=2.0)
    run.ledger.tokens = 100
    run.save_ledger()
    again = StageRun(tmp_path / "s")
    again.begin("s", config, {})
    assert (again.ledger.tokens, len(again.metrics())) == (100, 1)
    other = StageRun(tmp_path / "s")
    other.begin("s", Config(source=tmp_path, steps=2), {})
    assert (other.ledger.tokens, len(other.metrics())) == (0, 0)


class Trained(Section):
    incidental = frozenset(("log_every",))
    finishing = frozenset(("save_dtype",))

    model: Config
    log_every: int = 10
    save_dtype: str = "fp32"


def test_checkpoints_of_unfinished_other_work_are_not_thrown_away(tmp_path: Path) -> None:
    old = Trained(model=Config(source=tmp_path, steps=4))
    StageRun(tmp_path / "s").begin("s", old, {"data": "1"})
    kept = tmp_path / "s" / "checkpoints" / "step-00000002"
    kept.mkdir(parents=True)
    new = Trained(model=Config(source=tmp_path, steps=5))
    with pytest.raises(UsageError, match=r"other settings: s.model.steps \(4 → 5\)$") as caught:
        StageRun(tmp_path / "s").begin("s", new, {"data": "1"})
    assert "--fresh" in caught.value.hint
    with pytest.raises(UsageError, match=r"other settings: the content of s.data$"):
        StageRun(tmp_path / "s").begin("s", old, {"data": "2"})
    StageRun(tmp_path / "s").begin("s", old.model_copy(update={"log_every": 1, "save_dtype": "bf16"}), {"data": "1"})
    assert kept.exists()
    (tmp_path / "s" / "started.json").write_text("{")
    with pytest.raises(UsageError, match="does not tell what they are of"):
        StageRun(tmp_path / "s").begin("s", old, {"data": "1"})
    assert kept.exists()
    StageRun(tmp_path / "s", resume=False).begin("s", new, {"data": "1"})
    assert not kept.exists()


def test_finished_other_work_is_done_anew_with_its_checkpoints(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), {})
    kept = tmp_path / "s" / "checkpoints" / "step-00000001"
    kept.mkdir(parents=True)
    finish(run, "f1")
    StageRun(tmp_path / "s").begin("s", Config(source=tmp_path, steps=2), {})
    assert not kept.exists()


def test_fresh_forgets_an_interrupted_run(tmp_path: Path) -> None:
    StageRun(tmp_path / "s").begin("s", Config(source=tmp_path), {})
    (tmp_path / "s" / "checkpoint").write_text("")
    StageRun(tmp_path / "s", resume=False).begin("s", Config(source=tmp_path), {})
    assert not (tmp_path / "s" / "checkpoint").exists()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), {})
    for name in (".model.x1.partial", ".model.x2.old", "checkpoints/.step-5.x3.partial", "checkpoints/step-4"):
        (run.directory / name).mkdir(parents=True)
        (run.directory / name / "weights").write_text("w")
    (run.directory / ".ledger.json.x4.partial").write_text("{")
    StageRun(tmp_path / "s").begin("s", Config(source=tmp_path), {})
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
        run.begin("s", Config(source=tmp_path), {})
        finish(run, "f1")
        for mark in ("lineage.json", "started.json"):
            (tmp_path / "s" / mark).write_text(damage)
        assert run.finished("f1") is None
        run.begin("s", Config(source=tmp_path), {})


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not of a tallow run"):
        StageRun(tmp_path).begin("s", Config(source=tmp_path), {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_metrics_survive_a_cut_line_and_rewind(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), {})
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
    run.begin("s", Config(source=tmp_path), {})
    finish(run, "f1")
    product = tmp_path / "s" / "model"
    recorded = json.loads((tmp_path / "s" / "lineage.json").read_text())["product_hash"]
    assert hash_input(product) == recorded
    (product / "weights").write_text("changed")
    assert hash_input(product) != recorded


def test_the_ledger_measures_time_memory_and_cost(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s", price_per_hour=3600.0)
    run.begin("s", Config(source=tmp_path), {})
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
    run.begin("s", Config(source=tmp_path), {})
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["recipe.yaml", "started.json"]


def test_the_mark_of_begun_work_is_the_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_path: Path, _text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        StageRun(tmp_path / "s").begin("s", Config(source=tmp_path), {})
    monkeypatch.undo()
    StageRun(tmp_path / "s").begin("s", Config(source=tmp_path), {})


def test_a_new_price_is_the_price_of_finished_work(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), {})
    finish(run, "f1")
    later = StageRun(tmp_path / "s", price_per_hour=7200.0)
    later.reprice()
    ledger = json.loads((tmp_path / "s" / "ledger.json").read_text())
    assert ledger["cost"] == pytest.approx(2 * ledger["wall_s"])
    assert later.finished("f1") is not None


@pytest.mark.parametrize("damage", ['{"tokens": 5', '{"tokens": 5, "colour": 1}', '{"tokens": "many"}', "[]"])
def test_a_damaged_ledger_does_not_block_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    config = Config(source=tmp_path)
    StageRun(tmp_path / "s").begin("s", config, {})
    (tmp_path / "s" / "ledger.json").write_text(damage)
    run = StageRun(tmp_path / "s", price_per_hour=2.0)
    run.begin("s", config, {})
    assert (run.ledger.tokens, run.ledger.price_per_hour) == (0, 2.0)
    assert "ledger.json is damaged" in capsys.readouterr().err


def test_damaged_metrics_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = StageRun(tmp_path)
    run.log(step=1)
    with run.metrics_path.open("ab") as file:
        file.write(b'[1]\n\xff\xfe\n{"step": "x"}\n')
    run.log(step=2)
    assert [record["step"] for record in run.metrics()] == [1, 2]
    run.rewind_metrics(1)
    assert run.metrics() == [{"step": 1}]
    assert "passed over 3 damaged lines" in capsys.readouterr().err


def test_damaged_anomalies_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = AnomalyLog(tmp_path)
    log.path.write_bytes(b'{"action": "skipped"}\n\xff\n')
    log.rolled_back(3, 1, 2)
    log.rewind(3, ())
    assert [record["step"] for record in log.read()] == [3]
    assert "passed over 2 damaged lines" in capsys.readouterr().err


def test_what_is_right_for_any_settings_stays(tmp_path: Path) -> None:
    run = StageRun(tmp_path / "s")
    run.begin("s", Config(source=tmp_path), {"data": "1"})
    for name in ("work", "documents"):
        (run.directory / name).mkdir()
        (run.directory / name / "file").touch()
    StageRun(tmp_path / "s").begin("s", Config(source=tmp_path, steps=7), {"data": "1"})
    assert (tmp_path / "s" / "work" / "file").exists()
    assert not (tmp_path / "s" / "documents").exists()
    StageRun(tmp_path / "s", resume=False).begin("s", Config(source=tmp_path, steps=7), {"data": "1"})
    assert not (tmp_path / "s" / "work").exists()
