from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from tallow.kernels.dispatch import using
from tallow.kernels.text.characters import count_characters


@given(st.lists(st.text(), max_size=5), st.integers(0, 2))
def test_count_characters(texts: list[str], left_out: int) -> None:
    array = pa.array(texts, pa.string()).slice(left_out)
    for versions in ("fast", "reference"):
        with using(versions):
            assert count_characters(array).tolist() == [len(text) for text in texts[left_out:]]
