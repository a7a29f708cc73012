"""The two most probable labels of texts by a linear model of words and their n-grams.

"Bag of tricks for efficient text classification" (arXiv 1607.01759), sections 2.1 and 2.2, and for n-grams of
characters "Enriching word vectors with subword information" (arXiv 1607.04606): a text is the mean of the rows of its
words and n-grams; a softmax over the labels, or a tree of binary decisions (hierarchical softmax), makes it
probabilities.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.errors import DataError
from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native, places
from tallow.kernels.text.letters import letter_bits

END_OF_LINE, LABEL_PREFIX = b"</s>", b"__label__"
SEPARATORS = b" \t\n\v\f\r\0"
SHORTEST_PIECE, WIDEST_CUT = 300, 32
SMALLEST_PROBABILITY = 1e-4
"""What is less probable counts as impossible, so that most of the tree need not be walked."""

_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1


@dataclass(frozen=True, eq=False)
class LabelModel:
    """A linear model of words and n-grams.

    Args:
        words: Those that it knows, and behind them the labels, as UTF-8.
        word_count: How many of them are words.
        shortest, longest: Characters of n-grams of characters; a word is taken between `<` and `>`.
        word_grams: Words of the longest n-gram of words.
        buckets: Of hashes of n-grams.
        kept: Buckets that have rows, each once, and their rows counted from the end of the words' (int32); None where
            all have.
        inputs: Rows of words, then of buckets: bytes of float32, rows x 4 width, which need not be aligned.
        outputs: A row for each label, or for each inner node of the tree, float32, labels x width.
        tree: Left and right child of each inner node, int32, labels - 1 x 2: a label, or the number of labels plus an
            inner node before this one. None for a softmax over all labels.
    """

    words: list[bytes]
    word_count: int
    shortest: int
    longest: int
    word_grams: int
    buckets: int
    kept: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] | None
    inputs: npt.NDArray[np.uint8]
    outputs: npt.NDArray[np.float32]
    tree: npt.NDArray[np.int32] | None

    @property
    def labels(self) -> list[bytes]:
        return self.words[self.word_count :]

    @functools.cached_property
    def ids(self) -> dict[bytes, int]:
        return {word: number for number, word in enumerate(self.words)}

    @functools.cached_property
    def rows_of_buckets(self) -> dict[int, int]:
        assert self.kept is not None
        return dict(zip(self.kept[0].tolist(), self.kept[1].tolist(), strict=True))

    @functools.cached_property
    def native(self) -> NativeLabelModel:
        return NativeLabelModel(self)


@dataclass(frozen=True)
class Looks:
    """What is looked at of a text.

    Args:
        bytes: Of UTF-8, at most.
        pieces: That these are taken from, evenly spread; each is given probabilities by itself, and their mean counts.
            There are fewer where each would be shorter than 300 bytes.
        letters: A text with fewer in the pieces is given no label.
    """

    bytes: int
    pieces: int
    letters: int


def most_probable_labels(
    texts: pa.StringArray, model: LabelModel, looks: Looks
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """The two most probable labels of each text, and their probabilities; -1 and 0 where there is none.

    Args:
        texts: N texts. White space of any kind parts words (fastText reads one line), also at `</s>`.
        model: That knows the labels.
        looks: What it is shown.

    Returns:
        Numbers of labels and probabilities, N x 2.
    """
    if prefers_fast() and native() is not None:
        return model.native.predict(texts, looks)
    labels = np.full((len(texts), 2), -1, dtype=np.int32)
    probabilities = np.zeros((len(texts), 2), dtype=np.float32)
    for number, text in enumerate(texts.to_pylist()):
        pieces = look_at((text or "").encode(), looks)
        if sum(character.isalpha() for piece in pieces for character in piece.decode()) < looks.letters:
            continue
        mean = np.mean([_probabilities(piece, model) for piece in pieces], axis=0).astype(np.float32)
        best = np.argsort(-mean, kind="stable")[:2]
        best = best[mean[best] > 0]
        labels[number, : len(best)], probabilities[number, : len(best)] = best, mean[best]
    return labels, probabilities


class NativeLabelModel:
    """The model as the C++ extension holds it, with the arrays that it points to.

    Raises:
        DataError: Its words or buckets were chosen so that searching among them would take too long.
    """

    def __init__(self, model: LabelModel) -> None:
        extension = native()
        assert extension is not None
        self._words = np.frombuffer(b"".join(model.words) + b"\0", dtype=np.uint8)
        self._offsets = np.cumsum([0, *map(len, model.words)], dtype=np.int64)
        self._letters = letter_bits()
        self._arrays = (model.kept, model.inputs, model.outputs, model.tree)
        kept = (0, 0, -1)
        if model.kept is not None:
            kept = (model.kept[0].ctypes.data, model.kept[1].ctypes.data, len(model.kept[0]))
        labels, width = len(model.labels), model.outputs.shape[1]
        try:
            self._native = extension.LabelModel(
                (self._words.ctypes.data, self._offsets.ctypes.data, model.word_count, labels),
                kept,
                model.inputs.ctypes.data,
                (model.outputs.ctypes.data, labels, width),
                model.tree.ctypes.data if model.tree is not None else 0,
                (model.shortest, model.longest, model.word_grams, model.buckets),
                self._letters.ctypes.data,
            )
        except RuntimeError as error:
            raise DataError(f"the model is damaged: {error}", "restore it from its source") from error

    def predict(self, texts: pa.StringArray, looks: Looks) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        labels = np.empty((len(texts), 2), dtype=np.int32)
        probabilities = np.empty((len(texts), 2), dtype=np.float32)
        limits = (looks.bytes, looks.pieces, looks.letters, SMALLEST_PROBABILITY)
        self._native.predict(places(texts), limits, labels.ctypes.data, probabilities.ctypes.data)
        return labels, probabilities


def look_at(text: bytes, looks: Looks) -> list[bytes]:
    """The pieces of a text that are looked at: the whole, or its beginning, its end, and evenly between them."""
    looked_at = min(len(text), looks.bytes)
    count = max(1, min(looks.pieces, looked_at // SHORTEST_PIECE))
    length = looked_at // count
    starts = [number * (len(text) - length) // (count - 1) if count > 1 else 0 for number in range(count)]
    return [text[_cut(text, start) : _cut(text, start + length)] for start in starts]


def _cut(text: bytes, at: int) -> int:
    """The first place from `at` on, and not far from it, where a word begins or ends, or else a character."""
    if at <= 0 or at >= len(text):
        return min(max(at, 0), len(text))
    while at < len(text) and _continues(text[at]):
        at += 1
    near = range(at, min(at + WIDEST_CUT, len(text)))
    return next((place for place in near if text[place] in SEPARATORS), at)


def _continues(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def _hash(word: bytes) -> int:
    """FNV-1a of 32 bits, of bytes that are signed, as fastText hashes."""
    value = 2166136261
    for byte in word:
        value = ((value ^ ((byte - 256) & _MASK32 if byte > 127 else byte)) * 16777619) & _MASK32
    return value


def _words(text: bytes) -> Iterator[bytes]:
    yield from filter(None, text.translate(bytes.maketrans(SEPARATORS, b" " * len(SEPARATORS))).split(b" "))
    yield END_OF_LINE


def _grams(word: bytes, model: LabelModel) -> Iterator[int]:
    """Buckets of the n-grams of characters of a word."""
    word = b"<" + word + b">"
    starts = [place for place, byte in enumerate(word) if not _continues(byte)]
    ends = [*starts[1:], len(word)]
    for number, begin in enumerate(starts):
        for size in range(1, model.longest + 1):
            if number + size > len(starts):
                break
            end = ends[number + size - 1]
            if size >= model.shortest and not (size == 1 and (begin == 0 or end == len(word))):
                yield _hash(word[begin:end]) % model.buckets


def _features(text: bytes, model: LabelModel) -> Iterator[int]:
    """Rows of a text, once for each time that they occur."""

    def rows(bucket: int) -> list[int]:
        if model.kept is None:
            return [model.word_count + bucket]
        row = model.rows_of_buckets.get(bucket)
        return [] if row is None else [model.word_count + row]

    hashes = []
    for word in _words(text):
        number = model.ids.get(word)
        if (number is None and word.startswith(LABEL_PREFIX)) or (number is not None and number >= model.word_count):
            continue
        if number is not None:
            yield number
        if word != END_OF_LINE:
            for bucket in _grams(word, model):
                yield from rows(bucket)
        value = _hash(word)
        hashes.append(value - (1 << 32) if value >> 31 else value)
    for number, first in enumerate(hashes):
        value = first & _MASK64
        for other in hashes[number + 1 : number + model.word_grams]:
            value = (value * 116049371 + other) & _MASK64
            yield from rows(value % model.buckets)


def _log(x: np.float32 | float) -> float:
    return math.log(float(np.float32(x)) + 1e-5)


def _probabilities(text: bytes, model: LabelModel) -> npt.NDArray[np.float64]:
    probabilities = np.zeros(len(model.labels))
    rows = list(_features(text, model))
    if not rows:
        return probabilities
    hidden = model.inputs[rows].copy().view(np.float32).mean(axis=0, dtype=np.float64).astype(np.float32)
    products = model.outputs @ hidden
    if model.tree is None:
        weights = np.exp(products - products.max())
        scores = np.array([_log(weight) for weight in weights / weights.sum()])
    else:
        labels = len(model.labels)
        scores = np.full(2 * labels - 1, -np.inf)
        scores[-1] = 0
        for inner in range(labels - 2, -1, -1):
            if scores[labels + inner] < math.log(SMALLEST_PROBABILITY):
                continue
            right = 1 / (1 + np.exp(-np.float64(products[inner])))
            for child, share in zip(model.tree[inner], (1 - right, right), strict=True):
                scores[child] = scores[labels + inner] + _log(share)
        scores = scores[:labels]
    return np.where(scores >= math.log(SMALLEST_PROBABILITY), np.minimum(1, np.exp(scores)), 0)
