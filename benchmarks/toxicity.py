"""A toxicity classifier that is trained on one source of labelled texts and measured on others.

    .venv/bin/python benchmarks/toxicity.py DIRECTORY

DIRECTORY holds clones of public sets of labelled English texts, as many of these as there are:

- `toxicity` (github.com/surge-ai/toxicity, MIT): comments of social media, half of them toxic;
- `hate-speech-and-offensive-language` (github.com/t-davidson, MIT): tweets found by words of a lexicon, hateful or
  offensive ones counted as toxic, which most are;
- `hate-speech-dataset` (github.com/Vicomtech, CC BY-SA 3.0): sentences of a white supremacist forum, hateful or not;
- `hatecheck-data` (github.com/paul-rottger, CC BY 4.0): cases written to be hard: the same words in hateful and in
  harmless texts. It is only tested on.

Texts that share half of their runs of three words are in one group; a fifth of the groups is tested on, and of a test
on another source what is in a group with a text of the training is left out. The strength of the penalty is chosen by
the area under the curve on the training's own held-out texts, never by a test. What ordinary text would be taken for
toxic is measured on sentences of Wikipedia and C4 and on answers of Dolly, of which at most a few are.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.data.quality.classifier import Classifier, ClassifierConfig, train_classifier
from tallow.data.quality.precision import measure

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PENALTIES = (1e-5, 1e-4, 1e-3)
THRESHOLDS = (0.5, 0.9)
TEST_ONLY = ("hatecheck",)
GRAM, COMMON = 3, 50
"""Words of a run, and in how many texts one is too common to say that they are alike."""


class Labelled(NamedTuple):
    """A text, and whether it is toxic."""

    text: str
    toxic: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    sources = {name: list(read(directory)) for name, read in READERS.items() if (directory / FOLDERS[name]).exists()}
    groups = group(sources)
    plain = ordinary()
    taught = {name: split(groups[name]) for name in sources if name not in TEST_ONLY}
    lines = ["| trained on | tested on | texts | toxic | AUC | " + " | ".join(columns()) + " |"]
    lines.append("|" + "---|" * (5 + len(columns())))
    rates = list[str]()
    for name in [*taught, "all three"]:
        learned = [name] if name in taught else list(taught)
        classifier = train([sources[each][row] for each in learned for row in np.flatnonzero(taught[each])])
        known = {int(groups[each][row]) for each in learned for row in np.flatnonzero(taught[each])}
        for test, examples in sources.items():
            asked = ~taught[test] if test in learned else np.ones(len(examples), dtype=bool)
            asked &= ~np.isin(groups[test], list(known))
            lines.append(f"| {name} | {test} | {row(classifier, [examples[i] for i in np.flatnonzero(asked)])} |")
        shares = [
            " / ".join(f"{(classifier.probabilities(texts) >= threshold).mean():.3f}" for threshold in THRESHOLDS)
            for texts in plain.values()
        ]
        rates.append(f"| {name} | {' | '.join(shares)} |")
    print("\n".join(lines))
    print(f"\nOrdinary text at or above {' / '.join(map(str, THRESHOLDS))}:\n")
    print("| trained on | " + " | ".join(f"{name} ({len(texts)})" for name, texts in plain.items()) + " |")
    print("|" + "---|" * (1 + len(plain)))
    print("\n".join(rates))


def columns() -> list[str]:
    return [f"{what} at {threshold}" for threshold in THRESHOLDS for what in ("precision", "recall", "if 1 % are")]


def row(classifier: Classifier, examples: Sequence[Labelled]) -> str:
    """Of a test: its size, the area under the curve, and for each threshold precision, recall, and what the precision
    would be in a corpus of which one text in a hundred is toxic."""
    toxic = np.array([example.toxic for example in examples])
    probabilities = classifier.probabilities(pa.array([example.text for example in examples]))
    report = measure(probabilities, toxic)
    cells = [f"{len(examples):,}", f"{toxic.mean():.2f}", f"{report.auc:.3f}"]
    for threshold in THRESHOLDS:
        point = next(point for point in report.points if point.threshold == threshold)
        false = float((probabilities[~toxic] >= threshold).mean())
        found = 0.01 * point.recall
        rare = found / (found + 0.99 * false) if found + false else None
        cells += ["–" if value is None else f"{value:.2f}" for value in (point.precision, point.recall, rare)]
    return " | ".join(cells)


def train(examples: Sequence[Labelled]) -> Classifier:
    """With the penalty that is best on what is held out of these."""
    toxic, other = (pa.array([example.text for example in examples if example.toxic == kind]) for kind in (True, False))
    tried = [train_classifier(toxic, other, ClassifierConfig(l2=penalty, held_out=0.1)) for penalty in PENALTIES]
    return max(tried, key=lambda classifier: classifier.report.auc)


def split(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which texts are learned from: four groups in five, by the hash of their number."""
    return np.array([hashlib.sha256(str(each).encode()).digest()[0] % 5 > 0 for each in groups.tolist()])


