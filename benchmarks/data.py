"""A corpus cleaned by tallow beside datatrove: the same rules and MinHash parameters, end to end, two processors each.

    .venv/bin/python benchmarks/data.py --text FILE ... --datatrove VENV/bin/python [--rounds N] [--exact]

English texts (JSON lines, text; .gz, .xz) are cut at blank lines into documents of at most 4,000 characters. Each side
reads them from JSON lines in two files, drops by Gopher's repetition and quality rules, C4's and FineWeb's, with the
same bounds, then near-duplicates (5 words, 14 bands of 8 rows, 64 bits), and writes what is left. They take turns, as
processes of their own, the start of Python in them; medians count. tallow has two threads, datatrove two workers.
Memory is the largest sum of what all processes of a side hold (shared pages counted once for each), looked at twenty
times a second.

datatrove drops C4's lines after Gopher's rules have seen them, tallow before; words are spaCy's there; and it verifies
nothing. So the sides do not keep quite the same; how many each one keeps is printed. --exact compares tallow's clusters
with those of all pairs (minutes): recall at the threshold, and precision.

VENV has datatrove[processing]==0.10.0 with spacy.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tallow.data.config import PrepareConfig, QualityConfig
from tallow.data.duplicates.clusters import cluster
from tallow.data.duplicates.minhash import MinHashSettings
from tallow.data.look import open_prepared
from tallow.data.quality.c4 import C4Lines
from tallow.data.quality.gopher import GopherRules
from tallow.data.read import ReadSettings, read_documents
from tallow.data.records import Rejected
from tallow.data.sources import find_sources
from tallow.data.steps.clusters import CLUSTER
from tallow.kernels.text.minhash import jaccard, shingle_sets
from tallow.recipe import dump_recipe

MOST_CHARS, PROCESSORS = 4000, 2
SETTINGS = MinHashSettings()

DATATROVE = """
import json, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig

if __name__ == "__main__":
    source, place, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    config = MinhashConfig(num_buckets=14, hashes_per_bucket=8, n_grams=5, hash_config=HashConfig(precision=64))
    stages = [
        ([JsonlReader(source), GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(),
          FineWebQualityFilter(), JsonlWriter(f"{place}/filtered", compression=None)], workers),
        ([JsonlReader(f"{place}/filtered"), MinhashDedupSignature(f"{place}/signatures", config=config)], workers),
        ([MinhashDedupBuckets(f"{place}/signatures", f"{place}/buckets", config=config)], 14),
        ([MinhashDedupCluster(f"{place}/buckets", f"{place}/removed", config=config)], 1),
        ([JsonlReader(f"{place}/filtered"), MinhashDedupFilter(f"{place}/removed"),
          JsonlWriter(f"{place}/kept", compression=None)], workers),
    ]
    for number, (steps, tasks) in enumerate(stages):
        LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=f"{place}/logs/{number}").run()
