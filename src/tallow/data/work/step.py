"""A step: a pure function from tables to tables, and the files that hold what it makes.

What a task makes is named by a hash of the step, its version, its settings and what it was given. So a file is never
out of date, work that is done is found again after a kill at any instant, and nothing depends on who did it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from tallow.errors import DataError, writing
from tallow.files import atomic_file, hash_value
from tallow.kernels.memory import return_freed_memory
from tallow.recipe import Section

AnyConfig = TypeVar("AnyConfig", bound=Section)
Counts = Mapping[str, int | float]
SCHEMA_START = 8
"""In an Arrow file, behind its mark; https://arrow.apache.org/docs/format/Columnar.html, "IPC File Format"."""

START = np.dtype("<i8")
HINT = "remove it, and run the same command again"


class Made(NamedTuple):
    """A table that a step has made, or pieces of one that can be read apart, and what it counted on the way."""

    table: pa.Table | Sequence[pa.RecordBatch]
    counts: Counts = MappingProxyType({})


@dataclass(frozen=True)
class Step(Generic[AnyConfig]):
    """A pure function from tables to tables.

    Args:
        name: Where it is: `module:attribute`, so that another process finds it.
        version: To be raised whenever the same settings and tables give something else.
        config: Class of its settings.
        function: From its settings and the tables it is given to those that it makes, one after another.
    """

    name: str
    version: int
    config: type[AnyConfig]
    function: Callable[[AnyConfig, Sequence[pa.Table]], Iterable[Made]]

    @staticmethod
    def find(name: str) -> Step[Any]:
        module, _, attribute = name.partition(":")
        step = getattr(import_module(module), attribute)
        assert isinstance(step, Step)
        assert step.name == name
        return step


class PartRecord(Section):
    """What is noted of a table that was made: size of its file, rows, how many pieces, and what was counted."""

    bytes: int
    rows: int
    pieces: int
    counts: dict[str, int | float]


class Record(Section):
    """What is noted of a task that is done."""

    step: str
    parts: tuple[PartRecord, ...]


