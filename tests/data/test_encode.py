from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers

from tallow.data.blocks import Heading, Table, load_card
from tallow.data.config import PrepareConfig
from tallow.data.encode import EncodeConfig, encode
from tallow.data.manifest import load_document_manifest, load_manifest
from tallow.data.prepare import prepare
from tallow.errors import DataError, UsageError
from tallow.files import hash_path
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer

TEXTS = [f"text {number} é" * (number % 7) + "." for number in range(300)]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    config = PrepareConfig(sources=(path,), deduplicate=False, validation_fraction=0.1)
    prepare(config, StageRun(tmp_path / "prepare"))
    return tmp_path / "prepare" / "documents"


def test_tokens_are_the_documents_each_with_its_end(tmp_path: Path, documents: Path, tokenizer_directory: Path) -> None:
    run = StageRun(tmp_path / "run")
    result = encode(EncodeConfig(documents=documents, tokenizer=tokenizer_directory, shard_tokens=1000), run)
    tokenizer = Tokenizer.load(tokenizer_directory)
    manifest = load_manifest(tmp_path / "run" / "tokens")
    assert manifest.tokenizer == tokenizer.fingerprint
    assert (manifest.vocab_size, manifest.eos_id, manifest.dtype) == (257, 0, "uint16")
    assert manifest.sources == load_document_manifest(documents).sources

    total = 0
    for split, counts in manifest.splits.items():
        texts = pq.read_table(documents / split).to_pylist()
        found = []
        for shard in counts.shards:
            directory = tmp_path / "run" / "tokens" / split
            tokens = np.load(directory / f"{shard.name}.npy", mmap_mode="r")
            starts = np.load(directory / f"{shard.name}.documents.npy", mmap_mode="r")
            lineage = pq.read_table(directory / f"{shard.name}.lineage.parquet").to_pylist()
            assert (tokens.dtype, starts.dtype) == (np.uint16, np.uint64)
            assert len(tokens) == shard.tokens
            assert len(starts) == len(lineage) == shard.documents
            for start, end, origin in zip(starts, [*starts[1:], len(tokens)], lineage, strict=True):
                ids = tokens[int(start) : int(end)].tolist()
                assert ids[-1] == 0
                assert 0 not in ids[:-1]
                found.append({"text": tokenizer.decode(ids[:-1]), **origin})
            assert shard is counts.shards[-1] or 1000 <= len(tokens) < 1000 + 100
        assert [{key: row[key] for key in ("text", "id", "source", "offset")} for row in texts] == found
        assert counts.documents == len(texts)
        assert counts.bytes == sum(len(row["text"].encode()) for row in texts)
        assert counts.tokens == counts.bytes + counts.documents == result[f"{split}_tokens"]
        total += counts.tokens
    assert run.ledger.tokens == total
    assert len(manifest.splits["train"].shards) > 5


def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, documents: Path, tokenizer_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallow.data.encode.BATCH_DOCUMENTS", 7)
    hashes = set()
    for workers in (1, 2, 5):
        config = EncodeConfig(documents=documents, tokenizer=tokenizer_directory, shard_tokens=999, workers=workers)
        encode(config, StageRun(tmp_path / str(workers)))
        hashes.add(hash_path(tmp_path / str(workers) / "tokens"))
    assert len(hashes) == 1


def test_shards_do_not_depend_on_batches(
    tmp_path: Path, documents: Path, tokenizer_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for size in (1, 64, 1000):
        monkeypatch.setattr("tallow.data.encode.BATCH_DOCUMENTS", size)
        monkeypatch.setattr("tallow.data.encode.BATCH_BYTES", 3 * size)
        encode(
            EncodeConfig(documents=documents, tokenizer=tokenizer_directory, shard_tokens=500),
            StageRun(tmp_path / str(size)),
        )
        hashes.add(hash_path(tmp_path / str(size) / "tokens"))
    assert len(hashes) == 1


def test_large_vocabulary_takes_wider_ids(tmp_path: Path, documents: Path) -> None:
    vocabulary = {f"w{number}": number for number in range(70_000)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w69999"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    Tokenizer.from_backend(backend, eos_token="w0").save(tmp_path / "wide")
    encode(EncodeConfig(documents=documents, tokenizer=tmp_path / "wide"), StageRun(tmp_path / "run"))
    manifest = load_manifest(tmp_path / "run" / "tokens")
    tokens = np.load(tmp_path / "run" / "tokens" / "train" / "shard-00000.npy")
    assert manifest.dtype == tokens.dtype.name == "uint32"
    assert set(tokens.tolist()) == {0, 69_999}


def test_control_tokens_in_text_stay_text(make_tokens: Callable[..., Path]) -> None:
    directory = make_tokens(["before <|end|> after"])
    tokens = np.load(directory / "train" / "shard-00000.npy")
    assert (tokens == 0).sum() == 1
    assert tokens[-1] == 0


def test_inputs_must_be_there(tmp_path: Path, documents: Path, tokenizer_directory: Path) -> None:
    run = StageRun(tmp_path / "run")
    with pytest.raises(UsageError, match=r"encode\.documents is required"):
        encode(EncodeConfig(tokenizer=tokenizer_directory), run)
    with pytest.raises(UsageError, match=r"encode\.tokenizer is required"):
        encode(EncodeConfig(documents=documents), run)
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        encode(EncodeConfig(documents=tmp_path, tokenizer=tokenizer_directory), run)
    with pytest.raises(DataError):
        encode(EncodeConfig(documents=documents, tokenizer=tmp_path), run)
    (documents / "train" / "part-00000.parquet").unlink()
    with pytest.raises(DataError, match="does not exist"):
        encode(EncodeConfig(documents=documents, tokenizer=tokenizer_directory), run)
    assert not any((tmp_path / "run").glob("tokens*"))


def test_tokenizer_without_an_end_token_is_a_data_error(tmp_path: Path, documents: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    Tokenizer.from_backend(backend).save(tmp_path / "endless")
    with pytest.raises(DataError, match="has no end token"):
        encode(EncodeConfig(documents=documents, tokenizer=tmp_path / "endless"), StageRun(tmp_path / "run"))


def test_the_card_tells_tokens_by_source_and_language(
    documents: Path, tokenizer_directory: Path, tmp_path: Path
) -> None:
    encode(EncodeConfig(documents=documents, tokenizer=tokenizer_directory), StageRun(tmp_path / "run"))
    manifest = load_manifest(tmp_path / "run" / "tokens")
    tokens = sum(counts.tokens for counts in manifest.splits.values())
    source = manifest.sources[0].name
    blocks = load_card(tmp_path / "run" / "tokens")
    [rows] = [block.rows for block in blocks if isinstance(block, Table) and "tokens" in block.columns]
    assert rows == ((source, "not stated", len(TEXTS), tokens, round((tokens - len(TEXTS)) / tokens, 3)),)
    assert next(block for block in blocks if block not in load_card(documents)) == Heading("Tokens")
    page = (tmp_path / "run" / "tokens" / "card.md").read_text()
    assert page.index("## Tokens") < page.index("## What was dropped")
    (documents / "card.json").unlink()
    encode(EncodeConfig(documents=documents, tokenizer=tokenizer_directory), StageRun(tmp_path / "bare"))
    assert len(load_card(tmp_path / "bare" / "tokens")) == 4
    (documents / "card.json").write_text('{"blocks": [["chart", 1]]}')
    with pytest.raises(DataError, match="not a data card"):
        encode(EncodeConfig(documents=documents, tokenizer=tokenizer_directory), StageRun(tmp_path / "bad"))
