"""Documents of which too little is left when all edits are made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.edits import changed_rows, make_edits
from tallow.data.steps.tables import VERDICTS, characters, edits_of, kept, texts_of
from tallow.data.work.step import Made, Step
from tallow.recipe import Section

NOTHING_LEFT, BYTES_LEFT = "nothing left", "bytes_left"


class LeftConfig(Section):
    """Fewer characters than this, white space at the ends not counted, are too few."""

    min_chars: int


def _left(config: LeftConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """From documents, verdicts and tables with edits: verdicts; then the bytes of texts when these are made."""
    documents, verdicts, *beside = tables
    edits = [edits_of(table) for table in beside]
    rows = np.flatnonzero(changed_rows(edits, documents.num_rows) & kept(verdicts))
    before = texts_of(documents.select(["text"]).take(rows))
    after = make_edits(before, [column.take(pa.array(rows)) for column in edits])
    short = characters(after).to_numpy() < config.min_chars
    gone = np.zeros(documents.num_rows, dtype=np.bool_)
    gone[rows[short]] = True
    reasons = pc.call_function("if_else", [pa.array(gone), pa.scalar(NOTHING_LEFT), verdicts["dropped_by"]])
    yield Made(pa.table([reasons], schema=VERDICTS), {NOTHING_LEFT: int(short.sum())})
    sizes = pc.call_function("binary_length", [documents["text"]]).to_numpy().astype(np.int64)
    sizes[rows] = pc.call_function("binary_length", [after]).to_numpy()
    yield Made(pa.table({BYTES_LEFT: sizes}))


LEFT = Step(f"{__name__}:LEFT", 2, LeftConfig, _left)
