from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.split import DIGEST_BITS, held_out_below
from tallow.errors import DataError


def digest(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[: DIGEST_BITS // 8])


@given(texts=st.sets(st.text("abc", max_size=2), min_size=1), fraction=st.floats(0.001, 0.99))
def test_both_sides_get_something(texts: set[str], fraction: float) -> None:
    digests = sorted(digest(text) for text in texts)
    if len(texts) == 1:
        with pytest.raises(DataError, match="only one document"):
            held_out_below(fraction, digests[0], digests[-1])
        return
    bound = held_out_below(fraction, digests[0], digests[-1])
    assert digests[0] < bound <= digests[-1]


def test_the_share_is_as_asked_and_sets_are_nested() -> None:
    digests = sorted(digest(f"text {number}") for number in range(20_000))
    small, large = (held_out_below(fraction, digests[0], digests[-1]) for fraction in (0.02, 0.05))
    assert 0.017 < sum(each < small for each in digests) / len(digests) < 0.023
    assert small < large


def test_nothing_is_held_out_at_zero_nor_of_a_single_text() -> None:
    assert held_out_below(0, 5, 5) == 0
    with pytest.raises(DataError, match="only one document"):
        held_out_below(0.02, 5, 5)


def test_rule_is_the_documented_one() -> None:
    share = digest("text") / 2**DIGEST_BITS
    assert digest("text") >= held_out_below(share * 0.999, 0, 2**DIGEST_BITS)
    assert digest("text") < held_out_below(share * 1.001, 0, 2**DIGEST_BITS)
