from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.duplicates.cuts import CUTS, make_cuts
from tallow.data.edits import make_edits
from tallow.data.steps.tables import edits_of


@st.composite
def texts_and_ranges(draw: st.DrawFn) -> tuple[list[str], list[list[tuple[int, int, int]]]]:
    texts = draw(st.lists(st.text("aé中😀", max_size=12), min_size=1, max_size=5))
    ranges = st.tuples(st.integers(0, len(texts) - 1), st.integers(0, 12), st.integers(0, 12))
    return texts, draw(st.lists(st.lists(ranges, max_size=5), min_size=1, max_size=3))


@given(texts_and_ranges(), st.integers(0, 2))
def test_cuts_are_what_no_range_covers(given_cuts, left_out: int) -> None:
    texts, annotations = given_cuts
    gone = [set[int]() for _ in texts]
    tables = []
    for ranges in annotations:
        flat = []
        for row, one, other in ranges:
            first, last = sorted(min(place, len(texts[row])) for place in (one, other))
            if first < last:
                gone[row] |= set(range(first, last))
                flat.append((row, len(texts[row][:first].encode()), len(texts[row][:last].encode())))
        rows, begins, ends = np.array(flat, dtype=np.int32).reshape(-1, 3).T
        tables.append(make_cuts(rows, begins, ends, len(texts)))
    for table in tables:
        assert table.schema == CUTS
        for cuts in table["cuts"].to_pylist():
            places = [place for cut in cuts for place in (cut["begin"], cut["end"])]
            assert places == sorted(set(places))
    left = ["".join(char for i, char in enumerate(text) if i not in gone[row]) for row, text in enumerate(texts)]
    edits = [edits_of(table.slice(left_out)) for table in tables]
    assert make_edits(pa.array(texts).slice(left_out), edits).to_pylist() == left[left_out:]
