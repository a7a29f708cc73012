"""Privacy scrubbing: precision and recall on labelled sentences, and speed, beside what else is installed.

    .venv/bin/python benchmarks/privacy.py [--pii FILE] [--text FILE ...] [--numbers]

--pii is a JSON file (.gz) of presidio-research's form: a list of {"full_text", "spans": [{"entity_type",
"start_position", "end_position"}]}. A labelled place counts as found where a found one of its kind has a character of
it, a found one as right likewise. The labelled numbers are made by chance, so some are no country's: `possible` asks
for their length only, as peers do. Private addresses count here, and all labels with a kind of ours.

Speed is in MB of UTF-8 by seconds of processor time on one core, of 4 MB at most of each file (text, JSON lines; .gz,
.xz). Without --text it is the diary that comes with the package. --numbers adds 1 MB each of made texts that are
nothing but numbers or addresses, in documents of 20 kB. Peers: datafog (its regular expressions) and Presidio
(its recognizers by pattern for these kinds, behind a blank spaCy pipeline: no model); whichever can be imported.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from tallow.data.privacy import PrivacyConfig
from tallow.data.privacy.scrub import locate, scrub
from tallow.data.read import ReadSettings, read_documents
from tallow.data.records import Rejected
from tallow.data.sources import find_sources

MAX_BYTES, PEER_BYTES = 4_000_000, 500_000
NUMBER_BYTES, DOCUMENT_BYTES = 1_000_000, 20_000
KINDS = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card",
    "US_SSN": "national_id",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip",
}


class Place(NamedTuple):
    kind: str
    start: int
    end: int


class Score(NamedTuple):
    """How many of the labelled places were found, and how many of those found were labelled."""

    labelled: int
    found: int
    recalled: int
    right: int

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 1.0

    @property
    def recall(self) -> float:
        return self.recalled / self.labelled if self.labelled else 1.0


Finder = Callable[[Sequence[str]], list[list[Place]]]


def main() -> None:
    parser = argparse.ArgumentParser(description="precision, recall and speed of privacy scrubbing")
    parser.add_argument("--pii", type=Path, help="labelled sentences")
    parser.add_argument("--text", action="append", help="a text to measure speed on (tallow:pepys)")
    parser.add_argument("--numbers", action="store_true", help="measure speed on made texts of numbers, too")
    arguments = parser.parse_args()
    peers = {name: finder for name, make in PEERS.items() if (finder := make()) is not None}
    if arguments.pii is not None:
        sentences, labels = read_labelled(arguments.pii)
        finders = {
            "tallow": ours(PrivacyConfig(private_ips=True)),
            "tallow, possible": ours(PrivacyConfig(private_ips=True, phone_validation="possible")),
        }
        print(table({name: score(finder(sentences), labels) for name, finder in (finders | peers).items()}))
    sources = {Path(source).name: read_texts(source) for source in arguments.text or ["tallow:pepys"]}
    if arguments.numbers:
        from privacy_texts import number_texts  # beside this script

        sources |= {name: in_documents(text) for name, text in number_texts(NUMBER_BYTES).items()}
    for name, texts in sources.items():
        speeds = {"tallow": speed(texts, lambda some: scrub(pa.array(some), PrivacyConfig()), MAX_BYTES)}
        speeds |= {name: speed(texts, finder, PEER_BYTES) for name, finder in peers.items()}
        print(f"{name}: " + ", ".join(f"{finder} {mbs:,.2f} MB/s" for finder, mbs in speeds.items()))


def ours(config: PrivacyConfig) -> Finder:
    def find(texts: Sequence[str]) -> list[list[Place]]:
        return [[Place(span.kind, span.start, span.end) for span in spans] for spans in locate(pa.array(texts), config)]

    return find


def datafog() -> Finder | None:
    try:
        scan = importlib.import_module("datafog").scan
    except ImportError as error:
        print(f"without datafog: {error}")
        return None
    kinds = {
        "EMAIL": "email",
        "PHONE": "phone",
        "CREDIT_CARD": "card",
        "SSN": "national_id",
        "IBAN": "iban",
        "IP_ADDRESS": "ip",
    }

    def find(texts: Sequence[str]) -> list[list[Place]]:
        found = [scan(text, engine="regex").entities for text in texts]
        return [[Place(kinds[e.type], e.start, e.end) for e in entities if e.type in kinds] for entities in found]

    return find


def presidio() -> Finder | None:
    try:
        package = importlib.import_module("presidio_analyzer")
        nlp = importlib.import_module("presidio_analyzer.nlp_engine")
        recognizers = importlib.import_module("presidio_analyzer.predefined_recognizers")
        blank = importlib.import_module("spacy").blank("en")
    except ImportError as error:
        print(f"without Presidio: {error}")
        return None
    logging.getLogger("tldextract").setLevel(logging.CRITICAL)  # asks the network for a list first, and has one
    engine = nlp.SpacyNlpEngine(models=[{"lang_code": "en", "model_name": "blank"}])
    engine.nlp = {"en": blank}
    names = ("CreditCard", "Email", "Iban", "Ip", "Phone", "UsSsn")
    registry = package.RecognizerRegistry([getattr(recognizers, f"{name}Recognizer")() for name in names])
    analyzer = package.AnalyzerEngine(registry=registry, nlp_engine=engine)

    def find(texts: Sequence[str]) -> list[list[Place]]:
        found = [analyzer.analyze(text, language="en") for text in texts]
        return [[Place(KINDS[r.entity_type], r.start, r.end) for r in results] for results in found]

    return find


PEERS: Mapping[str, Callable[[], Finder | None]] = {"datafog": datafog, "Presidio": presidio}


def read_labelled(path: Path) -> tuple[list[str], list[list[Place]]]:
    """Sentences, and what is private in each."""
    data = path.read_bytes()
    records: list[dict[str, Any]] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    labels = [
        [
            Place(KINDS[span["entity_type"]], span["start_position"], span["end_position"])
            for span in record["spans"]
            if span["entity_type"] in KINDS
        ]
        for record in records
    ]
    return [record["full_text"] for record in records], labels


def read_texts(source: str) -> list[str]:
    texts, size = [], 0
    for document in read_documents(find_sources([source]), ReadSettings(), Rejected()):
        texts.append(document.text)
        size += len(document.text.encode())
        if size > MAX_BYTES:
            break
    return texts


def in_documents(text: str) -> list[str]:
    return [text[start : start + DOCUMENT_BYTES] for start in range(0, len(text), DOCUMENT_BYTES)]


def score(found: Sequence[Sequence[Place]], labels: Sequence[Sequence[Place]]) -> dict[str, Score]:
    """Of each kind."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS.values()}
    for places, wanted in zip(found, labels, strict=True):
        for one, others, total, hits in ((wanted, places, "labelled", "recalled"), (places, wanted, "found", "right")):
            for place in one:
                if place.kind in counts:
                    counts[place.kind][total] += 1
                    counts[place.kind][hits] += overlaps(place, others)
    return {kind: Score(c["labelled"], c["found"], c["recalled"], c["right"]) for kind, c in counts.items()}


