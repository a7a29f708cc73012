"""What kind of character each is, and which are taken for the same: tables for C++ and for its references.

Kinds follow `unicodedata` and `str` of the Python that runs. Sentence terminals are those of Unicode 16's property
Sentence_Terminal, which Python does not have.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallow.once import once

SPACE, WORD, LETTER, ALONE, MARK, LOWER, TERMINAL, CLOSER = (1 << bit for bit in range(8))
"""White space; letters and numbers; letters; letters of scripts without spaces; what goes on with the character before
it (combining marks, joiners); small letters; ends of sentences; what may close a sentence behind its end."""

CHARACTERS = 0x110000
FOLDED = 0x30000
"""No character from here on has another case or a simpler form."""

ASSIGNED = (range(FOLDED), range(FOLDED, 0x33480), range(0xE0000, 0xE0200))
"""Outside these are no characters of Unicode 17 but those for private use, which have no kind."""

UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),  # Katakana of half width
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),  # Han
)
"""First and last characters of the scripts that put no spaces between words."""

CLOSERS = "\"')]}»›”’」』】）"
TERMINALS = (
    (0x21, 0x21), (0x2E, 0x2E), (0x3F, 0x3F), (0x589, 0x589), (0x61D, 0x61F), (0x6D4, 0x6D4), (0x700, 0x702),
    (0x7F9, 0x7F9), (0x837, 0x837), (0x839, 0x839), (0x83D, 0x83E), (0x964, 0x965), (0x104A, 0x104B),
    (0x1362, 0x1362), (0x1367, 0x1368), (0x166E, 0x166E), (0x1735, 0x1736), (0x17D4, 0x17D5), (0x1803, 0x1803),
    (0x1809, 0x1809), (0x1944, 0x1945), (0x1AA8, 0x1AAB), (0x1B4E, 0x1B4F), (0x1B5A, 0x1B5B), (0x1B5E, 0x1B5F),
    (0x1B7D, 0x1B7F), (0x1C3B, 0x1C3C), (0x1C7E, 0x1C7F), (0x2024, 0x2024), (0x203C, 0x203D), (0x2047, 0x2049),
    (0x2CF9, 0x2CFB), (0x2E2E, 0x2E2E), (0x2E3C, 0x2E3C), (0x2E53, 0x2E54), (0x2E60, 0x2E61), (0x3002, 0x3002),
    (0xA4FF, 0xA4FF), (0xA60E, 0xA60F), (0xA6F3, 0xA6F3), (0xA6F7, 0xA6F7), (0xA876, 0xA877), (0xA8CE, 0xA8CF),
    (0xA92F, 0xA92F), (0xA9C8, 0xA9C9), (0xAA5D, 0xAA5F), (0xAAF0, 0xAAF1), (0xABEB, 0xABEB), (0xFE12, 0xFE12),
    (0xFE15, 0xFE16), (0xFE52, 0xFE52), (0xFE56, 0xFE57), (0xFF01, 0xFF01), (0xFF0E, 0xFF0E), (0xFF1F, 0xFF1F),
    (0xFF61, 0xFF61), (0x10A56, 0x10A57), (0x10F55, 0x10F59), (0x10F86, 0x10F89), (0x11047, 0x11048),
    (0x110BE, 0x110C1), (0x11141, 0x11143), (0x111C5, 0x111C6), (0x111CD, 0x111CD), (0x111DE, 0x111DF),
    (0x11238, 0x11239), (0x1123B, 0x1123C), (0x112A9, 0x112A9), (0x113D4, 0x113D5), (0x1144B, 0x1144C),
    (0x115C2, 0x115C3), (0x115C9, 0x115D7), (0x11641, 0x11642), (0x1173C, 0x1173E), (0x11944, 0x11944),
    (0x11946, 0x11946), (0x11A42, 0x11A43), (0x11A9B, 0x11A9C), (0x11C41, 0x11C42), (0x11EF7, 0x11EF8),
    (0x11F43, 0x11F44), (0x16A6E, 0x16A6F), (0x16AF5, 0x16AF5), (0x16B37, 0x16B38), (0x16B44, 0x16B44),
    (0x16D6E, 0x16D6F), (0x16E98, 0x16E98), (0x1BC9F, 0x1BC9F), (0x1DA88, 0x1DA88),
)  # fmt: skip
"""First and last characters of Sentence_Terminal."""


class CharacterTables(NamedTuple):
    """Kinds of all characters (bits), and what those below `FOLDED` are folded to (0 for what is passed over)."""

    kinds: npt.NDArray[np.uint8]
    folds: npt.NDArray[np.uint32]


@once()
def character_tables() -> CharacterTables:
    """The tables of this process; making them takes about 0.2 s."""
    kinds = np.zeros(CHARACTERS, dtype=np.uint8)
    folds = np.zeros(FOLDED, dtype=np.uint32)
    for codes in ASSIGNED:
        for code in codes:
            kinds[code] = kind(chr(code))
    for first, last in UNSPACED_SCRIPTS:
        script = kinds[first : last + 1]
        script[script & LETTER > 0] |= ALONE
    for first, last in TERMINALS:
        kinds[first : last + 1] |= TERMINAL
    for closer in CLOSERS:
        kinds[ord(closer)] |= CLOSER
    for code in np.flatnonzero(kinds[:FOLDED] & (WORD | MARK)):
        folds[code] = ord(fold(chr(code)) or "\0")
    return CharacterTables(kinds, folds)


def class_places() -> tuple[int, int]:
    """Addresses of the tables, as the extension's functions take them."""
    tables = character_tables()
    return tables.kinds.ctypes.data, tables.folds.ctypes.data


def kind(character: str) -> int:
    """What Unicode says of a character."""
    category = unicodedata.category(character)
    if category[0] == "L":
        return WORD | LETTER | (LOWER if category == "Ll" else 0)
    if category[0] == "N":
        return WORD
    if category[0] == "M" or category == "Cf":
        return MARK
    return SPACE if character.isspace() else 0


def fold(character: str) -> str:
    """A letter without case and accents, 0 for a decimal digit; nothing for accents and what is no part of a word."""
    category = unicodedata.category(character)
    if category == "Nd":
        return "0"
    if category[0] not in "LN" and category != "Mc":
        return ""
    lower = character.lower()
    simple = [part for part in unicodedata.normalize("NFD", lower) if unicodedata.category(part) != "Mn"]
    if len(simple) == 1:
        return simple[0]
    return lower if len(lower) == 1 else character
