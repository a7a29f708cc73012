"""Encoding documents to token shards with GPT-2's vocabulary: tallow beside tiktoken and tokenizers.

    .venv/bin/python benchmarks/encoding.py [--text FILE ...] [--mb 16] [--rounds 5] [--threads 2] [--json]

tallow is the whole stage `encode`: documents are read from Parquet, encoded, and written as shards with their lineage.
The peers have the texts in memory and write nothing; theirs is the time of encode_ordinary_batch (tiktoken) and of
encode_batch_fast with the ids taken out (tokenizers). Everything that is made once (vocabularies, thread pools) is made
before by encoding a few texts. Each measurement is a process of its own; they take turns, and ratios are of one
round. Time is the wall's, so the machine should have nothing else to do; CPU seconds are told, too. Ids are compared.

Texts are the English books, handbooks and Russian plays of ../shared/data, so much of each that they make --mb
together. Peers that are not installed are left out: `pip install tiktoken`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
VOCABULARY = DATA / "tokenizers" / "gpt2_vocab.bpe.gz"
TEXTS = (
    DATA / "corpus_english_books" / "shakespeare_milton.en.jsonl.xz",
    DATA / "corpus_english_books" / "pepys_diary.en.jsonl.xz",
    DATA / "corpus_handbook" / "handbook.de-DE.jsonl.xz",
    DATA / "corpus_russian_plays" / "rusdracor.ru.jsonl.xz",
)
NAMES = ("tallow", "tiktoken", "tokenizers")
WARM = ["a few texts"] * 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", default=TEXTS)
    parser.add_argument("--mb", type=float, default=16.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.work, options.threads)))
        return
    with tempfile.TemporaryDirectory() as directory:
        size = prepare_documents(options.text, int(options.mb * 1e6), Path(directory))
        found = rounds(Path(directory), options.rounds, options.threads)
    result = summary(found, size)
    print(json.dumps(result, indent=2) if options.json else table(result))


def prepare_documents(paths: Sequence[Path], size: int, work: Path) -> int:
    """Documents of the files, and GPT-2's tokenizer, for all to read; how many bytes the documents have."""
    from tallow.data.config import PrepareConfig
    from tallow.data.prepare import prepare
    from tallow.data.read import ReadSettings, read_documents
    from tallow.data.records import Rejected
    from tallow.data.sources import find_sources
    from tallow.run import StageRun
    from tallow.tokenizer.tokenizer import Tokenizer

    Tokenizer.load(VOCABULARY).save(work / "tokenizer")
    with open(work / "texts.jsonl", "w", encoding="utf-8") as file:
        for path in paths:
            left = size // len(paths)
            for document in read_documents(find_sources([path]), ReadSettings(), Rejected()):
                left -= len(document.text.encode())
                file.write(json.dumps({"text": document.text}) + "\n")
                if left < 0:
                    break
    config = PrepareConfig(sources=(work / "texts.jsonl",), deduplicate=False, validation_fraction=0.0)
    prepare(config, StageRun(work / "prepare"))
    return sum(len(text.encode()) for text in texts(work))


def texts(work: Path) -> list[str]:
    return pq.read_table(work / "prepare" / "documents" / "train", columns=["text"])["text"].to_pylist()


def rounds(work: Path, number: int, threads: int) -> list[dict[str, Any]]:
    """What each of those that there are came to in each round, by name."""
    names = [name for name in NAMES if importlib.util.find_spec(name) is not None]
    found = list[dict[str, Any]]()
    for turn in range(number):
        values = {}
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            command = [sys.executable, __file__, "--one", name, "--work", str(work), "--threads", str(threads)]
            environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
            values[name] = json.loads(output.splitlines()[-1])
        found.append(values)
    return found


def measure(name: str, work: Path, threads: int) -> dict[str, Any]:
    """Seconds, CPU seconds, and a hash of the ids."""
    encode = {"tallow": by_tallow, "tiktoken": by_tiktoken, "tokenizers": by_tokenizers}[name](work, threads)
    wall, cpu = time.perf_counter(), time.process_time()
    product = encode()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": wall, "cpu_seconds": cpu, "ids": hashlib.sha256(product().tobytes()).hexdigest()}


