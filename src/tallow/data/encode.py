"""The stage `encode`: documents → memory-mapped token shards, each document ended by the tokenizer's end token."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from tallow.console import progress
from tallow.data.blocks import load_card, save_card
from tallow.data.card import with_tokens
from tallow.data.documents import read_documents_split
from tallow.data.manifest import (
    DocumentCounts,
    TokenCounts,
    TokenManifest,
    load_document_manifest,
    save_manifest,
)
from tallow.data.shards import LINEAGE_SCHEMA, ShardWriter
from tallow.errors import DataError, UsageError
from tallow.files import atomic_directory
from tallow.recipe import Section
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer

BATCH_DOCUMENTS = 256
BATCH_BYTES = 1 << 20  # of text, or one longer document
UINT16_VOCABULARY = 2**16

Item = TypeVar("Item")
Result = TypeVar("Result")


class EncodeConfig(Section):
    """Settings of the encode stage.

    Args:
        documents: What the stage prepare has written.
        tokenizer: A directory with `tokenizer.json`.
        shard_tokens: A shard is closed with the document that brings it to so many tokens.
        workers: Batches of documents encoded at a time, each by the tokenizer's own threads; None: one a processor.
            The result is the same for any number.
    """

    incidental = frozenset(("workers",))

    documents: Path | None = None
    tokenizer: Path | None = None
    shard_tokens: int = Field(default=2**26, ge=1)
    workers: int | None = Field(default=None, ge=1)


def encode(config: EncodeConfig, run: StageRun) -> dict[str, Any]:
    """Encode all documents and write `tokens/`.

    Returns:
        `train_tokens`, `validation_tokens`, `bytes_per_token`.

    Raises:
        UsageError: An input is not named, or the directory cannot be written.
        DataError: The documents or the tokenizer are missing or damaged.
        CapacityError: The disk is full.
    """
    if config.documents is None or config.tokenizer is None:
        missing = "documents" if config.documents is None else "tokenizer"
        raise UsageError(f"setting encode.{missing} is required", f"name the product of the stage that makes {missing}")
    documents = load_document_manifest(config.documents)
    tokenizer = Tokenizer.load(config.tokenizer)
    if tokenizer.eos_id is None:
        raise DataError(f"tokenizer {config.tokenizer} has no end token", "set eos_token in its tokenizer_config.json")
    dtype: Literal["uint16", "uint32"] = "uint16" if tokenizer.vocab_size <= UINT16_VOCABULARY else "uint32"
    workers = config.workers or os.cpu_count() or 1
    tokenizer.encode_texts(pa.array([], pa.string()))  # makes what the threads share

    total = sum(counts.documents for counts in documents.splits.values())
    with atomic_directory(run.directory / "tokens") as directory, progress("encode", total, "documents") as bar:
        splits, groups = {}, list[pa.Table]()
        for split, counts in documents.splits.items():
            writer = ShardWriter(directory / split, np.dtype(dtype), config.shard_tokens)
            for batch in _encode_split(config.documents / split, counts, tokenizer, workers):
                writer.add(batch.tokens, batch.lengths, batch.lineage)
                groups.append(batch.groups)
                bar.advance(len(batch.lengths))
            shards = writer.close()
            tokens = sum(shard.tokens for shard in shards)
            splits[split] = TokenCounts(tokens=tokens, documents=counts.documents, bytes=counts.bytes, shards=shards)
            run.ledger.tokens += tokens
        manifest = TokenManifest(
            tokenizer=tokenizer.fingerprint,
            vocab_size=tokenizer.vocab_size,
            eos_id=tokenizer.eos_id,
            dtype=dtype,
            splits=splits,
            sources=documents.sources,
        )
        save_manifest(manifest, directory)
        save_card(with_tokens(load_card(config.documents), _summed(groups)), directory)
    text_bytes = sum(counts.bytes for counts in splits.values())
    return {
        **{f"{split}_tokens": counts.tokens for split, counts in splits.items()},
        "bytes_per_token": text_bytes / sum(counts.tokens for counts in splits.values()),
    }


@dataclass(frozen=True)
class _Encoded:
    """Documents as tokens, one after another, the length of each (its end token counted), and where they came from.

    `groups` has documents, tokens and bytes by source and language.
    """

    tokens: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]
    lineage: pa.RecordBatch
    groups: pa.Table


def _summed(groups: Sequence[pa.Table]) -> pa.Table:
    keys, sums = ["source", "language"], ["documents", "tokens", "bytes"]
    table = pa.concat_tables(groups).group_by(keys, use_threads=False).aggregate([(name, "sum") for name in sums])
    return table.select([*keys, *(f"{name}_sum" for name in sums)]).rename_columns([*keys, *sums])


def _encode_split(directory: Path, counts: DocumentCounts, tokenizer: Tokenizer, workers: int) -> Iterator[_Encoded]:
    """Encode batches in threads: the tokenizer is native code that runs beside Python, and order is kept."""
    batches = chain.from_iterable(map(_cut, read_documents_split(directory, counts, BATCH_DOCUMENTS)))
    yield from map_ordered(lambda batch: _encode_batch(tokenizer, batch), batches, workers)


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Smaller batches, so that long documents are shared among the threads, too."""
    ends = np.cumsum(pc.call_function("binary_length", [batch.column("text")]).to_numpy(), dtype=np.int64)
    first = 0
    while first < len(ends):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + BATCH_BYTES, "right")))
        yield batch.slice(first, last - first)
        first = last


def _encode_batch(tokenizer: Tokenizer, batch: pa.RecordBatch) -> _Encoded:
    tokens, lengths = tokenizer.encode_texts(batch.column("text"), end=tokenizer.eos_id)
    if int(tokens.max()) >= tokenizer.vocab_size:
        raise DataError(
            f"the tokenizer gives id {int(tokens.max())} but has {tokenizer.vocab_size:,} tokens", "train it again"
        )
    sizes = pc.call_function("binary_length", [batch.column("text")]).cast(pa.int64())
    columns = {"source": batch["source"], "language": batch["language"], "tokens": lengths, "bytes": sizes}
    groups = _summed([pa.table({**columns, "documents": np.ones(len(lengths), dtype=np.int64)})])
    return _Encoded(tokens, lengths, batch.select(LINEAGE_SCHEMA.names), groups)


def map_ordered(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Apply a function in threads; results come in the order of the items, few of which are in memory at once."""
    items = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(items, workers + 2))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(items, 1))
