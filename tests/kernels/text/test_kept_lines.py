from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.text.strange import texts

from tallow.kernels.dispatch import Versions, using
from tallow.kernels.text.kept_lines import LineRules, count_sentences, keep_lines

VERSIONS: tuple[Versions, ...] = ("fast", "reference")


@given(
    st.lists(texts, max_size=4),
    st.integers(0, 2),
    st.builds(LineRules, st.integers(0, 4), st.integers(1, 40), *[st.booleans()] * 4),
)
def test_fast_lines_are_the_reference(given_texts: list[str], left_out: int, rules: LineRules) -> None:
    array = pa.array(given_texts, pa.string()).slice(left_out)
    found = []
    for versions in VERSIONS:
        with using(versions):
            kept = keep_lines(array, rules)
        kept.texts.validate(full=True)
        found.append((kept.texts.to_pylist(), {name: counts.tolist() for name, counts in kept.counts.items()}))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("", 0),
        ("...", 0),
        ("One", 1),
        ("One. Two! Three?", 3),
        ('He said "No!" and went. "Why?" "So."', 3),
        ("tallow.py is 3.14 years old, e.g. this.", 1),
        ("你好。再见！好", 3),
        ("Он пришёл. Она ушла. ", 2),
        ("What?! Yes... no", 2),
    ],
)
def test_sentences(line: str, sentences: int) -> None:
    assert count_sentences(line) == sentences