"""


class Side(NamedTuple):
    """Seconds, MB of all processes together, and documents after the rules and after near-duplicates."""

    seconds: float
    peak_mb: float
    filtered: int
    kept: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=["tallow:pepys"])
    parser.add_argument("--datatrove", help="Python that has datatrove; without it tallow runs alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        documents = list(cut(options.text))
        size = sum(len(text.encode()) for text in documents)
        (place / "source").mkdir()
        for number in range(PROCESSORS):
            lines = (json.dumps({"text": text, "id": str(id)}) for id, text in enumerate(documents))
            with open(place / "source" / f"{number}.jsonl", "w") as file:
                file.writelines(f"{line}\n" for id, line in enumerate(lines) if id % PROCESSORS == number)
        print(f"{len(documents):,} documents, {size / 1e6:.1f} MB, {PROCESSORS} processors, {options.rounds} rounds\n")
        sides: dict[str, list[Side]] = {}
        for _ in range(options.rounds):
            sides.setdefault("tallow", []).append(run_tallow(place))
            if options.datatrove:
                sides.setdefault("datatrove", []).append(run_datatrove(place, options.datatrove))
        print(markdown(sides, len(documents), size), flush=True)
        if options.exact:
            print(exactness(place))


def cut(names: Iterable[str]) -> Iterator[str]:
    """Texts in documents of at most `MOST_CHARS` characters, of whole paragraphs where they are no longer."""
    for document in read_documents(find_sources(names), ReadSettings(), Rejected()):
        piece = ""
        for paragraph in document.text.split("\n\n"):
            if piece and len(piece) + 2 + len(paragraph) > MOST_CHARS:
                yield piece
                piece = ""
            piece = f"{piece}\n\n{paragraph}" if piece else paragraph
            while len(piece) > MOST_CHARS:
                yield piece[:MOST_CHARS]
                piece = piece[MOST_CHARS:]
        if piece.strip():
            yield piece


def run_tallow(place: Path) -> Side:
    run = place / "tallow"
    shutil.rmtree(run, ignore_errors=True)
    config = PrepareConfig(
        sources=(place / "source",),
        deduplicate=False,
        quality=QualityConfig(gopher=GopherRules(min_letter_words=None, min_letter_tokens=0.8), lines=C4Lines()),
        near_duplicates=SETTINGS,
    )
    recipe = place / "recipe.yaml"
    recipe.write_text(dump_recipe({"name": "x", "prepare": config.model_dump(mode="json")}))
    command = [
        sys.executable,
        "-m",
        "tallow",
        "prepare",
        str(recipe),
        "--run",
        str(run),
        "--set",
        "prepare.cluster.processes=1",
        "--set",
        f"prepare.cluster.threads={PROCESSORS}",
    ]
    seconds, peak = measured([*command, "--json"])
    dropped = {drop.reason: drop.first for drop in open_prepared(run).record.figures.drops}
    kept = open_prepared(run).record.figures.documents
    return Side(seconds, peak, kept + dropped["near-duplicate"], kept)


def run_datatrove(place: Path, python: str) -> Side:
    run = place / "datatrove"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    script = run / "clean.py"
    script.write_text(DATATROVE)
    seconds, peak = measured([python, str(script), str(place / "source"), str(run), str(PROCESSORS)])
    return Side(seconds, peak, *(count_lines(run / name) for name in ("filtered", "kept")))


def count_lines(directory: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in directory.glob("*.jsonl"))


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds of a command, and the peak of the MB that it and its descendants hold."""
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        peak, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], resident(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        status = process.wait()
        seconds = time.perf_counter() - begin
        done.set()
        watcher.join()
        if status:
            said.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{said.read()[-3000:]}")
    return seconds, peak[0] / 1e6


def resident(root: int) -> int:
    """Bytes that a process and its descendants hold."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                pages[int(entry.name)] = int((entry / "statm").read_text().split()[1])
            except (OSError, IndexError):
                continue
            parents[int(entry.name)] = int(fields[1])
    family, found = {root}, True
    while found:
        found = {process for process, parent in parents.items() if parent in family} - family
        family |= found
    return sum(pages.get(process, 0) for process in family) * os.sysconf("SC_PAGE_SIZE")


def markdown(sides: dict[str, list[Side]], documents: int, size: int) -> str:
    rows = ["| | seconds | documents/s | MB/s | peak MB | left by the rules | left at the end |", "|---|" + "---:|" * 6]
    for name, runs in sides.items():
        seconds, peak = (statistics.median(run[column] for run in runs) for column in (0, 1))
        rows.append(
            f"| {name} | {seconds:.1f} | {documents / seconds:,.0f} | {size / 1e6 / seconds:.1f} | {peak:,.0f} "
            f"| {runs[-1].filtered:,} | {runs[-1].kept:,} |"
        )
    if len(sides) > 1:
        ours, theirs = (
            [statistics.median(run[column] for run in runs) for column in (0, 1)] for runs in sides.values()
        )
        rows.append(f"\n{theirs[0] / ours[0]:.1f} × as fast, {ours[1] / theirs[1]:.2f} of the memory")
    return "\n".join(rows)


def exactness(place: Path) -> str:
    """tallow's clusters beside those of all pairs."""
    prepared = open_prepared(place / "tallow")
    with prepared.examine(prepared.config) as found:
        documents = pa.concat_tables(part.read() for part in found.parts)
        near = pa.concat_tables(part.read() for part in found.columns[CLUSTER])
    sets = shingle_sets(documents["text"].combine_chunks(), SETTINGS.shingle_words)
    count, pairs = documents.num_rows, list[np.ndarray]()
    for first in range(count - 1):
        others = np.arange(first + 1, count)
        similar = others[jaccard(sets, np.full(len(others), first), others) >= SETTINGS.threshold]
        pairs.append(np.stack([np.full(len(similar), first), similar], axis=1))
    firsts, seconds = np.concatenate(pairs).T
    ids = documents["id"].combine_chunks()
    exact = cluster(pa.table({"first": ids.take(pa.array(firsts)), "second": ids.take(pa.array(seconds))}))
    expected = dict(zip(exact["id"].to_pylist(), exact["survivor"].to_pylist(), strict=True))
    got = {
        id: survivor
        for id, survivor in zip(documents["id"].to_pylist(), near[CLUSTER].to_pylist(), strict=True)
        if survivor is not None
    }
    right = sum(got.get(id) == survivor for id, survivor in expected.items())
    wrong = sum(id not in expected for id in got)
    return (
        f"\n{len(firsts):,} pairs are similar at {SETTINGS.threshold}; of {len(expected):,} documents with one "
        f"{right:,} ({right / max(1, len(expected)):.4f}) are in the right cluster; {wrong} others are in one"
    )


if __name__ == "__main__":
    main()
