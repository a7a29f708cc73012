from __future__ import annotations

import hashlib
import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.kernels.text.strange import texts
from tests.kernels.text.test_hostile import SHAPES

from tallow.kernels.dispatch import using
from tallow.kernels.text import native
from tallow.kernels.text.classes import character_tables
from tallow.kernels.text.units import UnitKind, find_units

KINDS: tuple[UnitKind, ...] = ("line", "paragraph")


@given(st.lists(texts, max_size=4), st.integers(0, 2), st.sampled_from(KINDS), st.integers(1, 6))
def test_fast_units_are_the_reference(given_texts: list[str], left_out: int, kind: UnitKind, min_chars: int) -> None:
    array = pa.array(given_texts, pa.string()).slice(left_out)
    found = []
    for versions in ("fast", "reference"):
        with using(versions):
            found.append([values.tolist() for values in find_units(array, kind, min_chars)])
    assert found[0] == found[1]


@pytest.mark.parametrize("versions", ["fast", "reference"])
@pytest.mark.parametrize(
    ("kind", "text", "cuts"),
    [
        ("line", "aa\nbb", ["aa\n", "\nbb"]),
        ("line", "aa\n\n bb \n", ["aa\n", " bb \n"]),
        ("line", "\naa", ["\naa"]),
        ("line", "aa", ["aa"]),
        ("paragraph", "aa\nbb\n \ncc\n\n\ndd\n", ["aa\nbb\n \n", "cc\n\n\n", "\n\n\ndd"]),
        ("paragraph", "\n\naa\n", ["aa"]),
        ("paragraph", "a\n\nbb", ["\n\nbb"]),
        ("paragraph", " \n\t\n", []),
    ],
)
def test_what_goes_with_a_unit(versions, kind: UnitKind, text: str, cuts: list[str]) -> None:
    with using(versions):
        units = find_units(pa.array([text]), kind, 2)
    assert [text[begin:end] for begin, end in zip(units.begins, units.ends, strict=True)] == cuts


@pytest.mark.parametrize("length", [*range(1, 5), *range(125, 132), 255, 256, 257, 1000])
def test_hashes_are_those_of_hashlib(length: int) -> None:
    text = "x" * length
    with using("fast"):
        words = find_units(pa.array([f"\t{text} \n"]), "line", 1).hashes_U2
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    assert words.astype(">u8").tobytes() == digest


@pytest.mark.parametrize("shape", [*SHAPES, " \n", "a\n\n"])
@pytest.mark.parametrize("kind", KINDS)
def test_time_is_linear(shape: str, kind: UnitKind) -> None:
    if native() is None:
        pytest.skip("the reference is slow")
    text = pa.array([shape * (1_000_000 // len(shape.encode()))])
    character_tables()
    begin = time.process_time()
    find_units(text, kind, 1)
    assert time.process_time() - begin < 1


def test_white_space_is_the_same_to_a_hash() -> None:
    units = find_units(pa.array(["one two", " one\u3000\t two\n", "one\ntwo", "onetwo"]), "paragraph", 1)
    first, *others = units.hashes_U2.tolist()
    assert [other == first for other in others] == [True, True, False]
