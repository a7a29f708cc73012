"""What has become of the documents, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tallow.data.steps.tables import kept, words
from tallow.data.work.step import Made, Step
from tallow.recipe import Section

KEPT = "kept"


class TallyConfig(Section):
    pass


def _tally(_: TallyConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Counts alone: `<verdict>`, the documents of each, and of those kept the smallest and the largest digest."""
    documents, verdicts = tables
    counts: Counter[str] = Counter(reason or KEPT for reason in verdicts.column("dropped_by").to_pylist())
    digests = words(documents.column("digest"))[kept(verdicts)]
    if len(digests):
        order = np.lexsort(digests.T[::-1])
        for name, place in (("smallest", 0), ("largest", -1)):
            high, low = digests[order[place]].tolist()
            counts[name] = high << 64 | low
    yield Made(pa.table({}), counts)


TALLY = Step(f"{__name__}:TALLY", 1, TallyConfig, _tally)
