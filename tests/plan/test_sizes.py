from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.errors import UsageError
from tallow.plan.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "number"),
    [("135m", 135_000_000), ("1.5B", 1_500_000_000), (" 500 k", 500_000), ("7", 7), (20_000, 20_000), (".5m", 500_000)],
)
def test_names_are_numbers(text: str | int, number: int) -> None:
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["", "m", "-1m", "0", "0.1", "1t", "1.2.3m", "30 million"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a number of parameters"):
        parse_size(text)


@pytest.mark.parametrize(
    ("number", "text"), [(3_141_592, "3.14m"), (999_600, "1m"), (999.7, "1k"), (42, "42"), (2e9, "2b")]
)
def test_numbers_have_three_digits(number: float, text: str) -> None:
    assert format_size(number) == text


@given(st.integers(1, 10**12))
def test_what_is_written_can_be_read(number: int) -> None:
    assert parse_size(format_size(number)) == pytest.approx(number, rel=0.0051)
