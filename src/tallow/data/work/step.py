"""A step: a pure function from tables to tables, and the files that hold what it makes.

What a task makes is named by a hash of the step, its version, its settings and what it was given. So a file is never
out of date, work that is done is found again after a kill at any instant, and nothing depends on who did it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

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
    """What is noted of a table that was made: size of its file, rows, where its pieces begin, and what was counted."""

    bytes: int
    rows: int
    starts: tuple[int, ...]
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
        starts: Where in the file the pieces begin that its maker gave it, such as buckets; as compact as can be, since
            there are the square of the parts where all send each other pieces.
    """

    path: Path
    rows: int
    counts: Counts = field(default_factory=dict)
    starts: Sequence[int] | Mapping[int, int] = ()

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
            raise DataError(f"{self.path} is missing or damaged", HINT) from error

    def read_piece(self, batch: int) -> pa.Table:
        """One of its pieces. No more of the file is looked at: where all parts send each other pieces, there are many.

        Raises:
            DataError: As `read`.
        """
        try:
            with pa.OSFile(str(self.path)) as file:
                schema = _read_schema(file)
                file.seek(self.starts[batch])
                return pa.Table.from_batches([pa.ipc.read_record_batch(pa.ipc.read_message(file), schema)])
        except (pa.ArrowException, OSError, EOFError) as error:
            raise DataError(f"{self.path} is missing or damaged", HINT) from error


class Input(NamedTuple):
    """What a task is given: a part, or one piece of it."""

    part: Part
    batch: int | None = None

    def read(self) -> pa.Table:
        return self.part.read() if self.batch is None else self.part.read_piece(self.batch)


@dataclass(frozen=True)
class Task:
    """A step's work on some parts."""

    step: Step[Any]
    config: Section
    inputs: tuple[Input, ...]
    directory: Path

    @property
    def key(self) -> str:
        given = [[part.path.stem, batch] for part, batch in self.inputs]
        return hash_value([self.step.name, self.step.version, self.config.result_settings(), given])[:32]

    @property
    def record(self) -> Path:
        """The file that is there once all is made."""
        return self.directory / f"{self.key}.json"

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.step.name,
            "config": self.config.model_dump(mode="json"),
            "inputs": [
                [str(part.path), part.rows, batch, None if batch is None else part.starts[batch]]
                for part, batch in self.inputs
            ],
            "directory": str(self.directory),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Task:
        step = Step[Any].find(value["step"])
        inputs = tuple(
            Input(Part(Path(path), rows, starts={batch: start}), batch) for path, rows, batch, start in value["inputs"]
        )
        return Task(step, step.config.model_validate(value["config"]), inputs, Path(value["directory"]))

    def done(self) -> list[Part] | None:
        """What was made, if all of it was."""
        try:
            record = Record.model_validate_json(self.record.read_bytes())
            sizes = [self._path(number).stat().st_size for number in range(len(record.parts))]
        except (OSError, ValidationError):
            return None
        if sizes != [part.bytes for part in record.parts]:
            return None
        return [
            Part(self._path(number), part.rows, part.counts, array("q", part.starts))
            for number, part in enumerate(record.parts)
        ]

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
        tables = [given.read() for given in self.inputs]
        for number, (table, counts) in enumerate(self.step.function(self.config, tables)):
            in_pieces = isinstance(table, Sequence)
            batches = table if in_pieces else table.to_batches() or [_empty(table.schema)]
            size, starts = write_batches(batches, self._path(number), compressed=not in_pieces)
            rows = sum(batch.num_rows for batch in batches)
            yield PartRecord(bytes=size, rows=rows, starts=starts if in_pieces else (), counts=dict(counts))

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
