"""Looking at what the stage prepare has made: which documents were kept and dropped, and what other bounds would do."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from tallow.data.config import PrepareConfig
from tallow.data.examine import Examined, examine, rules_of
from tallow.data.inputs import Inputs
from tallow.data.reading.settings import ReadSettings
from tallow.data.record import RECORD, Figures, PrepareRecord
from tallow.data.steps.judge import broken_bound
from tallow.data.steps.read import READ
from tallow.data.steps.tables import edits_of, known_columns, words
from tallow.data.steps.tally import KEPT, plain, ranks, shown
from tallow.data.work.engines import LocalEngine
from tallow.data.work.step import Task
from tallow.data.work.work import Work
from tallow.errors import DataError, UsageError
from tallow.files import PARTIAL, read_json
from tallow.recipe import apply_overrides, load_recipe, parse_section
from tallow.run import RECIPE, WORK

STAGE = "prepare"


class Prepared(NamedTuple):
    """What the stage prepare has made: its directory, and what it has left for those who ask."""

    directory: Path
    record: PrepareRecord

    @property
    def config(self) -> PrepareConfig:
        return parse_section(PrepareConfig, self.record.settings, STAGE)

    @contextmanager
    def examine(self, config: PrepareConfig, samples: bool = True) -> Iterator[Examined]:
        """What is known of all documents by some settings; what that lacks is there as long as the context."""
        place = self.directory / f".asked.{os.getpid()}{PARTIAL}"
        try:
            with _WithoutSources(1) as engine:
                work = Work(place, engine, self.directory / WORK, Inputs(self.record.inputs))
                yield examine(config, work, self.record.reads, samples)
        finally:
            shutil.rmtree(place, ignore_errors=True)


class _WithoutSources(LocalEngine):
    """Reads no source again: the record is of what was in it then."""

    def run(self, tasks: Sequence[Task]) -> Iterator[None]:
        if any(task.step.name == READ.name for task in tasks):
            raise DataError("some of the documents that were read are gone", "prepare them anew, with --fresh")
        return super().run(tasks)


def open_prepared(run: Path) -> Prepared:
    """Read what the stage prepare has left.

    Args:
        run: `runs/NAME`, or `runs/NAME/prepare`.

    Raises:
        DataError: The stage was not done there, or not to its end.
    """
    places = (run, run / STAGE)
    directory = next((place for place in places if (place / WORK / f"{RECORD}.json").is_file()), None)
    if directory is None and any((place / "documents").is_dir() for place in places):
        raise DataError(f"what was found out about the documents of {run} is gone", "prepare them anew, with --fresh")
    if directory is None:
        raise DataError(f"{run} holds no prepared documents", f"name a run in which the stage {STAGE} was done")
    path = directory / WORK / f"{RECORD}.json"
    try:
        record = PrepareRecord.model_validate(read_json(path, "record"))
    except ValidationError as error:
        raise DataError(f"{path} is damaged, or of another version", "prepare anew, with --fresh") from error
    recipe = directory / RECIPE
    if recipe.is_file():
        begun = parse_section(PrepareConfig, load_recipe(recipe)[STAGE], STAGE)
        if begun.result_settings() != record.settings:
            raise DataError(f"{directory} was begun with other settings and not finished", "prepare it to its end")
    return Prepared(directory, record)


@dataclass(frozen=True)
class WhatIf:
    """What came of all documents now, and what would with other settings.

    Args:
        now, then: That.
        changed: Files that hold something else by now; both are about what they held.
    """

    now: Figures
    then: Figures
    changed: list[str]

    def rows(self) -> Iterator[tuple[str, int, int]]:
        """Each reason, and how many documents it drops now and then."""
        now, then = ({drop.reason: drop.first for drop in figures.drops} for figures in (self.now, self.then))
        for reason in dict.fromkeys([*now, *then]):
            yield reason, now.get(reason, 0), then.get(reason, 0)

    def as_json(self) -> dict[str, Any]:
        return {
            "kept": {
                name: {"documents": figures.documents, "bytes": figures.bytes}
                for name, figures in (("now", self.now), ("then", self.then))
            },
            "dropped": {reason: {"now": now, "then": then} for reason, now, then in self.rows()},
            "changed": self.changed,
        }


def what_if(run: Path, overrides: Sequence[str]) -> WhatIf:
    """Judge documents by other settings, from the columns that are there; what they lack is made, and not kept.

    Sources are not looked at again, whether they have changed or are gone.

    Args:
        run: As in `open_prepared`.
        overrides: `quality.gopher.min_words=20`, say; `prepare.` may stand before it.

    Raises:
        UsageError: There is no such setting, or it is of how sources are read.
        DataError: The stage was not done there.
    """
    if not overrides:
        raise UsageError("what if what?", "name a setting: --set quality.gopher.min_words=20")
    prepared = open_prepared(run)
    plain_names = [override.removeprefix(f"{STAGE}.") for override in overrides]
    example = "quality.gopher.min_words=20"
    changed = apply_overrides(prepared.record.settings, plain_names, "key=value", example)
    _refuse_to_read(prepared.record.settings, changed)
    with prepared.examine(parse_section(PrepareConfig, changed, STAGE), samples=False) as found:
        return WhatIf(prepared.record.figures, Figures.of(found), prepared.record.changed())


def _refuse_to_read(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Settings of reading ask for other documents, of which nothing is known.

    Raises:
        UsageError: One was changed.
    """
    for name in ("sources", "part_mb", *ReadSettings.model_fields):
        if name in then and then[name] != now[name]:
            raise UsageError(
                f"{STAGE}.{name} is about how sources are read, and what is known is of what was read",
                f"set it in the recipe, and run tallow {STAGE}",
            )


