"""Texts made to take long: each operation takes as many steps as there are bytes, or nearly."""

from __future__ import annotations

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
