"""The classifier of texts on three tasks: precision and recall on what was held out, and speed of one core.

    .venv/bin/python benchmarks/classifier.py [--set l2=1e-5 …]

- harmful requests: AdvBench's 520, beside as many of people's everyday instructions (Dolly and HH-RLHF's prompts).
- rejected answers: HH-RLHF's harmless-base, the last answer that people rejected beside the one that they chose. Both
  answer the same provocation, so there is little to learn from words.
- encyclopedia: pieces of Wikipedia of 500 characters beside such of web pages (C4); pieces of an article are on both
  sides of the split.

The positive kind is the first named. Speed: megabytes of UTF-8 a CPU second, of training (all steps) and of scoring.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tallow.data.quality.classifier import ClassifierConfig, train_classifier
from tallow.recipe import apply_overrides

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MOST = 2500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    overrides = [f"classifier.{override}" for override in parser.parse_args().set]
    config = ClassifierConfig(**apply_overrides({}, overrides).get("classifier", {}))
    tasks = {"harmful requests": harmful_requests, "rejected answers": rejected_answers, "encyclopedia": encyclopedia}
    for name, examples in tasks.items():
        positive, negative = (pa.array(list(dict.fromkeys(texts))[:MOST]) for texts in examples())
        start = time.process_time()
        classifier = train_classifier(positive, negative, config)
        middle = time.process_time()
        classifier.probabilities(negative)
        taught = (positive.nbytes + negative.nbytes) / 1e6 / (middle - start)
        scored = negative.nbytes / 1e6 / (time.process_time() - middle)
        report = classifier.report
        print(f"\n## {name}: {len(positive)} and {len(negative)}")
        print(f"held out: {report.positives} and {report.negatives}; area under the curve {report.auc:.3f}; ", end="")
        print(f"training {taught:.1f} MB/s, scoring {scored:.1f} MB/s\n")
        print(classifier.report.markdown())


def harmful_requests() -> tuple[list[str], list[str]]:
    with open(DATA / "safety" / "advbench_harmful_behaviors.csv", newline="") as file:
        harmful = [row["goal"] for row in csv.DictReader(file)]
    prompts = [row["prompt"] for row in read_lines(DATA / "sft" / "dolly_hhrlhf_train_small.jsonl.gz")]
    plain = [prompt.partition("### Instruction:\n")[2].partition("\n\n### ")[0] for prompt in prompts]
    return harmful, [prompt for prompt in plain if 0 < len(prompt) < 300][: len(harmful)]


def rejected_answers() -> tuple[list[str], list[str]]:
    rows = list(read_lines(DATA / "hh_rlhf" / "harmless-base.test.jsonl.gz"))
    rejected, chosen = ([row[kind].rpartition("Assistant: ")[2] for row in rows] for kind in ("rejected", "chosen"))
    return rejected, chosen


def encyclopedia() -> tuple[list[str], list[str]]:
    with gzip.open(DATA / "c4_wiki_demo" / "wiki_demo.txt.gz", "rt") as file:
        wiki = cut(file)
    return wiki, cut(row["text"] for row in read_lines(DATA / "c4_wiki_demo" / "c4_demo.jsonl.gz"))[: len(wiki)]


def cut(texts: Iterable[str]) -> list[str]:
    """Pieces of 500 characters of texts whose white space is all the same."""
    joined = [" ".join(text.split()) for text in texts]
    return [text[at : at + 500] for text in joined for at in range(0, len(text) - 499, 500)]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        yield from map(json.loads, file)


if __name__ == "__main__":
    main()
