"""How commands of several processes fail: what all say is said once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.processes import start

from tallow.__main__ import main


def run_tallow(rank: int, place: Path, arguments: Sequence[str]) -> None:
    """One of two processes, under the variables that torchrun sets; what it says goes into files."""
    variables = {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(place / "error.json")}
    os.environ.update(variables)
    os.chdir(place)
    sys.argv = ["tallow", *arguments]
    with (place / "out").open("w") as sys.stdout, (place / "err").open("w") as sys.stderr:
        main()


def run_as(place: Path, arguments: dict[int, Sequence[str]]) -> dict[int, tuple[int | None, str, str]]:
    """The exit code of each rank, and what it says on standard output and standard error; started in this order."""
    processes = {}
    for rank, own in arguments.items():
        (place / str(rank)).mkdir()
        processes[rank] = start(run_tallow, rank, place / str(rank), own)
    for process in processes.values():
        process.join(timeout=60)
    return {
        rank: (process.exitcode, (place / str(rank) / "out").read_text(), (place / str(rank) / "err").read_text())
        for rank, process in processes.items()
    }


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_what_all_say_the_main_process_says_alone(tmp_path: Path, form: tuple[str, ...]) -> None:
    command = ("run", "missing.yaml", *form)
    said = run_as(tmp_path, {1: command, 0: command})
    assert said[1] == (2, "", "")
    code, printed, errors = said[0]
    assert code == 2
    if form:
        assert json.loads(printed)["error"]["message"] == "recipe missing.yaml does not exist"
    else:
        assert errors.startswith("error: recipe missing.yaml does not exist")


def test_what_only_another_process_says_is_heard(tmp_path: Path) -> None:
    said = run_as(tmp_path, {0: ("run", "missing.yaml", "--json"), 1: ("run", "other.yaml", "--json")})
    code, printed, errors = said[1]
    assert (code, printed) == (2, "")
    assert errors.startswith("error: recipe other.yaml does not exist")
