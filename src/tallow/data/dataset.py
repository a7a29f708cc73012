"""Token shards as rows of fixed length in an order that any step can be computed from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from tallow.data.batch import PADDING_DOCUMENT, Packed, collate
from tallow.data.manifest import load_manifest
from tallow.data.packing import Packing
from tallow.data.permutation import Epochs
from tallow.data.shards import HINT, Shard, read_lineage
from tallow.data.stream import Stream
from tallow.errors import DataError, UsageError


class TokenDataset:
    """One split of a directory of tokens, laid into sequences of `sequence_length` + 1 tokens.

    Those of `split` and `concatenate` are windows, each of which starts `sequence_length` tokens after the one before,
    so every token but the very first is a target once. Windows run across documents and shards; the last is padded.

    An epoch goes through all sequences in an order of its own; epochs follow one another without a gap, and batches
    run across them. What a step's batch holds depends on `seed`, step and size alone. A row is a sequence in an epoch:
    its number is `epoch * num_sequences + sequence`.

    With domains, no row has documents of two of them: the rows of the first domain come first, then those of the
    second, and so on. What is in none of them is left out.

    Args:
        directory: What the stage encode has written.
        split: `train` or `validation`.
        sequence_length: Tokens that the model sees.
        seed: Names the order.
        packing: How documents come to lie in sequences.
        domains: By name, the sources of each; None: there is one domain, of everything, and it has no name.

    Raises:
        DataError: The directory is not one of tokens, a shard does not match the manifest, or the split has
            fewer than two tokens.
        UsageError: There is no such split, or the sequence length is not positive.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        sequence_length: int,
        seed: int,
        packing: Packing = "split",
        domains: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        manifest = load_manifest(directory)
        if split not in manifest.splits:
            raise UsageError(f"{directory} has no split {split}", f"it has {', '.join(manifest.splits)}")
        if sequence_length < 1:
            raise UsageError(f"sequence length {sequence_length} is not positive", "set it to 1 or more")
        counts = manifest.splits[split]
        self.directory = directory / split
        self.sequence_length = sequence_length
        self.seed = seed
        self.tokenizer = manifest.tokenizer
        self.vocab_size = manifest.vocab_size
        self.shards = [Shard.open(self.directory, record, manifest.dtype) for record in counts.shards]
        self._ends = np.cumsum([len(shard.tokens) for shard in self.shards], dtype=np.int64)
        self.num_tokens = counts.tokens
        self.num_bytes = counts.bytes
        self.num_documents = counts.documents
        if self.num_tokens != (self._ends[-1] if self.shards else 0):
            raise DataError(f"the shards of {self.directory} do not add up to the tokens of the manifest", HINT)
        if self.num_tokens < 2:
            raise DataError(f"{self.directory} has too few tokens ({self.num_tokens})", "prepare more text")
        self.packing: Packing = packing
        self.owners: npt.NDArray[np.int64] | None = None
        """Of each document the number of its domain, -1 where it is in none of them; None: there is one domain."""
        self.streams = self._streams(domains)
        """By domain."""
        self._bases = np.cumsum([0, *(stream.num_rows for stream in self.streams.values())])
        self.num_sequences = int(self._bases[-1])
        self.num_padding = sum(stream.num_padding for stream in self.streams.values())
        if self.num_sequences == 0:
            raise DataError(f"no document in {self.directory} has two tokens", "prepare longer ones")

    def _streams(self, domains: Mapping[str, Collection[str]] | None) -> dict[str, Stream]:
        whole = np.array([0]), np.array([self.num_tokens])
        if domains is None:
            begins = self.document_begins() if self.packing == "best_fit" else None
            return {"": Stream(*whole, self.sequence_length, self.packing, begins)}
        begins = self.document_begins()
        owners = self.owners = self._document_domains(domains)
        new = np.flatnonzero(np.diff(owners, prepend=-2))  # where runs of documents of one domain begin
        ends = np.append(begins[new[1:]], self.num_tokens)
        streams: dict[str, Stream] = {}
        for number, name in enumerate(domains):
            own = owners[new] == number
            ranges = begins[new][own], ends[own]
            streams[name] = Stream(*ranges, self.sequence_length, self.packing, begins[owners == number])
        return streams

    @property
    def tokens_per_sequence(self) -> float:
        """On average."""
        if self.packing != "best_fit":
            return self.sequence_length
        return sum(stream.num_tokens for stream in self.streams.values()) / self.num_sequences

    def sequence(self, number: int) -> Packed:
        """The row of this number; windows of epoch 0 are in the order of the text. B is 1.

        Raises:
            DataError: A token id lies outside the vocabulary.
        """
        tokens = np.zeros(self.sequence_length + 1, dtype=np.int64)
        documents = np.full(self.sequence_length + 1, PADDING_DOCUMENT, dtype=np.int32)
        begins = np.zeros(self.sequence_length + 1, dtype=np.int32)
        filled = 0
        for place, stop in self._pieces(number % self.num_sequences):
            first = filled
            while place < stop:
                end = self._copy_piece(place, stop, tokens[filled:], begins[filled:])
                filled, place = filled + end - place, end
            begins[first] = 1
        if self.packing == "concatenate":
            begins[1:] = 0
        documents[:filled] = np.cumsum(begins[:filled]) - 1
        return Packed(
            torch.from_numpy(tokens)[None],
            torch.from_numpy(documents)[None],
            torch.from_numpy(documents != PADDING_DOCUMENT)[None],
            torch.tensor([number]),
        )

    def _pieces(self, sequence: int) -> list[tuple[int, int]]:
        """Where among all tokens the pieces of a sequence begin and end."""
        number = int(np.searchsorted(self._bases, sequence, side="right")) - 1
        return list(self.streams.values())[number].pieces(sequence - int(self._bases[number]))

    def document_begins(self) -> npt.NDArray[np.int64]:
        """Where each document begins among all tokens."""
        bases = [0, *self._ends[:-1].tolist()]
        return np.concatenate(
            [shard.starts.astype(np.int64) + base for shard, base in zip(self.shards, bases, strict=True)]
        )

    def _document_domains(self, domains: Mapping[str, Collection[str]]) -> npt.NDArray[np.int64]:
        numbers = {source: number for number, sources in enumerate(domains.values()) for source in sources}
        known = pc.SetLookupOptions(pa.array(list(numbers), pa.string()))
        of_source = np.array([*numbers.values(), -1], dtype=np.int64)
        found = [np.zeros(0, dtype=np.int64)]
        for shard in self.shards:
            sources = read_lineage(shard.lineage, "source", len(shard.starts))
            places = pc.call_function("index_in", [sources], known).fill_null(len(numbers))
            found.append(of_source[places.to_numpy()])
        return np.concatenate(found)

    def lineage(self, column: str) -> Iterator[Any]:
        """A column of the lineage of all documents.

        Raises:
            DataError: It is missing or damaged.
        """
        for shard in self.shards:
            values = read_lineage(shard.lineage, column, len(shard.starts))
            yield from values.to_pylist()

    def _copy_piece(self, place: int, stop: int, tokens: npt.NDArray[np.int64], begins: npt.NDArray[np.int32]) -> int:
        """Copy from the shard that holds token `place`, up to its end or `stop`; where to go on."""
        number = int(np.searchsorted(self._ends, place, side="right"))
        shard, end = self.shards[number], int(self._ends[number])
        base = end - len(shard.tokens)
        low, high = place - base, min(stop, end) - base
        piece = shard.tokens[low:high]
        if int(piece.max()) >= self.vocab_size:
            raise DataError(f"{shard.path} has a token id outside the vocabulary of {self.vocab_size:,}", HINT)
        tokens[: high - low] = piece
        # The bounds have the type of `starts`; with another, NumPy would convert the whole mapped array.
        first, last = np.searchsorted(shard.starts, np.array([low, high], dtype=shard.starts.dtype))
        begins[shard.starts[first:last].astype(np.int64) - low] = 1
        return base + high

    def rows(self, step: int, size: int) -> list[int]:
        """The numbers of a step's rows, `size` of them. Process `rank` of `world` takes `rows(…)[rank::world]`."""
        return self.numbers(range(step * size, (step + 1) * size))

    def numbers(self, places: range) -> list[int]:
        """The numbers of the rows at these places of the run's order; at least one."""
        epochs, rows = Epochs(self.num_sequences, self.seed)(np.array(places, dtype=np.int64))
        return (epochs * self.num_sequences + rows).tolist()

    def gather(self, rows: Sequence[int]) -> Packed:
        """The rows of these numbers."""
        return collate([self.sequence(row) for row in rows])

    def batch(self, step: int, size: int) -> Packed:
        """The batch of a step, counted from 0 over all epochs: tokens of shape (size, sequence_length + 1)."""
        return self.gather(self.rows(step, size))
