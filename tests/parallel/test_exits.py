"""How commands of several processes fail: what all say is said once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TALLOW = [sys.executable, "-m", "tallow"]


def start_as(rank: int, place: Path, *arguments: str) -> subprocess.Popen[str]:
    """One of two processes, under the variables that torchrun sets."""
    (place / str(rank)).mkdir()
    variables = {"RANK": str(rank), "WORLD_SIZE": "2", "TORCHELASTIC_ERROR_FILE": str(place / str(rank) / "error.json")}
    return subprocess.Popen(
        [*TALLOW, *arguments], cwd=place, env=os.environ | variables, stdout=-1, stderr=-1, text=True
    )


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_what_all_say_the_main_process_says_alone(tmp_path: Path, form: tuple[str, ...]) -> None:
    other, main = (start_as(rank, tmp_path, "run", "missing.yaml", *form) for rank in (1, 0))
    said, silent = main.communicate(timeout=60), other.communicate(timeout=60)
    assert (main.returncode, other.returncode) == (2, 2)
    assert silent == ("", "")
    if form:
        assert json.loads(said[0])["error"]["message"] == "recipe missing.yaml does not exist"
    else:
        assert said[1].startswith("error: recipe missing.yaml does not exist")


def test_what_only_another_process_says_is_heard(tmp_path: Path) -> None:
    main = start_as(0, tmp_path, "run", "missing.yaml", "--json")
    other = start_as(1, tmp_path, "run", "other.yaml", "--json")
    main.communicate(timeout=60)
    printed, said = other.communicate(timeout=60)
    assert printed == ""
    assert said.startswith("error: recipe other.yaml does not exist")
