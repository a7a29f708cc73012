"""The text of an answer while it grows, cut before stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from tallow.tokenizer.tokenizer import StreamDecoder


class OutputText:
    """Turns tokens into text and watches for stop strings.

    `text` only grows, and is released only as far as no stop string can still begin in it: so whoever shows it
    piece by piece never shows a stop string or a part of one. If several stop strings are found, the one
    that is complete first counts, so that it does not matter how the text falls into tokens.

    Args:
        decoder: Decodes the tokens of this answer.
        stop: Strings that end it, none of them empty.

    Attributes:
        stopped_by: The stop string that has ended it; None if none has.
    """

    def __init__(self, decoder: StreamDecoder, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self.stopped_by: str | None = None
        self._decoder = decoder
        self._stop = tuple(stop)
        self._held = ""

    def push(self, token: int) -> bool:
        """Take one more token; True once a stop string is complete."""
        self._add(self._decoder.push(token))
        return self.stopped_by is not None

    def finish(self) -> None:
        """No more tokens come: release what was held back, unless a stop string has ended the text."""
        self._add(self._decoder.flush())
        self.text += self._held
        self._held = ""

    def _add(self, piece: str) -> None:
        if not self._stop:
            self.text += piece
            return
        if self.stopped_by is not None:
            return
        text = self._held + piece
        # (end, start) of the first occurrence of each stop string
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.stopped_by = min(found)
            self.text += text[:start]
            self._held = ""
        else:
            shown = len(text) - self._possible_start(text)
            self.text += text[:shown]
            self._held = text[shown:]

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of `text` with which some stop string begins."""
        longest = max(map(len, self._stop)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
