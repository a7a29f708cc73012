"""Structs of Thrift's compact protocol, as the headers of parquet's pages are written.

github.com/apache/thrift, doc/specs/thrift-compact-protocol.md; only the types that are in such headers.
"""

from __future__ import annotations

from typing import Any

Struct = dict[int, Any]
"""Values by the numbers of their fields; of bytes their length."""

TRUE, FALSE, BYTE, INTEGERS, DOUBLE, BYTES, STRUCT = 1, 2, 3, (4, 5, 6), 7, 8, 12
DEEPEST = 8


def read_struct(raw: bytes, at: int = 0, depth: int = 0) -> tuple[Struct, int]:
    """The struct that begins at a byte, and where it ends.

    Raises:
        IndexError: It goes on behind the bytes.
        ValueError: It has what headers have not.
    """
    if depth > DEEPEST:
        raise ValueError("structs within structs")
    fields: Struct = {}
    number = 0
    while head := raw[at]:
        at += 1
        kind, step = head & 15, head >> 4
        if step:
            number += step
        else:
            number, at = _integer(raw, at)
        if kind in (TRUE, FALSE):
            fields[number] = kind == TRUE
        elif kind in INTEGERS:
            fields[number], at = _integer(raw, at)
        elif kind == BYTES:
            fields[number], at = _varint(raw, at)
            at += fields[number]
        elif kind == STRUCT:
            fields[number], at = read_struct(raw, at, depth + 1)
        elif kind in (BYTE, DOUBLE):
            at += 1 if kind == BYTE else 8
        else:
            raise ValueError(f"a field of type {kind}")
    return fields, at + 1


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without end")


def _integer(raw: bytes, at: int) -> tuple[int, int]:
    """Signed: 0, -1, 1, -2 … as 0, 1, 2, 3 …"""
    value, at = _varint(raw, at)
    return value >> 1 ^ -(value & 1), at
