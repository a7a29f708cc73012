"""What the entries of a vocabulary stand for in bytes, read off the tokenizer's decoder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import tokenizers

BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """How the tokens of one tokenizer are spelled.

    Attributes:
        byte_level: Each character of a token stands for one byte (GPT-2's alphabet).
        byte_fallback: Tokens such as `<0xE4>` stand for one byte, all others for text (sentencepiece).
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        decoder = backend.decoder
        steps = list(_steps(json.loads(decoder.__getstate__()))) if decoder is not None else []
        kinds = {step.get("type") for step in steps}
        self.byte_level = "ByteLevel" in kinds
        self.byte_fallback = "ByteFallback" in kinds
        self._replacements = [pair for step in steps if (pair := _replacement(step)) is not None]

    def is_byte(self, token: str) -> bool:
        """Whether a token is one byte of a character that other such tokens complete."""
        return self.byte_fallback and BYTE_TOKEN.fullmatch(token) is not None

    def to_bytes(self, token: str) -> bytes:
        """The bytes of the text that a token stands for."""
        if self.byte_level:
            alphabet = byte_alphabet()
            known = all(character in alphabet for character in token)
            return bytes(alphabet[character] for character in token) if known else token.encode()
        if self.byte_fallback and (match := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()


@cache
def byte_alphabet() -> Mapping[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 characters are themselves, the rest count up from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


@cache
def byte_letters() -> list[str]:
    """The letter of each byte."""
    return sorted(byte_alphabet(), key=byte_alphabet().__getitem__)


def _steps(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _replacement(step: Mapping[str, Any]) -> tuple[str, str] | None:
    if step.get("type") == "Metaspace":
        return step["replacement"], " "
    if step.get("type") == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None
