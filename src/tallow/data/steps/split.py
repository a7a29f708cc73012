"""What is kept, with all edits made: to train on, and held out for validation by the digest of its text alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tallow.data.documents import SCHEMA
from tallow.data.edits import make_edits
from tallow.data.steps.judge import LANGUAGE
from tallow.data.steps.tables import edits_of, kept, texts_of, words
from tallow.data.work.step import Made, Step
from tallow.recipe import Section


class SplitConfig(Section):
    """Digests, as numbers of 128 bits, below `bound` are held out. `language`: a table that tells it is given."""

    bound: int
    language: bool


def _split(config: SplitConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """What is kept: to train on, and to validate with. Given are documents, verdicts, languages, and edits."""
    documents, verdicts, *beside = tables
    languages = (
        beside.pop(0)[LANGUAGE] if config.language else pa.chunked_array([pa.nulls(len(documents), pa.string())])
    )
    stay = kept(verdicts)
    digests = words(documents["digest"])
    high, low = (np.uint64(config.bound >> 64 & (2**64 - 1)), np.uint64(config.bound & (2**64 - 1)))
    held_out = (digests[:, 0] < high) | ((digests[:, 0] == high) & (digests[:, 1] < low)) | (config.bound >= 2**128)
    edits = [edits_of(each) for each in beside]
    for chosen in (stay & ~held_out, stay & held_out):
        table = documents.filter(pa.array(chosen))
        names = pa.array([id.hex() for id in table["id"].to_pylist()], pa.string())
        texts = make_edits(texts_of(table), [column.filter(pa.array(chosen)) for column in edits])
        known = languages.filter(pa.array(chosen))
        yield Made(pa.table([names, texts, table["source"], table["offset"], known], schema=SCHEMA))


SPLIT = Step(f"{__name__}:SPLIT", 1, SplitConfig, _split)