@dataclass(frozen=True)
class Part:
    """A table on disk.

    Args:
        path: An Arrow file; its name tells what made it of what.
        rows: How many it has.
        counts: What the step that made it has counted.
    """

    path: Path
    rows: int
    counts: Counts = field(default_factory=dict)

    @property
    def starts(self) -> Path:
        """Where in its file the pieces begin that its maker gave it, if it did; 64 bits each.

        They stay on disk: where all parts send each other pieces, there are the square of the parts.
        """
        return self.path.with_suffix(".starts")

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The table.

        Args:
            columns: Only these, in the table's own order.

        Raises:
            DataError: It is missing or damaged.
        """
        try:
            with pa.memory_map(str(self.path)) as file:
                options = pa.ipc.IpcReadOptions(use_threads=False)
                reader = pa.ipc.open_file(file, options=options)
                if columns is not None:
                    options.included_fields = sorted(reader.schema.get_field_index(name) for name in columns)
                    reader = pa.ipc.open_file(file, options=options)
                return reader.read_all()
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self) from error


class Pieces(NamedTuple):
    """The same piece of several parts, such as a bucket of what each has dealt out."""

    parts: Sequence[Part]
    batch: int

    def read(self) -> list[pa.Table]:
        """The piece of each. No more of the files is looked at: where all send each other pieces, there are many.

        Raises:
            DataError: As `Part.read`.
        """
        return [*self._read()]

    def _read(self) -> Iterator[pa.Table]:
        schema: pa.Schema | None = None
        for part in self.parts:
            try:
                with open(part.starts, "rb", buffering=0) as starts:
                    starts.seek(self.batch * START.itemsize)
                    [start] = np.frombuffer(starts.read(START.itemsize), START).tolist()
                with pa.OSFile(str(part.path)) as file:
                    schema = schema or _read_schema(file)
                    file.seek(start)
                    yield pa.Table.from_batches([pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)])
            except (pa.ArrowException, OSError, ValueError, EOFError) as error:
                raise _damaged(part) from error


def beside(*columns: Sequence[Part]) -> list[tuple[Part, ...]]:
    """Parts, and tables that lie beside them: what a task a part is given."""
    return [*zip(*columns, strict=True)]


def _damaged(part: Part) -> DataError:
    return DataError(f"{part.path.with_suffix('.*')} is missing or damaged", HINT)


@dataclass(frozen=True)
class Task:
    """A step's work on some parts, or pieces of them."""

    step: Step[Any]
    config: Section
    given: Sequence[Part | Pieces]
    directory: Path

    @cached_property
    def key(self) -> str:
        given = [[part.path.stem, batch] for parts, batch in self._given() for part in parts]
        return hash_value([self.step.name, self.step.version, self.config.result_settings(), given])[:32]

    @property
    def size(self) -> int:
        """How many parts it is given, of some of which it wants a piece only."""
        return sum(len(parts) for parts, _ in self._given())

    @property
    def record(self) -> Path:
        """The file that is there once all is made."""
        return self.directory / f"{self.key}.json"

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step.name,
            "config": self.config.model_dump(mode="json"),
            "given": [[[[str(part.path), part.rows] for part in parts], batch] for parts, batch in self._given()],
            "directory": str(self.directory),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Task:
        step = Step[Any].find(value["step"])
        given = list[Part | Pieces]()
        for named, batch in value["given"]:
            parts = [Part(Path(path), rows) for path, rows in named]
            given.append(parts[0] if batch is None else Pieces(parts, batch))
        return Task(step, step.config.model_validate(value["config"]), given, Path(value["directory"]))

    def _given(self) -> Iterator[tuple[Sequence[Part], int | None]]:
        return (((each,), None) if isinstance(each, Part) else each for each in self.given)

    def done(self) -> list[Part] | None:
        """What was made, if all of it was."""
        try:
            record = Record.model_validate_json(self.record.read_bytes())
            found = [Part(self._path(number), part.rows, part.counts) for number, part in enumerate(record.parts)]
            whole = all(
                part.path.stat().st_size == noted.bytes
                and (not noted.pieces or part.starts.stat().st_size == noted.pieces * START.itemsize)
                for part, noted in zip(found, record.parts, strict=True)
            )
        except (OSError, ValidationError):
            return None
        return found if whole else None

    def perform(self) -> None:
        """Do the work.

        Raises:
            TallowError: What the step says of its tables, or there is no room for what it makes.
        """
        record = Record(step=self.step.name, parts=tuple(self._make()))
        with writing(self.record), atomic_file(self.record, durable=False) as temporary:
            temporary.write_text(record.model_dump_json(), encoding="utf-8")
        pa.default_memory_pool().release_unused()
        return_freed_memory()

    def _make(self) -> Iterator[PartRecord]:
        """Write the tables, each before the next one is made."""
        tables = [table for each in self.given for table in ([each.read()] if isinstance(each, Part) else each.read())]
        for number, (table, counts) in enumerate(self.step.function(self.config, tables)):
            in_pieces = isinstance(table, Sequence)
            batches = table if in_pieces else table.to_batches() or [_empty(table.schema)]
            part = Part(self._path(number), sum(batch.num_rows for batch in batches))
            size, starts = write_batches(batches, part.path, compressed=not in_pieces)
            if in_pieces:
                with writing(part.starts), atomic_file(part.starts, durable=False) as temporary:
                    np.array(starts, START).tofile(temporary)
            pieces = len(starts) if in_pieces else 0
            yield PartRecord(bytes=size, rows=part.rows, pieces=pieces, counts=dict(counts))

    def _path(self, number: int) -> Path:
        return self.directory / f"{self.key}-{number:05}.arrow"


def write_batches(
    batches: Sequence[pa.RecordBatch], path: Path, *, compressed: bool = True
) -> tuple[int, tuple[int, ...]]:
    """Write an Arrow file, which need not outlive a loss of power.

    Args:
        batches: At least one.
        path: Where.
        compressed: Which pieces are not, being small, and mostly hashes.

    Returns:
        Its size in bytes, and where each batch begins.
    """
    options = pa.ipc.IpcWriteOptions(compression="lz4" if compressed else None)
    ends = list[int]()
    with (
        writing(path),
        atomic_file(path, durable=False) as temporary,
        open(temporary, "wb") as file,
        pa.ipc.new_file(file, batches[0].schema, options=options) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)
            ends.append(file.tell())
    with pa.OSFile(str(path)) as written:
        _read_schema(written)
        return written.size(), (written.tell(), *ends[:-1])


def _read_schema(file: pa.NativeFile) -> pa.Schema:
    """Of an Arrow file, which is then at its first batch."""
    file.seek(SCHEMA_START)
    return pa.ipc.read_schema(file)


def pieces(table: pa.Table, starts: Sequence[int]) -> list[pa.RecordBatch]:
    """Rows from each start to the next one, in a batch of their own, also where there are none."""
    whole = table.combine_chunks()
    return [
        batch
        for begin, end in zip(starts, [*starts[1:], whole.num_rows], strict=True)
        for batch in whole.slice(begin, end - begin).to_batches() or [_empty(whole.schema)]
    ]


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=schema)
