"""Addresses of crypto wallets, by their check sums."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256

from tallow.data.privacy.keccak import keccak_256
from tallow.data.privacy.span import Span

_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?P<base58>[123LMDTX][1-9A-HJ-NP-Za-km-z]{25,34})"
    r"|(?P<bech32>(?:bc1|tb1|ltc1)[02-9ac-hj-np-z]{8,87}|(?:BC1|TB1|LTC1)[02-9AC-HJ-NP-Z]{8,87})"
    r"|(?P<ethereum>0x[0-9a-fA-F]{40})"
    r")(?![A-Za-z0-9])"
)
_BASE58 = {
    character: value for value, character in enumerate("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")
}
_BECH32 = {character: value for value, character in enumerate("qpzry9x8gf2tvdw0s3jn54khce6mua7l")}
_VERSIONS = (0x00, 0x05, 0x6F, 0xC4, 0x30, 0x32, 0x1E, 0x16, 0x41, 0x4C, 0x10)
"""Of Bitcoin (and its test net), Litecoin, Dogecoin, Tron, Dash: their first byte."""


def find(text: str, start: int, end: int) -> Iterator[Span]:
    """Addresses within a word."""
    for match in _ADDRESS.finditer(text, start, end):
        address = match[0]
        if match["base58"]:
            value = address if is_base58check(address) else None
        elif match["bech32"]:
            value = address.lower() if is_bech32(address.lower()) else None
        else:
            value = address.lower() if is_ethereum(address) else None
        if value is not None:
            yield Span(match.start(), match.end(), "wallet", value)


def is_base58check(address: str) -> bool:
    """Whether it is a version, 20 bytes, and the first four of their hash (Bitcoin's base58check)."""
    number = 0
    for character in address:
        number = number * 58 + _BASE58[character]
    zeros = len(address) - len(address.lstrip("1"))
    data = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8, "big")
    return len(data) == 25 and data[0] in _VERSIONS and data[21:] == sha256(sha256(data[:21]).digest()).digest()[:4]


def is_bech32(address: str) -> bool:
    """Whether a lower-case address has the check sum of its version (BIP 173 for version 0, BIP 350 for later ones)."""
    prefix, _, characters = address.rpartition("1")
    if prefix == "" or len(address) > 90 or any(character not in _BECH32 for character in characters):
        return False
    data = [_BECH32[character] for character in characters]
    expanded = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    checksum = 1
    for value in expanded + data:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator if top >> bit & 1 else 0
    size = (len(data) - 7) * 5 // 8
    return (checksum == 1 and data[0] == 0 and size in (20, 32)) or (
        checksum == 0x2BC830A3 and 1 <= data[0] <= 16 and 2 <= size <= 40
    )


@lru_cache(4096)
def is_ethereum(address: str) -> bool:
    """Whether the cases of its letters are those of its check sum (EIP-55), or are all the same."""
    letters = address[2:]
    if letters in (letters.lower(), letters.upper()):
        return True
    nibbles = keccak_256(letters.lower().encode()).hex()
    return letters == "".join(
        c.upper() if int(nibble, 16) > 7 else c.lower() for c, nibble in zip(letters, nibbles, strict=False)
    )
