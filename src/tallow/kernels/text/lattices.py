"""All ways to put counted words together from pieces, each of which has a probability."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native

LONGEST_PIECE = 16
"""Symbols."""
LEAST_PROBABILITY = 2.0**-50
"""Smaller ones are as large as that."""

Floats = npt.NDArray[np.float64]


class Lattices:
    """Words, and the pieces that they are put together from: single symbols, all that there are, and longer ones.

    Args:
        symbols: Of all words, one after another.
        ends: Where each word ends.
        counts: How often each occurs.
        places: Where the symbols of each piece are.
        lengths: How many these are, at most `LONGEST_PIECE`.
    """

    def __init__(
        self,
        symbols: npt.NDArray[np.int32],
        ends: npt.NDArray[np.int64],
        counts: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
        lengths: npt.NDArray[np.int64],
    ) -> None:
        assert lengths.max(initial=1) <= LONGEST_PIECE
        extension = native() if prefers_fast() else None
        self._memory = ends, counts  # which the extension reads from
        self._pieces = len(places)
        if extension is None:
            self._words = _Reference(
                symbols.tolist(), ends.tolist(), counts.tolist(), places.tolist(), lengths.tolist()
            )
        else:
            words = symbols.ctypes.data, ends.ctypes.data, counts.ctypes.data, len(ends)
            self._words = extension.Lattices(*words, places.ctypes.data, lengths.ctypes.data, len(places))

    def expect(self, probabilities: Floats) -> tuple[Floats, float]:
        """How often each piece is expected in the words, and the natural logarithm of the probability of all words.

        That is the sum over all ways to put a word together, by the forward-backward algorithm (Kudo, arXiv
        1804.10959, section 3.2).

        Args:
            probabilities: Of the pieces.
        """
        probabilities = np.maximum(probabilities, LEAST_PROBABILITY)
        expected = np.empty(self._pieces)
        if isinstance(self._words, _Reference):
            expected[:], sum = self._words.expect(probabilities.tolist())
            return expected, sum
        return expected, self._words.expect(probabilities.ctypes.data, expected.ctypes.data)

    def losses(self, probabilities: Floats, expected: Floats) -> Floats:
        """What the logarithm of the words' probability loses without each piece; single symbols' is infinite.

        The most probable other way to put a piece together then takes its place wherever it is expected, so that its
        parts are there more often.

        Args:
            probabilities: Of the pieces.
            expected: How often each is there.
        """
        probabilities = np.maximum(probabilities, LEAST_PROBABILITY)
        losses = np.empty(self._pieces)
        if isinstance(self._words, _Reference):
            losses[:] = self._words.losses(probabilities.tolist(), expected.tolist())
        else:
            self._words.losses(probabilities.ctypes.data, expected.ctypes.data, losses.ctypes.data)
        return losses

    def keep(self, kept: npt.NDArray[np.bool_]) -> None:
        """Drop the other pieces; these, which all single symbols are among, are numbered anew in their order."""
        self._pieces = int(kept.sum())
        if isinstance(self._words, _Reference):
            self._words.keep(kept.tolist())
        else:
            self._words.keep(np.ascontiguousarray(kept).ctypes.data)


class _Reference:
    """By logarithms."""

    def __init__(
        self, symbols: list[int], ends: list[int], counts: list[int], places: list[int], lengths: list[int]
    ) -> None:
        begins = [0, *ends[:-1]][: len(ends)]
        self._words = [(symbols[begin:end], count) for begin, end, count in zip(begins, ends, counts, strict=True)]
        self._pieces = [tuple(symbols[at : at + length]) for at, length in zip(places, lengths, strict=True)]

    def expect(self, probabilities: list[float]) -> tuple[list[float], float]:
        numbers = {piece: number for number, piece in enumerate(self._pieces)}
        expected, sum = [0.0] * len(self._pieces), 0.0
        for word, count in self._words:
            before, behind = [0.0] + [-math.inf] * len(word), [-math.inf] * len(word) + [0.0]
            edges = list(_edges(word, numbers))
            for begin, end, piece in edges:
                before[end] = _log_add(before[end], before[begin] + math.log(probabilities[piece]))
            for begin, end, piece in reversed(edges):
                behind[begin] = _log_add(behind[begin], behind[end] + math.log(probabilities[piece]))
            for begin, end, piece in edges:
                through = before[begin] + math.log(probabilities[piece]) + behind[end]
                expected[piece] += count * math.exp(through - before[-1])
            sum += count * before[-1]
        return expected, sum

    def losses(self, probabilities: list[float], expected: list[float]) -> list[float]:
        numbers = {piece: number for number, piece in enumerate(self._pieces)}
        total, losses = sum(expected), list[float]()
        for number, symbols in enumerate(self._pieces):
            if len(symbols) == 1 or expected[number] <= 0:
                losses.append(math.inf if len(symbols) == 1 else 0.0)
                continue
            best: list[tuple[float, list[int]]] = [(1.0, [])] + [(0.0, [])] * len(symbols)
            for begin, end, piece in _edges(symbols, numbers):
                if piece != number and best[begin][0] * probabilities[piece] > best[end][0]:
                    best[end] = best[begin][0] * probabilities[piece], [*best[begin][1], piece]
            parts, often = best[-1][1], expected[number]
            instead = sum(math.log(expected[part] + often) for part in reversed(parts))
            instead -= len(parts) * math.log(total + often * (len(parts) - 1))
            losses.append(often * (math.log(often) - math.log(total) - instead))
        return losses

    def keep(self, kept: list[bool]) -> None:
        self._pieces = [piece for piece, is_kept in zip(self._pieces, kept, strict=True) if is_kept]


def _edges(word: list[int] | tuple[int, ...], numbers: dict[tuple[int, ...], int]) -> Iterator[tuple[int, int, int]]:
    """Begin, end and number of each piece that is in a word, by begins."""
    for begin in range(len(word)):
        for end in range(begin + 1, min(len(word), begin + LONGEST_PIECE) + 1):
            piece = numbers.get(tuple(word[begin:end]))
            if piece is not None:
                yield begin, end, piece


def _log_add(a: float, b: float) -> float:
    most = max(a, b)
    return most if most == -math.inf else most + math.log(math.exp(a - most) + math.exp(b - most))
