"""Documents one after another, laid into rows: all of a split, or those of a domain."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tallow.data.packing import BestFit, Integers, Packing


class Stream:
    """Ranges of a split's tokens, of whole documents each, and the rows that they are laid into.

    Places in a stream count its own tokens alone.

    Args:
        begins, ends: Of the ranges among all tokens, rising.
        sequence_length: Tokens of a row but one.
        packing: How documents come to lie in rows.
        documents: Where each of its documents begins among all tokens, rising; only `best_fit` asks for it.
    """

    def __init__(
        self, begins: Integers, ends: Integers, sequence_length: int, packing: Packing, documents: Integers | None
    ) -> None:
        self.sequence_length = sequence_length
        self._begins = begins
        self._places = np.concatenate([[0], np.cumsum(ends - begins)]).astype(np.int64)
        self.num_tokens = int(self._places[-1])
        self._best_fit: BestFit | None = None
        self.num_rows = max(0, -(-(self.num_tokens - 1) // sequence_length))
        self.num_padding = self.num_rows * sequence_length - max(0, self.num_tokens - 1)
        if packing == "best_fit":
            assert documents is not None
            self._best_fit = BestFit(self.places_of(documents), self.num_tokens, sequence_length + 1)
            self.num_rows, self.num_padding = self._best_fit.num_rows, self._best_fit.padding

    def places_of(self, tokens: Integers) -> Integers:
        """Places in the stream of some of its tokens."""
        number = np.searchsorted(self._begins, tokens, side="right") - 1
        return tokens - self._begins[number] + self._places[number]

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """Where among all tokens the pieces of a row begin and end."""
        return [piece for begin, end in self._ranges(row) for piece in self._among_all(begin, end)]

    def means(self, begins: Integers, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Of each row the mean over its tokens of what documents have: those that begin at these places, rising."""
        sums = np.concatenate([[0.0], np.cumsum(values * np.diff(begins, append=self.num_tokens))])
        rows = np.arange(self.num_rows)
        if self._best_fit is not None:
            rows, first, last = self._best_fit.all_pieces()
        else:
            first = rows * self.sequence_length
            last = np.minimum(first + self.sequence_length + 1, self.num_tokens)

        def before(places: Integers) -> npt.NDArray[np.float64]:
            document = np.searchsorted(begins, places, side="right") - 1
            return sums[document] + values[document] * (places - begins[document])

        total = np.bincount(rows, weights=before(last) - before(first), minlength=self.num_rows)
        return total / np.bincount(rows, weights=last - first, minlength=self.num_rows)

    def _ranges(self, row: int) -> list[tuple[int, int]]:
        if self._best_fit is not None:
            return self._best_fit.pieces(row)
        begin = row * self.sequence_length
        return [(begin, min(begin + self.sequence_length + 1, self.num_tokens))]

    def _among_all(self, begin: int, end: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        number = int(np.searchsorted(self._places, begin, side="right")) - 1
        while begin < end:
            stop = min(end, int(self._places[number + 1]))
            shift = int(self._begins[number]) - int(self._places[number])
            found.append((begin + shift, stop + shift))
            begin, number = stop, number + 1
        return found
