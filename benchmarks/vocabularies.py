"""The vocabularies of ../shared/data/tokenizers on all text of ../shared/data: tallow's ids beside their libraries'.

    .venv/bin/python benchmarks/vocabularies.py [--mb-a-file N] [--only NAME ...] [--json]

GPT-2, cl100k and o200k are encoded by tallow, by tiktoken and by tokenizers; GPT-2 from OpenAI's two files, too; RWKV's
vocabulary by tallow and by the algorithm that it came with. A document whose ids differ counts. Every string of a JSON
file is a document, every line of a CSV file, other files are one; gzip and xz are unpacked. It needs tiktoken.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import importlib
import json
import lzma
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tallow.tokenizer.tokenizer import Tokenizer

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
OPEN: Mapping[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}
DOCUMENTS = 512

Encoder = Callable[[Sequence[str]], list[list[int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb-a-file", type=float, default=1e6)
    parser.add_argument("--only", nargs="+", default=["gpt2", "cl100k_base", "o200k_base", "rwkv"])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for name in options.only:
        ours, others = vocabulary(name)
        result[name] = {"documents": 0, "bytes": 0, "tokens": 0, "differ": dict.fromkeys(others, 0)}
        for path in sorted(DATA.glob("*/*")):
            if path.parent.name in ("tokenizers", "langid_model") or path.name == "SOURCE.txt":
                continue
            found = compare(ours, others, documents(path), int(options.mb_a_file * 1e6))
            result[name]["documents"] += found["documents"]
            result[name]["bytes"] += found["bytes"]
            result[name]["tokens"] += found["tokens"]
            for other, number in found["differ"].items():
                result[name]["differ"][other] += number
                if number:
                    print(f"{name}: {number} documents of {path} differ from {other}", flush=True)
        if not options.json:
            print(name, result[name], flush=True)
    if options.json:
        print(json.dumps(result, indent=2))


def vocabulary(name: str) -> tuple[Tokenizer, dict[str, Encoder]]:
    """tallow's tokenizer, and the others that encode by this vocabulary."""
    if name == "rwkv":
        path = DATA / "tokenizers" / "rwkv_vocab_v20230424.txt.gz"
        return Tokenizer.load(path), {"RWKV's algorithm": by_longest(gzip.decompress(path.read_bytes()).decode())}
    path = DATA / "tokenizers" / f"tiktoken_{name}.json.gz"
    ours = Tokenizer.load(path)
    others: dict[str, Encoder] = {"tiktoken": by_tiktoken(json.loads(gzip.decompress(path.read_bytes())))}
    library = ours.sealed._backend  # in which text spells no control tokens, as tiktoken's encode_ordinary has it
    others["tokenizers"] = lambda texts: [found.ids for found in library.encode_batch_fast(texts)]
    if name == "gpt2":
        others["OpenAI's files"] = Tokenizer.load(DATA / "tokenizers" / "gpt2_vocab.bpe.gz").encode_batch
    return ours, others


def by_tiktoken(state: Mapping[str, Any]) -> Encoder:
    ranks = {}
    for line in filter(None, state["bpe_ranks"].split("\n")):
        _, first, *tokens = line.split(" ")
        ranks |= {base64.b64decode(token): rank for rank, token in enumerate(tokens, int(first))}
    encoding = importlib.import_module("tiktoken").Encoding(
        "x", pat_str=state["pat_str"], mergeable_ranks=ranks, special_tokens=state["special_tokens"]
    )
    return lambda texts: encoding.encode_ordinary_batch(list(texts), num_threads=1)


def by_longest(lines: str) -> Encoder:
    """Tokens by their first two bytes, the longest tried first, as rwkv's Python tokenizer has them."""
    import ast

    ids, starting = dict[bytes, int](), dict[bytes, list[bytes]]()
    for line in lines.splitlines():
        token = ast.literal_eval(line[line.index(" ") + 1 : line.rindex(" ")])
        token = token.encode() if isinstance(token, str) else token
        ids[token] = int(line[: line.index(" ")])
        starting.setdefault(token[:2], []).append(token)
    for tokens in starting.values():
        tokens.sort(key=len, reverse=True)

    def encode(text: str) -> list[int]:
        found, at, raw = list[int](), 0, text.encode()
        while at < len(raw):
            fitting = (token for token in starting.get(raw[at : at + 2], ()) if raw.startswith(token, at))
            token = next(fitting, raw[at : at + 1])
            found.append(ids[token])
            at += len(token)
        return found

    return lambda texts: [encode(text) for text in texts]


def compare(ours: Tokenizer, others: Mapping[str, Encoder], texts: Iterator[str], most: int) -> dict[str, Any]:
    """How many documents have other ids, by who gave them."""
    result: dict[str, Any] = {"documents": 0, "bytes": 0, "tokens": 0, "differ": dict.fromkeys(others, 0)}
    batch, waiting = list[str](), 0
    for text in texts:
        batch.append(text)
        waiting += len(text.encode())
        if len(batch) == DOCUMENTS or result["bytes"] + waiting >= most:
            count(ours, others, batch, result)
            batch, waiting = [], 0
        if result["bytes"] >= most:
            break
    count(ours, others, batch, result)
    return result


def count(ours: Tokenizer, others: Mapping[str, Encoder], batch: Sequence[str], result: dict[str, Any]) -> None:
    ids, lengths = ours.encode_texts(pa.array(batch, pa.string()))
    found = [some.tolist() for some in np.split(ids, np.cumsum(lengths)[:-1])] if batch else []
    result["documents"] += len(batch)
    result["bytes"] += sum(len(text.encode()) for text in batch)
    result["tokens"] += len(ids)
    for name, encode in others.items():
        result["differ"][name] += sum(one != other for one, other in zip(found, encode(batch), strict=True))


def documents(path: Path) -> Iterator[str]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".txt"):
                    yield archive.read(name).decode(errors="replace")
        return
    with OPEN.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        if ".jsonl" in path.name:
            for line in file:
                yield from strings(json.loads(line))
        elif ".json" in path.name:
            yield from strings(json.load(file))
        elif path.suffix == ".csv":
            yield from file
        else:
            yield file.read()


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


if __name__ == "__main__":
    main()