def show(run: Path, fate: str | None, count: int, skip: int = 0, seed: int = 0) -> list[dict[str, Any]]:
    """Some documents, with what is known of them, in an order that the seed shuffles; what is private is replaced.

    Args:
        run: As in `open_prepared`.
        fate: `kept`, or what has dropped them; None: all.
        count: How many.
        skip: So many come before them.

    Raises:
        UsageError: Nothing has come to this.
    """
    prepared = open_prepared(run)
    with prepared.examine(prepared.config) as found:
        fates = found.fates()
        if fate is not None and fate not in fates:
            raise UsageError(f"no document has come to {fate!r}", f"there are: {', '.join(sorted(fates))}")
        chosen = _choose(found, fate, slice(skip, skip + count), seed)
        known = dict[tuple[int, int], dict[str, Any]]()
        for number in {number for number, _ in chosen}:  # each part is read once, however many are wanted of it
            rows = [row for part, row in chosen if part == number]
            known |= {
                (number, row): told for row, told in zip(rows, _told(found, prepared.config, number, rows), strict=True)
            }
        return [known[place] for place in chosen]


def _choose(found: Examined, fate: str | None, wanted: slice, seed: int) -> list[tuple[int, int]]:
    """Parts and rows of the documents on a page."""
    order, places = [np.empty(0, np.uint64)], [np.empty((0, 2), np.int64)]
    for number, (part, verdicts) in enumerate(zip(found.parts, found.verdicts, strict=True)):
        reasons = np.array([reason or KEPT for reason in verdicts.read()["dropped_by"].to_pylist()], dtype=object)
        rows = np.flatnonzero(reasons == fate) if fate is not None else np.arange(len(reasons))
        order.append(ranks(words(part.read(columns=["id"])["id"])[rows, 0], seed))
        places.append(np.stack([np.full(len(rows), number), rows], axis=1))
    chosen = np.argsort(np.concatenate(order), kind="stable")[wanted]
    if wanted.start and not len(chosen):
        raise UsageError("there are no documents on that page", f"{sum(map(len, order)):,} have come to this")
    return [(number, row) for number, row in np.concatenate(places)[chosen].tolist()]


def _told(found: Examined, config: PrepareConfig, number: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What is known of some documents of a part."""
    reasons = found.verdicts[number].read()["dropped_by"].take(rows).to_pylist()
    tables = [parts[number].read().take(rows) for parts in found.columns.values()]
    edits = [edits_of(parts[number].read().take(rows)) for parts in found.edits]
    read, documents = (parts[number].read().take(rows) for parts in (found.read, found.parts))
    for place, reason in enumerate(reasons):
        document = (read if reason else documents).slice(place, 1).to_pylist()[0]
        columns = {name: column[place].as_py() for name, column in known_columns(tables).items()}
        broken = broken_bound(rules_of(config), reason, columns) if reason else None
        made = [each.slice(place, 1) for each in edits]
        yield {
            "id": document["id"].hex(),
            "source": document["source"],
            "offset": document["offset"],
            "fate": reason or KEPT,
            "broken": None if broken is None else {name: plain(value) for name, value in broken._asdict().items()},
            "columns": {name: plain(value) for name, value in columns.items()},
            "text": shown(document["text"], None if reason else made, config.privacy),
        }
