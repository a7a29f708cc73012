"""What is held out for validation, by the digest of its text alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tallow.data.documents import SCHEMA
from tallow.data.steps.tables import kept, words
from tallow.data.work.step import Made, Step
from tallow.recipe import Section


class SplitConfig(Section):
    """Digests, as numbers of 128 bits, below `bound` are held out."""

    bound: int


def _split(config: SplitConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """What is kept: to train on, and to validate with."""
    documents, verdicts = tables
    stay = kept(verdicts)
    digests = words(documents.column("digest"))
    high, low = (np.uint64(config.bound >> 64 & (2**64 - 1)), np.uint64(config.bound & (2**64 - 1)))
    held_out = (digests[:, 0] < high) | ((digests[:, 0] == high) & (digests[:, 1] < low)) | (config.bound >= 2**128)
    names = [id.hex() for id in documents.column("id").to_pylist()]
    table = documents.select(SCHEMA.names).set_column(0, "id", pa.array(names, pa.string()))
    for chosen in (stay & ~held_out, stay & held_out):
        yield Made(table.filter(pa.array(chosen)).cast(SCHEMA))


SPLIT = Step(f"{__name__}:SPLIT", 1, SplitConfig, _split)
