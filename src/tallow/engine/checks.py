"""Values that users give, as what they have to be; what is of another kind is refused."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from contextlib import suppress
from numbers import Real
from reprlib import repr as shown  # of a long value only its begin and end
from typing import SupportsIndex

from tallow.errors import UsageError


def whole_number(name: str, value: SupportsIndex, bits: int = 63) -> int:
    """The value as an int.

    Args:
        name: What it is called.
        value: As it was given.
        bits: It may have so many, besides its sign.

    Raises:
        UsageError: It is none (nor is a bool), or has more bits.
    """
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise UsageError(f"{name} is {shown(value)}", "it must be a whole number")
    number = operator.index(value)
    if number.bit_length() > bits:
        raise UsageError(f"{name} is a number of {number.bit_length():,} bits", f"it must fit into {bits}")
    return number


def whole_numbers(name: str, values: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """The values as ints.

    Raises:
        UsageError: One is none (nor is a bool), or they are no sequence.
    """
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | bytearray):
        with suppress(TypeError):
            given = tuple(values)
            if bool not in map(type, given):
                return tuple(map(operator.index, given))
    raise UsageError(f"{name} is {shown(values)}", "it must be a sequence of whole numbers")


def number(name: str, value: object) -> float:
    """The value as a float.

    Raises:
        UsageError: It is no number (nor is a bool), or one beyond all floats.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} is {shown(value)}", "it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise UsageError(f"{name} is a number beyond all floats", "take a smaller one") from None


def flag(name: str, value: object) -> bool:
    """The value as a bool.

    Raises:
        UsageError: It is none.
    """
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {shown(value)}", "it must be true or false")
    return value


def texts(name: str, values: Iterable[str]) -> tuple[str, ...]:
    """The values as texts.

    Raises:
        UsageError: One is none, or they are no sequence.
    """
    given = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (None,)
    if not all(isinstance(each, str) for each in given):
        raise UsageError(f"{name} is {shown(values)}", "it must be a sequence of texts, such as ['yes', 'no']")
    return tuple(map(str, given))
