"""fastText's supervised models: `.bin` files, and `.ftz` ones, whose rows are rounded to codes (product quantization).

The layout is that of `FastText::saveModel` (fastText 0.9, file version 12). A file may come from anywhere: every length
in it is checked against what there is, and every number that leads to a row against the rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tallow.data.language.label_tree import label_tree
from tallow.errors import DataError, reading
from tallow.kernels.text.labels import LabelModel

MAGIC, VERSIONS = 793712314, (11, 12)
HIERARCHICAL_SOFTMAX, SOFTMAX = 1, 3
LOSSES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}
SUPERVISED = 3
CENTROIDS = 256
# no model in use comes near these; they keep what a forged one can make us do in proportion to its size
WIDEST, LONGEST_GRAM, MOST_WORD_GRAMS, LONGEST_WORD = 8192, 64, 16, 4096
MOST_BYTES, MOST_EXPANSION = 1 << 30, 64
"""Of a rounded matrix in memory, and to each byte of its file: fastText makes 8 of each by default."""

Number = TypeVar("Number", bound=np.generic)


def require_label_model(path: Path) -> None:
    """See to it that a file begins as a model does.

    Raises:
        DataError: It is missing, or something else.
    """
    with reading(path, "language model"), open(path, "rb") as file:
        begin = file.read(4)
    if begin != MAGIC.to_bytes(4, "little"):
        raise _no_model(path)


def _no_model(path: Path) -> DataError:
    return DataError(f"{path} is not a fastText model", "name a .bin or .ftz file that fastText has saved")


def read_label_model(path: Path | str) -> LabelModel:
    """Read a model, its rows mapped rather than read where they are not rounded.

    Raises:
        DataError: It is missing, damaged, not a model of this kind, or of one that gives no probabilities by softmax.
    """
    path = Path(path)
    with reading(path, "language model"):
        size = path.stat().st_size
        mapped = np.memmap(path, np.uint8, "r") if path.is_file() and size else np.zeros(0, np.uint8)
    return _File(path, np.asarray(mapped)).model()  # slices of a plain array are quicker


class _File:
    """A file that is read from its beginning to its end."""

    def __init__(self, path: Path, data: npt.NDArray[np.uint8]) -> None:
        self.path, self.data, self.at = path, data, 0

    def model(self) -> LabelModel:
        if len(self.data) < 8 or self.numbers(np.int32, 1)[0] != MAGIC:
            raise _no_model(self.path)
        version = int(self.numbers(np.int32, 1)[0])
        if version not in VERSIONS:
            raise DataError(f"{self.path} is of version {version} of fastText's format", "versions 11 and 12 are known")
        width, _, _, _, _, word_grams, loss, kind, buckets, shortest, longest, _ = self.numbers(np.int32, 12).tolist()
        self.numbers(np.float64, 1)  # the threshold of its training
        if kind != SUPERVISED or loss not in (HIERARCHICAL_SOFTMAX, SOFTMAX):
            what = f"trained with the loss {LOSSES.get(loss, loss)}" if kind == SUPERVISED else "of word vectors"
            raise DataError(f"{self.path} is a model {what}", "name a supervised model with softmax or hs")
        if version == 11:
            longest = 0  # such models had no n-grams of characters, whatever they say
        self.check(0 < width <= WIDEST and shortest >= 0 and 0 <= longest <= LONGEST_GRAM, "its sizes")
        self.check(0 <= word_grams <= MOST_WORD_GRAMS and buckets >= 0, "its n-grams")
        hashes = longest > 0 or word_grams > 1
        self.check(buckets > 0 or not hashes, "its n-grams")

        words, word_count, counts, kept = self.dictionary()
        rounded = self.flag()
        inputs = self.rounded_rows(width) if rounded else self.rows(width)
        outputs = self.rounded_rows(width) if self.flag() and rounded else self.rows(width)
        bucket_rows = int(kept[1].max(initial=-1)) + 1 if kept is not None else buckets * hashes
        self.check(len(inputs) >= word_count + bucket_rows, "the number of its rows")
        labels = len(words) - word_count
        self.check(len(outputs) >= labels - (loss == HIERARCHICAL_SOFTMAX), "the number of its labels")
        return LabelModel(
            words=words,
            word_count=word_count,
            shortest=shortest,
            longest=longest,
            word_grams=word_grams,
            buckets=buckets,
            kept=kept,
            inputs=inputs,
            outputs=np.ascontiguousarray(outputs[:labels]).view(np.float32),
            tree=label_tree(counts) if loss == HIERARCHICAL_SOFTMAX else None,
        )

    def dictionary(
        self,
    ) -> tuple[list[bytes], int, npt.NDArray[np.int64], tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None]:
        """Words and labels, the number of words, how often labels occurred, and the buckets that were kept."""
        total, word_count, label_count = self.numbers(np.int32, 3).tolist()
        _, kept_count = self.numbers(np.int64, 2).tolist()
        self.check(word_count >= 0 and label_count > 0 and word_count + label_count == total, "its number of words")
        self.check(total <= len(self.data) // 10, "its number of words")
        words, counts, kinds = list[bytes](), list[int](), list[int]()
        for _ in range(total):
            end = self.end_of_word()
            words.append(self.data[self.at : end].tobytes())
            self.at = end + 1
            counts.append(int(self.numbers(np.int64, 1)[0]))
            kinds.append(int(self.numbers(np.uint8, 1)[0]))
        self.check(kinds == [0] * word_count + [1] * label_count, "the order of its words")
        self.check(len(set(words)) == total, "its words")
        label_counts = np.array(counts[word_count:], dtype=np.int64)
        self.check(bool((label_counts >= 0).all() and (label_counts < 1 << 31).all()), "the counts of its labels")
        if kept_count < 0:
            return words, word_count, label_counts, None
        self.check(kept_count <= len(self.data) // 8, "the number of its buckets")
        pairs = self.numbers(np.int32, 2 * kept_count).reshape(-1, 2)
        self.check(bool((pairs >= 0).all()) and len(np.unique(pairs[:, 0])) == kept_count, "its buckets")
        return words, word_count, label_counts, (pairs[:, 0].copy(), pairs[:, 1].copy())

    def rows(self, width: int) -> npt.NDArray[np.uint8]:
        """A matrix of float32 as it lies in the file: rows x 4 width bytes."""
        count, found = self.numbers(np.int64, 2).tolist()
        self.check(found == width and 0 <= count <= (len(self.data) - self.at) // (4 * width), "its matrices")
        rows = self.take(4 * width * count).reshape(count, 4 * width)
        step = max(1, (1 << 22) // width)
        for start in range(0, count, step):
            self.check_finite(rows[start : start + step].copy().view(np.float32))
        return rows

    def rounded_rows(self, width: int) -> npt.NDArray[np.uint8]:
        """A matrix of codes for parts of its rows, made floats again: rows x 4 width bytes.

        "FastText.zip: compressing text classification models" (arXiv 1612.03651), section 3.1.
        """
        normalized = self.flag()
        count, found = self.numbers(np.int64, 2).tolist()
        codes = int(self.numbers(np.int32, 1)[0])
        self.check(found == width and count >= 0 and codes >= 0, "its matrices")
        if (size := 4 * width * count) > min(MOST_BYTES, MOST_EXPANSION * len(self.data)):
            raise DataError(
                f"{self.path} has rounded rows that would take {size:,} bytes in memory",
                "name a smaller model, or the .bin file that it was made from, whose rows stay on disk",
            )
        codes_NP = self.take(codes)
        centroids = self.centroids(width)
        self.check(codes == count * len(centroids), "its codes")
        codes_NP = codes_NP.reshape(count, len(centroids))
        rows = np.empty((count, width), dtype=np.float32)
        at = 0
        for number, part in enumerate(centroids):
            rows[:, at : at + part.shape[1]] = part[codes_NP[:, number]]
            at += part.shape[1]
        if normalized:
            norms = self.take(count)
            rows *= self.centroids(1)[0][norms]
        self.check_finite(rows)
        return rows.view(np.uint8).reshape(count, 4 * width)

    def centroids(self, width: int) -> list[npt.NDArray[np.float32]]:
        """What the codes of each part of a row stand for: 256 x width of the part."""
        found, parts, step, last = self.numbers(np.int32, 4).tolist()
        self.check(found == width and step > 0 and 0 < last <= step and 0 < parts <= width, "its codes")
        self.check((parts - 1) * step + last == width, "its codes")
        values = self.numbers(np.float32, CENTROIDS * width)
        whole = values[: CENTROIDS * step * (parts - 1)].reshape(parts - 1, CENTROIDS, step)
        return [*whole, values[CENTROIDS * step * (parts - 1) :].reshape(CENTROIDS, last)]

    def numbers(self, dtype: type[Number], count: int) -> npt.NDArray[Number]:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count).tobytes(), np.dtype(dtype).newbyteorder("<"))

    def flag(self) -> bool:
        return bool(self.numbers(np.uint8, 1)[0])

    def take(self, size: int) -> npt.NDArray[np.uint8]:
        self.check(size <= len(self.data) - self.at, "its length")
        self.at += size
        return self.data[self.at - size : self.at]

    def end_of_word(self) -> int:
        """Where the zero is that ends the word which begins here."""
        found = self.data[self.at : self.at + LONGEST_WORD].tobytes().find(b"\0")
        self.check(found >= 0, "its words")
        return self.at + found

    def check_finite(self, values: npt.NDArray[np.float32]) -> None:
        self.check(bool(np.isfinite(values).all()), "its values")

    def check(self, is_right: bool, what: str) -> None:
        if not is_right:
            raise DataError(f"{self.path} is damaged: {what} cannot be", "restore it from its source")
