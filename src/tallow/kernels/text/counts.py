"""What the quality rules count in a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.classes import TERMINAL, character_tables, class_places
from tallow.kernels.text.words import Word, words

TOP_GRAMS = range(2, 5)
DUPLICATE_GRAMS = range(5, 11)
SHORT_LINE = 30

COUNTS = (
    "characters",
    "words",
    "plain_words",
    "plain_characters",
    "letter_words",
    "lone_symbols",
    "stop_words",
    "hashes",
    "ellipses",
    "lines",
    "bullet_lines",
    "ellipsis_lines",
    "filled_lines",
    "terminal_lines",
    "short_lines",
    "newlines",
    "duplicate_lines",
    "duplicate_line_characters",
    "paragraphs",
    "duplicate_paragraphs",
    "duplicate_paragraph_characters",
    *(f"top_{n}_gram_characters" for n in TOP_GRAMS),
    *(f"duplicate_{n}_gram_characters" for n in DUPLICATE_GRAMS),
)

Counts = dict[str, npt.NDArray[np.int64]]


def count_texts(texts: pa.StringArray, stop_words: Sequence[str] = ()) -> Counts:
    """Count all of `COUNTS` in each text.

    - `words` are those of `words.py`; `plain_` ones are no symbols, `letter_words` have a letter. `lone_symbols` are
      symbols, one or more, that white space parts from all words. `stop_words` is how
      many different ones of those given are there, as they are written.
    - `hashes` are `#`; `ellipses` are `…` and three points in a row.
    - `lines` are what newlines part (the last piece only if it is not empty); `filled_` ones have more than white
      space. A bullet (`-` or `•`), an ellipsis and a sentence's end are looked for within the white space at its ends.
      `short_lines` are filled and have at most 30 characters.
    - `duplicate_lines` are filled lines that were there before: of three that are the same, two. `paragraphs` are
      filled lines without others between them.
    - `top_n_gram_characters`: those of the most common n words in a row times its copies, which may overlap (the first
      of several that are equally common), a space between words that white space parts. `duplicate_n_gram_characters`:
      of n words in a row that were there before; the search goes on behind them, so that each word counts once.
    """
    extension = native() if prefers_fast() else None
    if extension is None:
        table = np.array([_count(text or "", stop_words) for text in texts.to_pylist()], dtype=np.int64)
        table = table.reshape(len(texts), len(COUNTS))
    else:
        table = np.empty((len(texts), len(COUNTS)), dtype=np.int64)
        extension.count_texts(places(texts), class_places(), list(stop_words), table.ctypes.data)
    return {name: np.ascontiguousarray(table[:, column]) for column, name in enumerate(COUNTS)}


def _count(text: str, stop_words: Sequence[str]) -> list[int]:
    found = words(text)
    plain = [word.text for word in found if word.plain]
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    filled = [line for line in lines if line.strip()]
    kinds = character_tables().kinds
    paragraphs = [""]
    for line in lines:
        paragraphs[-1] += line + "\n" if line.strip() else ""
        if not line.strip():
            paragraphs.append("")
    paragraphs = [paragraph.removesuffix("\n") for paragraph in paragraphs if paragraph]
    return [
        len(text),
        len(found),
        len(plain),
        sum(map(len, plain)),
        sum(any(map(str.isalpha, word)) for word in plain),
        _lone_symbols(found),
        len(set(plain) & set(stop_words)),
        text.count("#"),
        text.count("...") + text.count("…"),
        len(lines),
        sum(line.strip().startswith(("-", "•")) for line in filled),
        sum(line.strip().endswith(("...", "…")) for line in filled),
        len(filled),
        sum(bool(kinds[ord(line.strip()[-1])] & TERMINAL) for line in filled),
        sum(len(line) <= SHORT_LINE for line in filled),
        text.count("\n"),
        *_copies(filled),
        len(paragraphs),
        *_copies(paragraphs),
        *(_top_gram(found, n) for n in TOP_GRAMS),
        *(_duplicate_grams(found, n) for n in DUPLICATE_GRAMS),
    ]


def _lone_symbols(found: Sequence[Word]) -> int:
    chunks: list[bool] = []
    for word in found:
        if word.spaced or not chunks:
            chunks.append(False)
        chunks[-1] |= word.plain
    return chunks.count(False)


def _copies(pieces: Sequence[str]) -> tuple[int, int]:
    """Pieces that were there before, and their characters."""
    extra = Counter(pieces) - Counter(dict.fromkeys(pieces, 1))
    return extra.total(), sum(len(piece) * copies for piece, copies in extra.items())


def _top_gram(found: Sequence[Word], n: int) -> int:
    grams = [found[at : at + n] for at in range(len(found) - n + 1)]
    if not grams:
        return 0
    copies = Counter(tuple(word.text for word in gram) for gram in grams)
    most = max(copies.values())
    top = next(gram for gram in grams if copies[tuple(word.text for word in gram)] == most)
    return most * sum(len(word.text) + (word.spaced and number > 0) for number, word in enumerate(top))


def _duplicate_grams(found: Sequence[Word], n: int) -> int:
    seen: set[tuple[str, ...]] = set()
    at = characters = 0
    while at + n <= len(found):
        gram = tuple(word.text for word in found[at : at + n])
        if gram in seen:
            characters += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return characters
