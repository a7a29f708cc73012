from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.batch import Packed, collate
from tallow.data.dataset import TokenDataset
from tallow.data.manifest import ShardRecord, TokenCounts, TokenManifest, save_manifest
from tallow.errors import DataError, UsageError


def write_tokens(directory: Path, shards: list[list[list[int]]], vocab_size: int = 100) -> Path:
    """A directory of tokens from shards of documents of ids, written by hand."""
    (directory / "train").mkdir(parents=True)
    records = []
    for number, documents in enumerate(shards):
        name = f"shard-{number:05}"
        lengths = [len(document) for document in documents]
        np.save(directory / "train" / f"{name}.npy", np.array(list(chain.from_iterable(documents)), dtype=np.uint16))
        starts = np.cumsum([0, *lengths[:-1]]).astype(np.uint64)
        np.save(directory / "train" / f"{name}.documents.npy", starts)
        records.append(ShardRecord(name=name, tokens=sum(lengths), documents=len(documents)))
    counts = TokenCounts(
        tokens=sum(record.tokens for record in records),
        documents=sum(record.documents for record in records),
        bytes=1234,
        shards=tuple(records),
    )
    manifest = TokenManifest(
        tokenizer="fingerprint", vocab_size=vocab_size, eos_id=0, dtype="uint16", splits={"train": counts}, sources=()
    )
    save_manifest(manifest, directory)
    return directory


def equal(one: Packed, two: Packed) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in ("tokens_BT", "documents_BT", "trainable_BT")
    )


SHARDS = [[[1, 2, 3, 0], [4, 0]], [[5, 6, 0]], [[7, 0], [8, 9, 10, 0]]]


def test_windows_run_across_documents_and_shards(tmp_path: Path) -> None:
    dataset = TokenDataset(write_tokens(tmp_path / "tokens", SHARDS), "train", sequence_length=6, seed=0)
    assert (dataset.num_sequences, dataset.num_tokens, dataset.num_bytes, dataset.num_documents) == (3, 15, 1234, 5)
    first, second, last = (dataset.sequence(index) for index in range(3))
    assert first.tokens_BT.tolist() == [[1, 2, 3, 0, 4, 0, 5]]
    assert first.documents_BT.tolist() == [[0, 0, 0, 0, 1, 1, 2]]
    assert first.trainable_BT.all()
    assert second.tokens_BT.tolist() == [[5, 6, 0, 7, 0, 8, 9]]
    assert second.documents_BT.tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert last.tokens_BT.tolist() == [[9, 10, 0, 0, 0, 0, 0]]
    assert last.documents_BT.tolist() == [[0, 0, 0, -1, -1, -1, -1]]
    assert last.trainable_BT.tolist() == [[True] * 3 + [False] * 4]
    again = dataset.sequence(4)  # the second window in the second epoch
    assert equal(again, second)
    assert [row.numbers_B.tolist() for row in (second, again) if row.numbers_B is not None] == [[1], [4]]


documents = st.lists(st.lists(st.integers(1, 99), max_size=6).map(lambda ids: [*ids, 0]), min_size=1, max_size=6)


@given(shards=st.lists(documents, min_size=1, max_size=4), length=st.integers(1, 20))
def test_every_token_but_the_first_is_a_target_once(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[list[int]]], length: int
) -> None:
    flat = [token for shard in shards for document in shard for token in document]
    owners = [number for number, document in enumerate(chain.from_iterable(shards)) for _ in document]
    directory = write_tokens(tmp_path_factory.mktemp("any") / "tokens", shards)
    if len(flat) < 2:
        with pytest.raises(DataError, match="too few tokens"):
            TokenDataset(directory, "train", length, seed=0)
        return
    dataset = TokenDataset(directory, "train", length, seed=0)
    targets: list[int] = []
    for index in range(dataset.num_sequences):
        row = dataset.sequence(index)
        real = int(row.trainable_BT.sum())
        start = index * length
        assert row.tokens_BT[0, :real].tolist() == flat[start : start + real]
        expected = owners[start : start + real]
        assert row.documents_BT[0, :real].tolist() == [owner - expected[0] for owner in expected]
        targets += row.tokens_BT[0, 1:real].tolist()
    assert targets == flat[1:]


@given(count=st.integers(1, 60), size=st.integers(1, 40), seed=st.integers(0, 3))
def test_steps_pass_over_all_windows_epoch_after_epoch(
    tmp_path_factory: pytest.TempPathFactory, count: int, size: int, seed: int
) -> None:
    directory = write_tokens(tmp_path_factory.mktemp("any") / "tokens", [[[*range(1, count + 1), 0]]])
    dataset = TokenDataset(directory, "train", sequence_length=1, seed=seed)
    assert dataset.num_sequences == count
    steps = 3 * count // size + 1
    order = [row for step in range(steps) for row in dataset.rows(step, size)]
    for epoch in range(3):
        numbers = range(epoch * count, (epoch + 1) * count)
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(numbers)
    # The order of rows is that of the places, whatever the size of a batch.
    assert order == [row for place in range(len(order)) for row in dataset.rows(place, 1)]