def by_tallow(work: Path, threads: int) -> Callable[[], Callable[[], np.ndarray]]:
    from tallow.data.encode import EncodeConfig, encode
    from tallow.data.manifest import load_manifest
    from tallow.run import StageRun
    from tallow.tokenizer.tokenizer import Tokenizer

    documents, tokenizer = work / "prepare" / "documents", work / "tokenizer"
    run = StageRun(work / f"encode-{os.getpid()}")
    config = EncodeConfig(documents=documents, tokenizer=tokenizer, workers=threads)
    loaded = Tokenizer.load(tokenizer)
    loaded.encode_texts(pa.array(WARM))

    def product() -> np.ndarray:
        directory = run.directory / "tokens"
        shards = load_manifest(directory).splits["train"].shards
        ids = np.concatenate([np.load(directory / "train" / f"{shard.name}.npy") for shard in shards])
        return ids[ids != loaded.eos_id].astype(np.uint32)

    def do() -> Callable[[], np.ndarray]:
        with patch.object(Tokenizer, "load", return_value=loaded):  # the peers' are made beforehand, too
            encode(config, run)
        return product

    return do


def by_tiktoken(work: Path, threads: int) -> Callable[[], Callable[[], np.ndarray]]:
    import base64
    import gzip

    tiktoken = importlib.import_module("tiktoken")
    state = json.loads(gzip.decompress((VOCABULARY.parent / "tiktoken_gpt2.json.gz").read_bytes()))
    ranks = {}
    for line in state["bpe_ranks"].split("\n"):
        _, first, *tokens = line.split(" ")
        ranks |= {base64.b64decode(token): rank for rank, token in enumerate(tokens, int(first))}
    encoding = tiktoken.Encoding("gpt2", pat_str=state["pat_str"], mergeable_ranks=ranks, special_tokens={})
    documents = texts(work)
    encoding.encode_ordinary_batch(WARM, num_threads=threads)

    def do() -> Callable[[], np.ndarray]:
        found = encoding.encode_ordinary_batch(documents, num_threads=threads)
        return lambda: np.array([id for ids in found for id in ids], dtype=np.uint32)

    return do


def by_tokenizers(work: Path, threads: int) -> Callable[[], Callable[[], np.ndarray]]:
    del threads  # which the environment says
    module = importlib.import_module("tokenizers")
    tokenizer = module.Tokenizer.from_file(str(work / "tokenizer" / "tokenizer.json"))
    documents = texts(work)
    tokenizer.encode_batch_fast(WARM, add_special_tokens=False)

    def do() -> Callable[[], np.ndarray]:
        found = [some.ids for some in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]
        return lambda: np.array([id for ids in found for id in ids], dtype=np.uint32)

    return do


def summary(found: Sequence[dict[str, Any]], size: int) -> dict[str, Any]:
    names = found[0].keys()
    peers = [name for name in names if name != "tallow"]
    ratios = [min(values[peer]["seconds"] for peer in peers) / values["tallow"]["seconds"] for values in found if peers]
    return {
        "bytes": size,
        "same_ids": len({values[name]["ids"] for values in found for name in names}) == 1,
        "mb_s": {name: size / 1e6 / statistics.median(values[name]["seconds"] for values in found) for name in names},
        "mb_cpu_s": {
            name: size / 1e6 / statistics.median(values[name]["cpu_seconds"] for values in found) for name in names
        },
        "ratio_to_the_fastest_peer": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['bytes'] / 1e6:.1f} MB, ids {'the same' if result['same_ids'] else 'DIFFER'}", ""]
    lines += ["| | MB/s | MB per CPU second |", "|---|---:|---:|"]
    lines += [f"| {name} | {speed:.1f} | {result['mb_cpu_s'][name]:.1f} |" for name, speed in result["mb_s"].items()]
    if result["ratio_to_the_fastest_peer"] is not None:
        lines += ["", f"tallow ÷ the fastest peer, median of rounds: {result['ratio_to_the_fastest_peer']:.2f}"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
