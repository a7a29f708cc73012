"""Texts made to take long: each operation takes as many steps as there are bytes, or nearly."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from tallow.kernels.text import native
from tallow.kernels.text.classes import character_tables
from tallow.kernels.text.counts import count_texts
from tallow.kernels.text.gram_index import GramIndex
from tallow.kernels.text.kept_lines import LineRules, keep_lines
from tallow.kernels.text.minhash import draw_permutations, shingle_sets, sign

BYTES = 1_000_000
SHAPES = (
    "a ",
    "a",
    "\n",
    "[",
    "[1",
    "!",
    "! ",
    "! \u2028",
    "'a",
    "1.",
    "\u0301",
    "中",
    "-\n",
    "...",
    "j",
    "privacy polic",
    "\0",
    "a\n",
)


@pytest.mark.parametrize("shape", SHAPES)
def test_time_is_linear(shape: str) -> None:
    """A second is several times what is needed, and a quadratic operation would take hours."""
    if native() is None:
        pytest.skip("the references are slow")
    text = pa.array([shape * (BYTES // len(shape.encode()))])
    permutations = draw_permutations(1, 1)
    character_tables()
    begin = time.process_time()
    count_texts(text, ["the", "a"])
    keep_lines(text, LineRules(0, 10**9, False, True, True, True))
    sign(text, 5, permutations)
    shingle_sets(text, 5)
    index = GramIndex(text, 13, 2, 0)
    index.search(text, np.ones(index.count, dtype=bool))
    assert time.process_time() - begin < 1


MEMORY = """
import sys
from pathlib import Path
import pyarrow as pa
from tallow.kernels.text.classes import class_places
from tallow.kernels.text.counts import count_texts
def peak():  # not getrusage, which counts what the process was before this program, too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10
texts = [pa.array([shape * 1_000_000]) for shape in (",.", "a\\n", "\\n\\n")]
class_places()
before = peak()
for text in texts:
    count_texts(text)
print((peak() - before) // 2_000_000)
"""


def test_memory_of_counts_is_a_small_multiple_of_the_text() -> None:
    """About 20 bytes to a byte that is a word; tables made for words that might all differ took 90."""
    if native() is None:
        pytest.skip("the references take more")
    ended = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 35
