"""Lines that are dropped before anything else looks at the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256

import pyarrow as pa

from tallow.data.quality.c4 import C4Lines, drop_lines
from tallow.data.steps.tables import PART, texts_of
from tallow.data.work.step import Made, Step
from tallow.recipe import Section

REASONS = ("long_word", "no_end", "few_words", "javascript", "policy", "citations")


class LinesStep(Section):
    lines: C4Lines


def _lines(config: LinesStep, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """The documents with fewer lines, and digests of what is left; counts `dropped <reason>`, lines of each."""
    [documents] = tables
    kept = drop_lines(texts_of(documents), config.lines)
    digests = [sha256(text.encode()).digest()[:16] for text in kept.texts.to_pylist()]
    columns = {"text": kept.texts, "digest": pa.array(digests, pa.binary(16))}
    table = pa.table([columns.get(name, documents[name]) for name in PART.names], schema=PART)
    counts = {f"dropped {name}": int(kept.counts[name].sum()) for name in REASONS}
    yield Made(table, counts)


LINES = Step(f"{__name__}:LINES", 1, LinesStep, _lines)
