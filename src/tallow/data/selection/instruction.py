"""What can be told of instructions and their responses without a model: how long they are, and how much they repeat.

The longest responses are a choice that is hard to beat (arXiv 2402.04833). The columns are for bounds, ranks and
curricula.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.data.permutation import mix
from tallow.kernels.text.ngrams import word_hashes

GRAM = 3
"""Words of an n-gram."""

WHOLE = 2**62

COLUMNS = pa.schema(
    [
        ("instruction.prompt_words", pa.int64()),
        ("instruction.response_words", pa.int64()),
        ("instruction.distinct", pa.float32()),
        ("instruction.copied", pa.float32()),
    ]
)
"""Words of the prompt and of the response; of the response's n-grams (of three words, by 64 bits) the share that differ
from each other, and the share that are in the prompt, too. Null where a response has fewer than three words."""


def score_instructions(prompts: pa.StringArray, responses: pa.StringArray) -> pa.Table:
    """`COLUMNS` of N prompts (all that goes before the response) and their responses."""
    assert len(prompts) == len(responses)
    prompt_words, given = _grams(prompts)
    words, grams = _grams(responses)
    rows = grams["row"].astype(np.int64)
    totals = np.bincount(rows, minlength=len(responses))
    distinct = np.bincount(np.unique(grams)["row"].astype(np.int64), minlength=len(responses))
    copied = np.bincount(rows[np.isin(grams, given)], minlength=len(responses))
    shares = [(part / np.maximum(totals, 1)).astype(np.float32) for part in (distinct, copied)]
    columns = [pa.array(prompt_words), pa.array(words), *(pa.array(share, mask=totals == 0) for share in shares)]
    return pa.table(columns, schema=COLUMNS)


def _grams(texts: pa.StringArray) -> tuple[npt.NDArray[np.int64], np.ndarray]:
    """How many words each text has, and the row and the hash of all their n-grams."""
    offsets, words = word_hashes(texts, WHOLE)
    inner = np.ones(len(words), dtype=bool)
    inner[offsets[:-1]] = inner[offsets[1:] - 1] = False  # the marks of beginning and end
    words, rows = words[inner], np.repeat(np.arange(len(texts)), np.diff(offsets))[inner]
    count = max(0, len(words) - GRAM + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(GRAM):
        hashes = mix(hashes ^ words[place : place + count])
    whole = rows[:count] == rows[GRAM - 1 :]
    grams = np.empty(int(whole.sum()), dtype=[("row", np.uint64), ("hash", np.uint64)])
    grams["row"], grams["hash"] = rows[:count][whole], hashes[whole]
    return np.diff(offsets) - 2, grams
