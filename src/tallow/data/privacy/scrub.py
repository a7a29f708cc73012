"""Texts with what is private in them replaced by placeholders, and how much of each kind there was.

A placeholder names the kind and numbers its values by their first appearance in the document: `<EMAIL_1>`. Where a
text has such placeholders already, new numbers are above those. Scrubbed texts are searched again until there is
nothing, so scrubbing twice changes nothing; what was found is never kept.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.data.edits import EDITS, Edit, make_edits
from tallow.data.privacy.config import PrivacyConfig
from tallow.data.privacy.span import KINDS, Kind, Span, choose
from tallow.errors import UsageError
from tallow.kernels.text.candidates import find_candidates
from tallow.kernels.text.number_forms import NumberForms

NameFinder = Callable[[Sequence[str]], Sequence[Sequence[tuple[int, int]]]]
"""From texts to where names are in each: the first character, and that behind the last."""

Counts = Mapping[Kind, npt.NDArray[np.int32]]
PLACEHOLDER = re.compile(rf"<({'|'.join(kind.upper() for kind in KINDS)})_([0-9]{{1,9}})>")


class Scrubbed(NamedTuple):
    """Texts without what was private, and for each kind that was sought how many there were in each text."""

    texts: pa.StringArray
    counts: Counts


class Private(NamedTuple):
    """What would have to be done to each text (as `EDITS`), and for each kind that was sought how many there are."""

    edits: pa.ListArray
    counts: Counts


def scrub(texts: pa.StringArray, config: PrivacyConfig, find_names: NameFinder | None = None) -> Scrubbed:
    """Replace what is private, as `config` says.

    Args:
        texts: Of documents; what is null stays so.
        find_names: Finds names; it is asked once, for all texts, so whether scrubbing twice finds more is up to it.
            None: the model of `config.name` does; without one names are not sought.

    Raises:
        DataError: The model that finds names is missing or broken.
        UsageError: A library that this needs is not installed.
    """
    found = find_private(texts, config, find_names)
    return Scrubbed(make_edits(texts, [found.edits]), found.counts)


def find_private(texts: pa.StringArray, config: PrivacyConfig, find_names: NameFinder | None = None) -> Private:
    """Find what `scrub` replaces or counts, and replace nothing yet.

    Raises:
        DataError: The model that finds names is missing or broken.
        UsageError: A library that this needs is not installed.
    """
    documents = _search(texts, config, find_names)
    edits = [
        [edit._asdict() for edit in documents[number].edits()] if number in documents else None
        for number in range(len(texts))
    ]
    kinds = config.sought if find_names is None else dict.fromkeys((*config.sought, "name"))
    return Private(pa.array(edits, EDITS), _counts(len(texts), documents, kinds))


def locate(texts: pa.StringArray, config: PrivacyConfig, find_names: NameFinder | None = None) -> list[list[Span]]:
    """Where in each text the things are that `scrub` replaces or counts; for measuring it, since values are told here.

    Raises:
        DataError: The model that finds names is missing or broken.
        UsageError: A library that this needs is not installed.
    """
    documents = _search(texts, config, find_names)
    return [documents[number].spans if number in documents else [] for number in range(len(texts))]


def too_many(counts: Counts, config: PrivacyConfig) -> npt.NDArray[np.bool_]:
    """The documents that have more of a kind than they may."""
    beyond = [found > limit for kind, found in counts.items() if (limit := config.of(kind).drop_beyond) is not None]
    length = len(next(iter(counts.values()), ()))
    return np.any(beyond, axis=0) if beyond else np.zeros(length, np.bool_)


def _finders() -> tuple[
    Callable[[str, Sequence[Sequence[int]], PrivacyConfig], list[Span]], Callable[[PrivacyConfig], NumberForms]
]:
    try:
        # python-stdnum and phonenumbers, which come with an extra
        from tallow.data.privacy.finders import find, number_forms
    except ImportError as error:
        raise UsageError(f"privacy needs a library that is not there: {error}", "pip install 'tallow[data]'") from error
    return find, number_forms


def _name_tagger(config: PrivacyConfig) -> NameFinder:
    from tallow.data.privacy.names import name_tagger  # PyTorch, which takes seconds: nothing else here needs it

    assert config.name is not None
    return name_tagger(config.name)


def _plain(name: str) -> str:
    """A name, however it is broken into lines and whatever its cases."""
    return " ".join(name.casefold().split())


def _search(texts: pa.StringArray, config: PrivacyConfig, find_names: NameFinder | None) -> dict[int, _Document]:
    """The documents in which something was found, scrubbed."""
    find, number_forms = _finders()
    forms = number_forms(config)
    documents: dict[int, _Document] = {}
    rows = _by_text(find_candidates(texts, forms))
    if find_names is None and "name" in config.sought:
        find_names = _name_tagger(config)
    names = find_names([text or "" for text in texts.to_pylist()]) if find_names else None
    pending = sorted(rows.keys() | {number for number, places in enumerate(names or ()) if places})
    for number in pending:
        text = texts[number].as_py()
        spans = find(text, rows.get(number, ()), config)
        spans += [Span(*place, "name", _plain(text[slice(*place)])) for place in (names[number] if names else ())]
        if spans:
            documents[number] = _Document(text, config)
            documents[number].add(spans)
    pending = list(documents)
    while pending:
        scrubbed = pa.array([documents[number].scrubbed for number in pending], pa.string())
        again = _by_text(find_candidates(scrubbed, forms))
        pending = [
            pending[place]
            for place, candidates in again.items()
            if documents[pending[place]].add(find(documents[pending[place]].scrubbed, candidates, config))
        ]
    return documents


class _Document:
    """A text, and what was found in it so far."""

    def __init__(self, text: str, config: PrivacyConfig) -> None:
        self.original = self.scrubbed = text
        self._config = config
        self._starts = [(0, 0)]  # of what is left of the original: in the scrubbed text, in the original
        self._last: dict[str, int] = defaultdict(int)  # numbers that the text has already
        for kind, number in PLACEHOLDER.findall(text):
            self._last[kind] = max(self._last[kind], int(number))
        self.spans: list[Span] = []

    def add(self, spans: Sequence[Span]) -> bool:
        """Take up what was found in the scrubbed text; whether it has changed."""
        places = [(match.start(), match.end()) for match in PLACEHOLDER.finditer(self.scrubbed)]
        free = [span for span in choose(spans) if not _overlaps(span.start, span.end, places)]
        known = [(span.start, span.end) for span in self.spans]
        new = [span for span in map(self._moved, free) if not _overlaps(span.start, span.end, known)]
        self.spans = sorted([*self.spans, *new])
        if any(self._config.of(span.kind).action == "replace" for span in new):
            self._render()
            return True
        return False

    def edits(self) -> Iterator[Edit]:
        """What turns the original into the scrubbed text."""
        if self.original.isascii():  # as many bytes as characters
            yield from (Edit(span.start, span.end, placeholder) for span, placeholder in self._placeholders())
            return
        length = end = 0
        for span, placeholder in self._placeholders():
            start = length + len(self.original[end : span.start].encode())
            length, end = start + len(self.original[span.start : span.end].encode()), span.end
            yield Edit(start, length, placeholder)

    def _moved(self, span: Span) -> Span:
        """From its place in the scrubbed text to that in the original."""
        scrubbed, original = self._starts[bisect_right(self._starts, (span.start, len(self.original))) - 1]
        shift = original - scrubbed
        return Span(span.start + shift, span.end + shift, span.kind, span.value) if shift else span

    def _placeholders(self) -> Iterator[tuple[Span, str]]:
        numbers: dict[tuple[Kind, str], int] = {}
        last = self._last.copy()
        for span in self.spans:
            if self._config.of(span.kind).action != "replace":
                continue
            name = span.kind.upper()
            if (span.kind, span.value) not in numbers:
                last[name] += 1
                numbers[span.kind, span.value] = last[name]
            yield span, f"<{name}_{numbers[span.kind, span.value]}>"

    def _render(self) -> None:
        parts: list[str] = []
        self._starts = [(0, 0)]
        length = end = 0
        for span, placeholder in self._placeholders():
            parts += [self.original[end : span.start], placeholder]
            length += span.start - end + len(placeholder)
            end = span.end
            self._starts.append((length, end))
        self.scrubbed = "".join([*parts, self.original[end:]])


def _overlaps(start: int, end: int, places: Sequence[tuple[int, int]]) -> bool:
    """Whether one of some places, which are in their order and do not overlap, has characters of another."""
    before = bisect_right(places, (end - 1, end)) - 1 if places else -1
    return before >= 0 and places[before][1] > start


def _by_text(rows: npt.NDArray[np.int32]) -> dict[int, list[list[int]]]:
    """Candidates of each text that has some."""
    numbers, firsts = np.unique(rows[:, 0], return_index=True)
    places, ends = rows[:, 1:].tolist(), np.append(firsts, len(rows))[1:]
    return {number: places[first:end] for number, first, end in zip(numbers.tolist(), firsts, ends, strict=True)}


def _counts(length: int, documents: Mapping[int, _Document], kinds: Iterable[Kind]) -> Counts:
    counts = dict[Kind, npt.NDArray[np.int32]]((kind, np.zeros(length, np.int32)) for kind in kinds)
    for number, document in documents.items():
        for span in document.spans:
            counts[span.kind][number] += 1
    return counts
