"""Files of instructions to samples: recognised file by file, bad records set aside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tallow.data.instructions.samples import Sample
from tallow.data.instructions.spellings import Ambiguous, Form, instances, read_sample, recognise
from tallow.data.read import read_records
from tallow.data.reading.settings import ReadSettings
from tallow.data.records import Place, Record, Rejected
from tallow.errors import DataError


class Read(NamedTuple):
    """A sample, what it was recognised as, and the record that it was read from."""

    sample: Sample
    form: Form
    record: Record


def read_samples(
    sources: str | Path | Iterable[str | Path],
    rejected: Rejected,
    spelling: str | None = None,
    settings: ReadSettings | None = None,
) -> Iterator[Read]:
    """Stream what instruction files hold.

    All records of a file have one spelling, that of its first good one. What has none, or is malformed, is set aside;
    who finds more that is wrong calls `set_aside`.

    Args:
        sources: What `read_records` takes.
        rejected: Counts what is set aside.
        spelling: Which of `SPELLINGS` all files have, where it cannot be told.
        settings: How to read.

    Raises:
        DataError: A file has records of several forms, or of a form that could be several spellings; or as
            `read_records`.
    """
    forms: dict[str, tuple[Form, Place]] = {}
    for record in read_records(sources, settings, rejected):
        name = record.place.source.name
        try:
            parts = instances(record.fields)
            form = recognise(parts[0], spelling)
        except Ambiguous as error:
            raise DataError(f"{record.place} {error.message}", error.hint) from error
        except DataError as error:
            set_aside(rejected, record, error)
            continue
        known, first = forms.setdefault(name, (form, record.place))
        if known != form:
            raise DataError(
                f"{name} is mixed: {first.unit} {first.number} is one of {known}, "
                f"{first.unit} {record.place.number} one of {form}",
                "put them into files of their own",
            )
        try:
            samples = [read_sample(part, form) for part in parts]
        except DataError as error:
            set_aside(rejected, record, error)
            continue
        for sample in samples:
            yield Read(sample, form, record)


def set_aside(rejected: Rejected, record: Record, error: DataError) -> None:
    """Count a record as bad that was counted as good."""
    rejected.good -= 1
    rejected.add(record.place, error.message, json.dumps(record.fields, default=str).encode(), error.hint)
