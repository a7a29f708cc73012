"""An n-gram model of one's own: how surprising a text is to who has read some other texts.

Perplexity under a model of good prose, in thirds or other parts of a language's documents, is the quality score of
CCNet (arXiv 1911.00359).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tallow.data.quality.kneser_ney import estimate
from tallow.errors import DataError
from tallow.files import atomic_directory, read_json, write_json
from tallow.kernels.text.ngrams import HIGHEST_ORDER, NgramTable, score_ngrams, word_hashes
from tallow.recipe import Section

TABLES, SETTINGS, FORMAT = "ngram.safetensors", "ngram.json", "tallow-ngram-1"
EMPTY = 2
"""Words of a text without any: its beginning and its end."""

PARTS = ("keys", "log_probabilities", "backoffs")


class NgramConfig(Section):
    """An n-gram model of words."""

    order: int = Field(default=5, ge=1, le=HIGHEST_ORDER, description="Words of the longest n-gram.")
    memory_mb: int = Field(
        default=1024, ge=1, description="Memory of its training; of more text than fits, some is chosen by its content."
    )
    sample_bytes: int = Field(default=100_000, ge=1, description="Bytes of a text that are read, from its beginning.")

    def most_words(self) -> int:
        """How many words it is trained on, at most."""
        return (self.memory_mb << 20) // (BYTES_A_WORD + BYTES_AN_NGRAM * self.order)


BYTES_A_WORD, BYTES_AN_NGRAM = 120, 28
"""Memory of the training for each word; and for each order, were all n-grams different."""


@dataclass(frozen=True, eq=False)
class NgramModel:
    """What was counted, and what follows from it.

    Args:
        config: Of the training.
        tables: Of 1-grams, of 2-grams, and so on.
        unknown: The natural logarithm of the probability of a word that was never seen.
        words: How many it was trained on, ends of texts among them.
    """

    config: NgramConfig
    tables: list[NgramTable]
    unknown: float
    words: int

    def perplexities(self, texts: pa.StringArray) -> npt.NDArray[np.float32]:
        """The perplexity of each text, by words and with its end: float32, NaN for one without words."""
        sums, counts = score_ngrams(texts, self.config.sample_bytes, self.tables, self.unknown)
        perplexities = np.exp(np.minimum(-sums / np.maximum(counts, 1), 80))
        return np.where(counts > 1, perplexities, np.nan).astype(np.float32)

    def save(self, directory: Path | str) -> None:
        """Write it as a directory of safetensors and JSON, whole or not at all."""
        tensors = {
            f"{part}_{size}": getattr(table, part) for size, table in enumerate(self.tables, 1) for part in PARTS
        }
        with atomic_directory(directory) as temporary:
            save_file(tensors, temporary / TABLES)
            settings = {"orders": len(self.tables), "unknown": self.unknown, "words": self.words}
            write_json(
                temporary / SETTINGS, {"format": FORMAT, "config": self.config.model_dump(mode="json"), **settings}
            )


def train_ngrams(texts: Sequence[pa.StringArray], config: NgramConfig) -> NgramModel:
    """Count the n-grams of texts, within the memory that is allowed.

    The texts' order does not matter. Where they have more words than fit, those with the smallest SHA-256 are taken.

    Raises:
        DataError: There are no words, or not even one text fits.
    """
    known = list[tuple[bytes, int, int, int]]()
    for part, array in enumerate(texts):
        sizes = np.diff(word_hashes(array, config.sample_bytes)[0]).tolist()
        for row, (text, size) in enumerate(zip(array.to_pylist(), sizes, strict=True)):
            known.append((hashlib.sha256((text or "").encode()).digest(), size, part, row))
    known.sort()
    room = int(np.searchsorted(np.cumsum([size for _, size, *_ in known]), config.most_words(), "right"))
    chosen = {(part, row) for _, size, part, row in known[:room] if size > EMPTY}
    if not chosen:
        raise DataError(f"there is no text to train an n-gram model on within {config.memory_mb} MB", "give more of it")
    all_sizes, all_words = [np.zeros(1, np.int64)], list[npt.NDArray[np.uint64]]()
    for part, array in enumerate(texts):
        offsets, words = word_hashes(array, config.sample_bytes)
        taken = np.array([(part, row) in chosen for row in range(len(array))], dtype=bool)
        all_sizes.append(np.diff(offsets)[taken])
        all_words.append(words[np.repeat(taken, np.diff(offsets))])
    words = np.concatenate(all_words)
    found = estimate(np.cumsum(np.concatenate(all_sizes)), words, config.order)
    return NgramModel(config, found.tables, found.unknown, len(words) - len(chosen))


def find_ngrams(directory: Path | str) -> Path:
    """The directory, if it holds an n-gram model: a small file in it says so.

    Raises:
        DataError: It is missing, or something else.
    """
    directory = Path(directory)
    if read_json(directory / SETTINGS, "n-gram model").get("format") != FORMAT:
        raise _broken(directory)
    return directory


def _broken(directory: Path) -> DataError:
    return DataError(f"{directory} is not an n-gram model of tallow's, or damaged", "train it again")


def load_ngrams(directory: Path | str) -> NgramModel:
    """Read what `save` has written.

    Raises:
        DataError: It is missing, damaged, or something else.
    """
    directory = find_ngrams(directory)
    values = read_json(directory / SETTINGS, "n-gram model")
    broken = _broken(directory)
    try:
        config = NgramConfig.model_validate(values["config"])
        tensors = load_file(directory / TABLES)
        tables = [_table(tensors, size) for size in range(1, int(values["orders"]) + 1)]
        unknown, words = float(values["unknown"]), int(values["words"])
    except (KeyError, TypeError, ValueError, ValidationError, SafetensorError, OSError) as error:
        raise broken from error
    if not 0 < len(tables) <= config.order or not np.isfinite(unknown):
        raise broken
    return NgramModel(config, tables, unknown, words)


def _table(tensors: dict[str, Any], size: int) -> NgramTable:
    table = NgramTable(*(tensors[f"{part}_{size}"] for part in PARTS))
    count = len(table.keys)
    is_right = table.keys.dtype == np.uint64 and table.keys.ndim == 1 and bool((table.keys[1:] > table.keys[:-1]).all())
    for values in (table.log_probabilities, table.backoffs):
        is_right &= values.dtype == np.float32 and values.shape == (count,)
    if not is_right or not np.isfinite(table.log_probabilities).all() or not np.isfinite(table.backoffs).all():
        raise ValueError(size)
    return table
