"""Documents without what was found to be cut out of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.duplicates.cuts import apply_cuts, unite_cuts
from tallow.data.steps.tables import texts_of
from tallow.data.work.step import Input, Made, Part, Step
from tallow.data.work.work import Work
from tallow.recipe import Section


class CutConfig(Section):
    pass


def cut_documents(work: Work, parts: Sequence[Part], annotations: Sequence[Sequence[Part]]) -> list[Part]:
    """Parts whose texts are cut, and have the digests of what is left; ids and all else stay.

    Each has the counts `cut_documents` and `cut_bytes`. A document may be left without any text.

    Args:
        parts: The documents.
        annotations: One or more lists of `CUTS` beside them.
    """
    beside = [[Input(each) for each in row] for row in zip(parts, *annotations, strict=True)]
    return [made for [made] in work.each(CUT_TEXTS, [(CutConfig(), inputs) for inputs in beside])]


def _cut(_: CutConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    documents, *annotations = tables
    cuts, before = unite_cuts(annotations), texts_of(documents)
    texts = apply_cuts(before, cuts)
    changed = np.flatnonzero(pc.call_function("list_value_length", [cuts.column("cuts")]).to_numpy())
    digests = documents.column("digest").to_pylist()
    for row in changed.tolist():
        digests[row] = hashlib.sha256(texts[row].as_py().encode()).digest()[:16]
    columns = {"text": texts, "digest": pa.array(digests, pa.binary(16))}
    for name, column in columns.items():
        documents = documents.set_column(documents.schema.get_field_index(name), documents.schema.field(name), column)
    sizes = [
        pc.call_function("sum", [pc.call_function("binary_length", [column])]).as_py() or 0
        for column in (before, texts)
    ]
    yield Made(documents, {"cut_documents": len(changed), "cut_bytes": sizes[0] - sizes[1]})


CUT_TEXTS = Step(f"{__name__}:CUT_TEXTS", 1, CutConfig, _cut)
