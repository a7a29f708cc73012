"""Data selection with importance resampling (DSIR, arXiv 2302.03169, section 3).

A document's weight is how much more likely its hashed n-grams are in a target than in the corpus. Documents are drawn
without replacement in proportion to their weights: Gumbel noise is added to the logarithms, and the largest are kept
("Stochastic beams and where to find them", arXiv 1903.06059). The noise is that of a document's id.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tallow.data.permutation import mix
from tallow.kernels.text.hashed_grams import Grams, count_grams, weigh_grams
from tallow.recipe import Section

WHOLE = 2**62
LOG_WEIGHT, KEY = "dsir.log_weight", "dsir.key"
Counts = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]


class ImportanceConfig(Section):
    """How documents are compared with a target.

    Args:
        word_grams: Words of the longest n-gram.
        bits: N-grams are hashed to 2^bits buckets; the paper has 10,000.
        smoothing: Added to the counts of each bucket.
        seed: Of the draw.
    """

    word_grams: int = Field(default=2, ge=1, le=8)
    bits: int = Field(default=14, ge=4, le=24)
    smoothing: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)

    def grams(self) -> Grams:
        return Grams(WHOLE, self.word_grams, 1, 0, self.bits)


def count_buckets(texts: pa.StringArray, config: ImportanceConfig) -> Counts:
    """N-grams of some texts in each bucket; those of more texts add up."""
    return count_grams(texts, config.grams())


def log_ratios(target: Counts, corpus: Counts, config: ImportanceConfig) -> Scores:
    """Of each bucket the logarithm of its share of the target over that of the corpus."""
    shares = [
        np.log((each + config.smoothing) / (each.sum() + config.smoothing * len(each))) for each in (target, corpus)
    ]
    return shares[0] - shares[1]


def log_weights(texts: pa.StringArray, ratios: Scores, config: ImportanceConfig) -> Scores:
    """Logarithms of the importance weights of texts; NaN for one without words."""
    sums, sizes = weigh_grams(texts, config.grams(), ratios)
    return np.where(sizes > 0, sums, np.nan)


def gumbel(ids: npt.NDArray[np.uint64], seed: int) -> Scores:
    """Noise of documents with these ids (N × 2 words), the same wherever they are."""
    state = mix(np.array([seed % 2**64], dtype=np.uint64))
    drawn = mix(mix(state + ids[:, 0]) + ids[:, 1])
    uniform = ((drawn >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return -np.log(-np.log(uniform))