def overlaps(place: Place, others: Iterable[Place]) -> bool:
    return any(o.kind == place.kind and o.start < place.end and place.start < o.end for o in others)


def speed(texts: Sequence[str], finder: Callable[[Sequence[str]], object], limit: int) -> float:
    """MB a second of processor time, of so many bytes of texts."""
    some, size = [], 0
    for text in texts:
        piece = text[: limit - size]
        some.append(piece)
        size += len(piece.encode())
        if size >= limit:
            break
    finder(["call (212) 736-5000, GB82 WEST 1234 5698 7654 32"])  # what is loaded once
    begin = time.process_time()
    finder(some)
    return size / 1e6 / (time.process_time() - begin)


def table(scores: Mapping[str, Mapping[str, Score]]) -> str:
    """A row a kind: precision and recall of each finder."""
    lines = [
        "| kind | labelled | " + " | ".join(f"{name}: precision | recall" for name in scores) + " |",
        "|---|" + "---|" * (2 * len(scores) + 1),
    ]
    for kind in KINDS.values():
        of_kind = [finder[kind] for finder in scores.values()]
        cells = [f"{s.precision:.3f} | {s.recall:.3f}" if s.found else "– | 0.000" for s in of_kind]
        lines.append(f"| {kind} | {of_kind[0].labelled} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
