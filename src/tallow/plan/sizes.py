"""Sizes of models as people name them: `20m`, `1.5b`."""

from __future__ import annotations

import re

from tallow.errors import UsageError

UNITS = {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}
SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([kmb]?)", re.IGNORECASE)


def parse_size(text: str | int) -> int:
    """The number of parameters (or tokens) that a size names: `135m`, `1.5B`, or the number itself.

    Raises:
        UsageError: It names none, or one that is not positive.
    """
    match = SIZE.fullmatch(str(text).strip())
    number = round(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if number < 1:
        raise UsageError(f"size {text!r} is not a number of parameters", "write it as 500k, 30m or 1.5b")
    return number


def format_size(number: float) -> str:
    """A number in three digits and a unit, which `parse_size` reads: 3.14m."""
    # what would be rounded up to a thousand of a unit is one of the next
    unit = next((unit for unit in "bm" if number >= 0.9995 * UNITS[unit]), "k" if number >= 999.5 else "")
    return f"{float(f'{number / UNITS[unit]:.3g}'):g}{unit}"
