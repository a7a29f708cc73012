"""Clusters of documents that pairs connect; the one with the smallest id survives, so no order matters."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.duplicates.minhash import ID
from tallow.kernels.text.minhash import connect

CLUSTERS = pa.schema([("id", ID), ("survivor", ID), ("size", pa.int64())])


def cluster(pairs: pa.Table) -> pa.Table:
    """For each document in some pairs (columns `first` and `second`) its cluster's survivor and size.

    Rows are sorted by id. Takes the memory of the ids that have a pair.
    """
    both = pa.chunked_array([*pairs["first"].chunks, *pairs["second"].chunks], ID)
    ids = pc.call_function("unique", [both])
    ids = ids.take(pc.call_function("array_sort_indices", [ids]))
    lookup = pc.SetLookupOptions(ids)
    firsts, seconds = (
        pc.call_function("index_in", [pairs[name]], lookup).to_numpy().astype(np.int64) for name in ("first", "second")
    )
    survivors = connect(firsts, seconds, len(ids))
    sizes = np.bincount(survivors, minlength=len(ids))[survivors]
    return pa.table({"id": ids, "survivor": ids.take(pa.array(survivors)), "size": sizes}, schema=CLUSTERS)
