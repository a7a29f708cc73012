"""Numbers as people read them."""

from __future__ import annotations

from typing import Any


def format_value(name: str, value: Any) -> str:
    """A value with the unit that its name ends in: `_bytes`, `_s`, `_j`, `flops`; counts with separators."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if name.endswith("bytes"):
        return _scaled(value, 1000, ("B", "kB", "MB", "GB", "TB"))
    if name.endswith("_per_s"):
        return f"{value:,.0f}"
    if name.endswith("_s"):
        return f"{value:.1f} s" if value < 90 else f"{int(value) // 60} min {int(value) % 60:02d} s"
    if name.endswith("_j"):
        return _scaled(value, 1000, ("J", "kJ", "MJ", "GJ"))
    if name.endswith("flops"):
        return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.0f} {unit}" if unit == units[0] else f"{value:.1f} {unit}"
        value /= base
    return f"{value:.1f} {units[-1]}"
