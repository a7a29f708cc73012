"""Steps on parts: whoever does them makes the same files, and none twice."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from tests.data.toy_steps import ADD, BY_REST, COUNT, Numbers, Plus

from tallow.data.work.cluster import ClusterConfig
from tallow.data.work.engines import LocalEngine, block_sizes
from tallow.data.work.step import Part, Pieces
from tallow.data.work.work import Work
from tallow.errors import CapacityError, DataError
from tallow.files import hash_path


@pytest.fixture(autouse=True)
def _tests_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)


def sums_by_rest(work: Work) -> list[int]:
    """Numbers from 0 to 59, five parts of three tables each, one more each, summed by what is left of dividing by 3."""
    counted = work.each(COUNT, [(Numbers(first=12 * i, count=4, tables=3), ()) for i in range(5)])
    parts = [part for made in counted for part in made]
    added = [part for [part] in work.each(ADD, [(Plus(), [part]) for part in parts])]
    split = [part for [part] in work.each(BY_REST, [(Plus(), [part]) for part in added])]
    merged = work.each(ADD, [(Plus(amount=0), [Pieces(split, rest)]) for rest in range(3)])
    return [sum(part.read().column("x").to_pylist()) for [part] in merged]


EXPECTED = [sum(x for x in range(1, 61) if x % 3 == rest) for rest in range(3)]


@pytest.mark.parametrize(("processes", "threads"), [(1, 2), (2, 1), (3, 2)])
def test_any_number_of_processes_make_the_same_files(processes: int, threads: int, tmp_path: Path) -> None:
    assert sums_by_rest(Work(tmp_path / "one", LocalEngine(1))) == EXPECTED
    with LocalEngine(processes, threads) as engine:
        assert sums_by_rest(Work(tmp_path / "many", engine)) == EXPECTED
    assert hash_path(tmp_path / "many") == hash_path(tmp_path / "one")


def test_ray_makes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallow.data.work.engines.MOST_PARTS", 6)
    assert sums_by_rest(Work(tmp_path / "one", LocalEngine(1))) == EXPECTED
    assert sums_by_rest(Work(tmp_path / "ray", ClusterConfig(engine="ray").make())) == EXPECTED
    assert hash_path(tmp_path / "ray") == hash_path(tmp_path / "one")


@pytest.mark.parametrize(
    ("tasks", "processors", "sizes"),
    [
        (0, 2, []),
        (1, 2, [1]),
        (22, 2, [6, 4, 3, 3, 2, 1, 1, 1, 1]),
        (40, 2, [8, 8, 6, 5, 4, 3, 2, 1, 1, 1, 1]),
        (7, 64, [1] * 7),
    ],
)
def test_blocks_become_smaller_towards_the_end(tasks: int, processors: int, sizes: list[int]) -> None:
    assert block_sizes(tasks, processors) == sizes


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    sums_by_rest(Work(tmp_path, LocalEngine(1)))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    lost = sorted(tmp_path.glob("*.arrow"))[7]
    lost.unlink()
    work = Work(tmp_path, LocalEngine(1))
    assert sums_by_rest(work) == EXPECTED
    made_anew = [file for file in before if file.stat().st_mtime_ns != before[file]]
    assert lost in made_anew
    assert len(made_anew) <= 4  # the task's tables and its record
    (tmp_path / "old.json").touch()
    work.sweep()
    assert set(tmp_path.iterdir()) == before.keys()


def test_other_settings_or_a_new_version_make_other_files(tmp_path: Path) -> None:
    work = Work(tmp_path, LocalEngine(1))
    [[part]] = work.each(COUNT, [(Numbers(first=0, count=3), ())])

    def made(step=ADD, config=Plus()) -> Part:  # noqa: B008
        [[result]] = work.each(step, [(config, [part])])
        return result

    newer = dataclasses.replace(ADD, version=2)
    assert len({made().path, made(config=Plus(amount=2)).path, made(newer).path}) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_step_says_of_its_tables_is_said(processes: int, tmp_path: Path) -> None:
    work = Work(tmp_path, LocalEngine(processes))
    parts = work.each(COUNT, [(Numbers(first=i, count=3), ()) for i in range(2)])
    with pytest.raises(DataError, match="these numbers are wrong") as caught:
        work.each(ADD, [(Plus(wrong="data"), [part]) for [part] in parts])
    assert caught.value.hint == "count again"
    with pytest.raises((KeyError, RuntimeError), match="a bug"):
        work.each(ADD, [(Plus(wrong="bug"), [part]) for [part] in parts])


def test_a_process_that_is_killed_costs_a_part(tmp_path: Path) -> None:
    work = Work(tmp_path, LocalEngine(2))
    parts = work.each(COUNT, [(Numbers(first=i, count=3), ()) for i in range(6)])
    plus = Plus(mark=tmp_path.parent / "mark", spared=os.getpid())
    with pytest.raises(CapacityError, match="has ended"):
        work.each(ADD, [(plus, [part]) for [part] in parts])
    done = len(list(tmp_path.glob("*.json"))) - 6
    added = work.each(ADD, [(plus, [part]) for [part] in parts])
    assert [part.read().column("x").to_pylist() for [part] in added] == [[i + 1, i + 2, i + 3] for i in range(6)]
    assert done <= 5


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    work = Work(tmp_path, LocalEngine(1))
    [[part]] = work.each(COUNT, [(Numbers(first=0, count=3), ())])
    part.path.write_bytes(part.path.read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged"):
        work.each(ADD, [(Plus(), [part])])


def test_pieces_whose_places_are_lost_are_made_again_or_named(tmp_path: Path) -> None:
    work = Work(tmp_path, LocalEngine(1))
    [[part]] = work.each(COUNT, [(Numbers(first=0, count=6), ())])
    [[split]] = work.each(BY_REST, [(Plus(), [part])])
    for damage in (b"", split.starts.read_bytes()[:-1]):
        split.starts.write_bytes(damage)
        with pytest.raises(DataError, match="damaged"):
            Pieces([split], 2).read()
        work.each(BY_REST, [(Plus(), [part])])
        assert [table.column("x").to_pylist() for table in Pieces([split], 2).read()] == [[2, 5]]
