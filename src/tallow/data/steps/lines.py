"""Lines that are dropped before anything else looks at the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256

import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.quality.c4 import C4Lines, drop_lines
from tallow.data.steps.tables import PART, characters, texts_of
from tallow.data.work.step import Made, Step
from tallow.recipe import Section

REASONS = ("long_word", "no_end", "few_words", "javascript", "policy", "citations")
DROPPED, BYTES = "dropped ", "bytes"
CHARS_READ = "chars_read"


class LinesStep(Section):
    lines: C4Lines


def _lines(config: LinesStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """The documents with fewer lines, and digests of what is left; then the characters that each had as it was read.

    Counts with the documents: `dropped <reason>`, lines of each; `bytes`, how many all of them had.
    """
    [documents] = tables
    kept = drop_lines(texts_of(documents), config.lines)
    digests = [sha256(text.encode()).digest()[:16] for text in kept.texts.to_pylist()]
    columns = {"text": kept.texts, "digest": pa.array(digests, pa.binary(16))}
    table = pa.table([columns.get(name, documents[name]) for name in PART.names], schema=PART)
    counts = {f"{DROPPED}{name}": int(kept.counts[name].sum()) for name in REASONS}
    before, after = (pc.call_function("binary_length", [texts]).to_numpy() for texts in (documents["text"], kept.texts))
    yield Made(table, {**counts, BYTES: int(before.sum()) - int(after.sum())})
    yield Made(pa.table({CHARS_READ: characters(documents["text"])}))


LINES = Step(f"{__name__}:LINES", 2, LinesStep, _lines)
