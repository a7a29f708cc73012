"""The commands of docs/many_machines.md, on two local processes each."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults.test_processes import set_up

from tallow.parallel import ParallelConfig
from tallow.run import StageRun

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "many_machines.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^torchrun .*$", PAGE, re.MULTILINE)
RESTARTING = "--max-restarts 3 "


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prepared")
    set_up(place, steps=12)
    return place


def test_each_setting_that_the_page_names_is_one() -> None:
    table = PAGE.partition("| what is short")[2].partition("\n\n")[0]
    named = set(re.findall(r"`(\w+): \w*`", table)) | {"attention", "schedule"}
    assert named <= ParallelConfig.model_fields.keys()
    slow_links = PAGE.partition("## Slow links")[2].partition("\n## ")[0]
    named |= set(re.findall(r"`(\w+)(?:: [\w.]+)?`", slow_links)) & ParallelConfig.model_fields.keys()
    assert named | {"timeout_s"} == set(ParallelConfig.model_fields)


def test_one_command_is_another_that_starts_again() -> None:
    [restarting] = (command for command in COMMANDS if RESTARTING in command)
    assert restarting.replace(RESTARTING, "") in COMMANDS


# what starts again does, where nothing dies, all that the same command without it does
@pytest.mark.parametrize("command", [c for c in COMMANDS if "--nnodes 2" in c or RESTARTING in c])
def test_the_command_does_what_one_process_does(command: str, prepared: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shutil.copytree(prepared, place)
    shutil.move(place / "spread", place / "runs" / "tiny")
    (place / "tiny.yaml").rename(place / "recipe.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{free.getsockname()[1]}"
    machines = 2 if "--nnodes 2" in command else 1
    words = shlex.split(
        command.replace("first:29400", here).replace("--nproc-per-node 2", "--standalone --nproc-per-node 2")
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    started = [
        subprocess.Popen(words, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(machines)
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * machines, said
    alone, spread = (StageRun(place / run / "pretrain").metrics() for run in ("alone", "runs/tiny"))
    assert [record["loss"] for record in spread] == pytest.approx([record["loss"] for record in alone], abs=1e-4)
