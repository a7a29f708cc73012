"""As many threads with torch as without."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tallow.kernels.threads import num_threads, set_num_threads, single_thread

BEFORE_AND_AFTER = """
import sys
from tallow.kernels.threads import num_threads, set_num_threads
if len(sys.argv) > 1:
    set_num_threads(int(sys.argv[1]))
before = num_threads()
assert "torch" not in sys.modules
import torch
print(before, num_threads(), torch.get_num_threads())
"""


@pytest.mark.parametrize(
    ("environment", "given", "expected"), [("1", [], 1), ("2,1", [], 2), ("1", ["2"], 2), ("none", ["1"], 1)]
)
def test_importing_torch_changes_nothing(environment: str, given: list[str], expected: int) -> None:
    result = subprocess.run(
        [sys.executable, "-c", BEFORE_AND_AFTER, *given],
        env=os.environ | {"OMP_NUM_THREADS": environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout.split() == [str(expected)] * 3


def test_every_core_computes_if_nothing_is_said() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", BEFORE_AND_AFTER]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    before, after, torchs = map(int, result.stdout.split())
    assert 1 <= before <= len(os.sched_getaffinity(0))
    assert after == torchs


def test_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    try:
        set_num_threads(3)
        assert num_threads() == torch.get_num_threads() == 3
        with single_thread():
            assert num_threads() == 1
        assert num_threads() == 3
    finally:
        torch.set_num_threads(before)
