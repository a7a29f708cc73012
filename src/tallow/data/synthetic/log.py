"""What a model was asked and has answered: appended line by line, and read again to go on.

All else follows from it, so a kill loses what was under way and nothing more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tallow.data.synthetic.writers import Answer, Ask, Writer
from tallow.errors import DataError, UsageError, writing


class AskLog:
    """A JSONL file: first the settings, then an ask and its answer on each line.

    Args:
        path: Of the file; what a kill has left of a last line is cut off.
        settings: Those that answers depend on.

    Raises:
        UsageError: The file was begun with other settings.
        DataError: It is broken.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._known: list[tuple[str, Answer]] = []
        self._next = 0
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = path.read_bytes() if path.exists() else b""
            whole = raw[: raw.rfind(b"\n") + 1]
            if len(whole) < len(raw):
                os.truncate(path, len(whole))
        lines = whole.splitlines()
        if not lines:
            self._append({"settings": settings})
            return
        try:
            first, *rest = map(json.loads, lines)
            before = first["settings"]
            self._known = [(line["key"], Answer(line["answer"], line["ended"])) for line in rest]
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(f"{path} is broken ({error})", "remove it to begin anew") from error
        if before != settings:
            names = [name for name in settings if before.get(name) != settings[name]]
            raise UsageError(
                f"{path} was begun with other settings ({', '.join(names) or 'of another version'})",
                "give the old ones, or another directory",
            )

    def __len__(self) -> int:
        """Answers that there are."""
        return len(self._known)

    def answers(self, asks: Sequence[Ask], writer: Writer) -> Iterator[Answer]:
        """The answers to asks, in order: from the file as far as it goes, then from the writer.

        Raises:
            UsageError: The file has answers to something else.
            TallowError: As the writer.
        """
        for place, ask in enumerate(asks):
            if self._next == len(self._known):
                yield from self._written(asks[place:], writer)
                return
            key, answer = self._known[self._next]
            if key != ask.key:
                raise UsageError(
                    f"{self._path}, line {self._next + 2} answers something else than is asked now",
                    "take the version of tallow that has begun it, or another directory",
                )
            self._next += 1
            yield answer

    def _written(self, asks: Sequence[Ask], writer: Writer) -> Iterator[Answer]:
        for ask, answer in zip(asks, writer.write(asks), strict=True):
            self._append(
                {
                    "key": ask.key,
                    "seed": ask.seed,
                    "prompt": ask.prompt,
                    "answer": answer.text,
                    "ended": answer.ended,
                }
            )
            self._known.append((ask.key, answer))
            self._next += 1
            yield answer

    def _append(self, line: dict[str, Any]) -> None:
        with writing(self._path), open(self._path, "ab") as file:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