def group(sources: Mapping[str, Sequence[Labelled]]) -> dict[str, npt.NDArray[np.int64]]:
    """The number of each text's group, over all sources."""
    texts = [re.findall(r"\w+", example.text.lower()) for examples in sources.values() for example in examples]
    grams = [{tuple(words[at : at + GRAM]) for at in range(max(1, len(words) - GRAM + 1))} for words in texts]
    places: dict[tuple[str, ...], list[int]] = {}
    roots = np.arange(len(texts))

    def root(number: int) -> int:
        while roots[number] != number:
            roots[number] = roots[roots[number]]
            number = int(roots[number])
        return number

    for number, own in enumerate(grams):
        shared = Counter(other for gram in own for other in places.get(gram, ()))
        for other, count in shared.items():
            if 2 * count >= min(len(own), len(grams[other])):
                roots[root(number)] = root(other)
        for gram in own:
            if len(seen := places.setdefault(gram, [])) < COMMON:
                seen.append(number)
    numbers = np.array([root(number) for number in range(len(texts))])
    ends = np.cumsum([len(examples) for examples in sources.values()])
    return dict(zip(sources, np.split(numbers, ends[:-1]), strict=True))


def ordinary() -> dict[str, pa.StringArray]:
    """Sentences of 40 to 300 characters of texts in which hardly any is toxic."""
    with gzip.open(DATA / "c4_wiki_demo" / "wiki_demo.txt.gz", "rt") as file:
        wikipedia = list(sentences(file))
    c4 = list(sentences(line["text"] for line in read_lines(DATA / "c4_wiki_demo" / "c4_demo.jsonl.gz")))
    dolly = sentences(line["response"] for line in read_lines(DATA / "sft" / "dolly_hhrlhf_train_small.jsonl.gz"))
    found = {"Wikipedia": wikipedia, "C4": c4, "answers of Dolly and HH-RLHF": list(dolly)}
    return {name: pa.array(some[:5000]) for name, some in found.items()}


def sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (each for each in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if 40 <= len(each) <= 300)


def read_lines(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") as file:
        yield from map(json.loads, file)


def surge(directory: Path) -> Iterator[Labelled]:
    for line in table(directory / FOLDERS["comments"] / "toxicity_en.csv"):
        yield Labelled(plain_text(line["text"]), line["is_toxic"] == "Toxic")


def davidson(directory: Path) -> Iterator[Labelled]:
    for line in table(directory / FOLDERS["tweets"] / "data" / "labeled_data.csv"):
        yield Labelled(plain_text(line["tweet"]), line["class"] != "2")


def stormfront(directory: Path) -> Iterator[Labelled]:
    for line in table(directory / FOLDERS["forum"] / "annotations_metadata.csv"):
        if line["label"] in ("hate", "noHate"):
            path = directory / FOLDERS["forum"] / "all_files" / f"{line['file_id']}.txt"
            yield Labelled(plain_text(path.read_text(encoding="utf-8")), line["label"] == "hate")


def hatecheck(directory: Path) -> Iterator[Labelled]:
    for line in table(directory / FOLDERS["hatecheck"] / "test_suite_cases.csv"):
        yield Labelled(plain_text(line["test_case"]), line["label_gold"] == "hateful")


def table(path: Path) -> Iterator[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)


def plain_text(text: str) -> str:
    """Without what tells a tweet from other texts: names, addresses, marks of repetition."""
    text = re.sub(r"https?://\S+|@\w+|\bRT\b|&#\d+;", " ", text)
    return " ".join(html.unescape(text).strip('"! ').split())


READERS = {"comments": surge, "tweets": davidson, "forum": stormfront, "hatecheck": hatecheck}
FOLDERS = {
    "comments": "toxicity",
    "tweets": "hate-speech-and-offensive-language",
    "forum": "hate-speech-dataset",
    "hatecheck": "hatecheck-data",
}

if __name__ == "__main__":
    main()