def test_any_step_can_be_rebuilt(make_tokens: Callable[..., Path]) -> None:
    directory = make_tokens([f"document {number} " * 5 for number in range(40)], shard_tokens=700)
    dataset = TokenDataset(directory, "train", sequence_length=32, seed=5)
    passed = [dataset.batch(step, 8) for step in range(20)]
    resumed = TokenDataset(directory, "train", sequence_length=32, seed=5)
    for step in (19, 0, 7, 13):
        assert equal(resumed.batch(step, 8), passed[step])
    other = TokenDataset(directory, "train", sequence_length=32, seed=6)
    assert not equal(other.batch(0, 8), passed[0])
    first, second = (dataset.rows(epoch, dataset.num_sequences) for epoch in (0, 1))
    assert [number - dataset.num_sequences for number in second] != first


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(make_tokens: Callable[..., Path], world: int) -> None:
    dataset = TokenDataset(make_tokens(["some words " * 60]), "train", sequence_length=16, seed=0)
    whole = dataset.batch(3, 8)
    parts = [dataset.gather(dataset.rows(3, 8)[rank::world]) for rank in range(world)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.tokens_BT, whole.tokens_BT[rank::world])
        assert torch.equal(part.documents_BT, whole.documents_BT[rank::world])
        assert part.numbers_B is not None
        assert whole.numbers_B is not None
        assert torch.equal(part.numbers_B, whole.numbers_B[rank::world])


def test_batch_is_its_windows(make_tokens: Callable[..., Path]) -> None:
    dataset = TokenDataset(make_tokens(["some words " * 60, "others " * 9]), "train", sequence_length=16, seed=0)
    rows = dataset.rows(2, 5)
    batch = dataset.batch(2, 5)
    assert batch.tokens_BT.shape == (5, 17)
    assert equal(batch, collate([dataset.sequence(row) for row in rows]))


def test_nothing_is_mapped_into_memory_as_a_whole(tmp_path: Path) -> None:
    """Looking for documents must not convert the mapped array of their starts."""
    documents = [[1, 0]] * 200_000
    dataset = TokenDataset(write_tokens(tmp_path / "tokens", [documents]), "train", sequence_length=8, seed=0)
    dataset.sequence(0)
    tracemalloc.start()
    dataset.sequence(40_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncate tokens", "damaged or cut short"),
        ("empty tokens", "damaged or cut short"),
        ("remove tokens", "does not exist"),
        ("remove starts", "does not exist"),
        ("truncate starts", "damaged or cut short"),
        ("other type", "does not hold the 6 values of type uint16"),
        ("shorter", "does not hold the 6 values of type uint16"),
        ("pickled", "damaged"),
        ("starts past the end", "does not fit its token shard"),
        ("starts that do not rise", "does not fit its token shard"),
        ("count", "do not add up"),
    ],
)
def test_damage_is_a_data_error(tmp_path: Path, damage: str, message: str) -> None:
    directory = write_tokens(tmp_path / "tokens", SHARDS)
    tokens = directory / "train" / "shard-00000.npy"
    starts = directory / "train" / "shard-00000.documents.npy"
    match damage:
        case "truncate tokens":
            tokens.write_bytes(tokens.read_bytes()[:-4])
        case "empty tokens":
            tokens.write_bytes(b"")
        case "remove tokens":
            tokens.unlink()
        case "remove starts":
            starts.unlink()
        case "truncate starts":
            starts.write_bytes(starts.read_bytes()[:-4])
        case "other type":
            np.save(tokens, np.arange(6, dtype=np.uint32))
        case "shorter":
            np.save(tokens, np.arange(5, dtype=np.uint16))
        case "pickled":
            np.save(tokens, np.array([{}] * 6, dtype=object), allow_pickle=True)
        case "starts past the end":
            np.save(starts, np.array([0, 6], dtype=np.uint64))
        case "starts that do not rise":
            np.save(starts, np.array([0, 0], dtype=np.uint64))
        case _:
            manifest = json.loads((directory / "manifest.json").read_text())
            manifest["splits"]["train"]["tokens"] += 1
            (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message) as caught:
        TokenDataset(directory, "train", sequence_length=6, seed=0)
    assert caught.value.hint


def test_id_outside_the_vocabulary_is_a_data_error(tmp_path: Path) -> None:
    directory = write_tokens(tmp_path / "tokens", SHARDS, vocab_size=10)
    dataset = TokenDataset(directory, "train", sequence_length=6, seed=0)
    assert dataset.sequence(1).tokens_BT.max() == 9
    with pytest.raises(DataError, match="outside the vocabulary of 10"):
        dataset.sequence(2)


def test_wrong_use_is_a_usage_error(tmp_path: Path) -> None:
    directory = write_tokens(tmp_path / "tokens", SHARDS)
    with pytest.raises(UsageError, match="no split test"):
        TokenDataset(directory, "test", sequence_length=6, seed=0)
    with pytest.raises(UsageError, match="sequence length 0"):
        TokenDataset(directory, "train", sequence_length=0, seed=0)
