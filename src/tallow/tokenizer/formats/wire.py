"""Protocol buffers' wire format, as far as sentencepiece's files use it.

Source: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int | float | bytes]


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message by number, as they come: a number, 4 bytes as a float, or bytes.

    Raises:
        ValueError: The message is broken.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field without a number")
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if length > len(message) - at:
            raise ValueError("a field that goes on behind the end")
        content = message[at : at + length]
        at += length
        yield number, struct.unpack("<f", content)[0] if kind == FIXED32 else content


def field(number: int, value: int | float | bytes | str) -> bytes:
    """A field as bytes: of a number, of a float in 4 bytes, of bytes, of a text."""
    if isinstance(value, float):
        return _encoded(number << 3 | FIXED32) + struct.pack("<f", value)
    if isinstance(value, int):
        return _encoded(number << 3 | VARINT) + _encoded(value & (1 << 64) - 1)
    content = value.encode() if isinstance(value, str) else value
    return _encoded(number << 3 | BYTES) + _encoded(len(content)) + content


def signed(value: int) -> int:
    """A number as of 32 bits with a sign."""
    value &= (1 << 32) - 1
    return value - (1 << 32) if value >> 31 else value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(message):
            break
        byte = message[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number without an end")


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
