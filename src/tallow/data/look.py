"""Looking at what the stage prepare has made: which documents were kept and dropped, and what other bounds would do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tallow.data.config import PrepareConfig
from tallow.data.drops import Drop, drop_table
from tallow.data.examine import Examined, examine
from tallow.data.privacy.config import PrivacyConfig
from tallow.data.steps.tables import edits_of, known_columns, words
from tallow.data.steps.tally import KEPT, plain, ranks, shown
from tallow.data.work.engines import LocalEngine
from tallow.data.work.work import Work
from tallow.errors import DataError, UsageError
from tallow.recipe import apply_overrides, load_recipe, parse_section
from tallow.run import RECIPE

STAGE = "prepare"


class Prepared(NamedTuple):
    """What the stage prepare has made: its directory, settings, and what it found out."""

    directory: Path
    config: PrepareConfig
    found: Examined


def open_prepared(run: Path) -> Prepared:
    """Read what was found out about all documents; nothing is done again that is still there.

    Args:
        run: `runs/NAME`, or `runs/NAME/prepare`.

    Raises:
        DataError: The stage was not done there.
    """
    directory = next((place for place in (run, run / STAGE) if (place / "work").is_dir()), None)
    if directory is None and any((place / "documents").is_dir() for place in (run, run / STAGE)):
        raise DataError(f"what was found out about the documents of {run} is gone", "prepare them anew, with --fresh")
    if directory is None or not (directory / RECIPE).is_file():
        raise DataError(f"{run} holds no prepared documents", f"name a run in which the stage {STAGE} was done")
    config = parse_section(PrepareConfig, load_recipe(directory / RECIPE)[STAGE], STAGE)
    return Prepared(directory, config, _examine(directory, config))


def _examine(directory: Path, config: PrepareConfig) -> Examined:
    with LocalEngine(1) as engine:
        return examine(config, Work(directory / "work", engine))


@dataclass(frozen=True)
class WhatIf:
    """What drops documents now, and what would with other settings; documents and bytes that are kept."""

    now: list[Drop]
    then: list[Drop]
    kept_now: tuple[int, int]
    kept_then: tuple[int, int]

    def rows(self) -> Iterator[tuple[str, int, int]]:
        """Each reason, and how many documents it drops now and then."""
        now, then = ({drop.reason: drop.first for drop in drops} for drops in (self.now, self.then))
        for reason in dict.fromkeys([*now, *then]):
            yield reason, now.get(reason, 0), then.get(reason, 0)

    def as_json(self) -> dict[str, Any]:
        keys = ("documents", "bytes")
        return {
            "kept": {
                "now": dict(zip(keys, self.kept_now, strict=True)),
                "then": dict(zip(keys, self.kept_then, strict=True)),
            },
            "dropped": {reason: {"now": now, "then": then} for reason, now, then in self.rows()},
        }


def what_if(run: Path, overrides: Sequence[str]) -> WhatIf:
    """Judge documents by other settings, from the columns that are there; what they lack is made first, and kept.

    Args:
        run: As in `open_prepared`.
        overrides: `quality.gopher.min_words=20`, say; `prepare.` may stand before it.

    Raises:
        UsageError: There is no such setting.
        DataError: The stage was not done there.
    """
    if not overrides:
        raise UsageError("what if what?", "name a setting: --set quality.gopher.min_words=20")
    directory, config, now = open_prepared(run)
    plain_names = [override.removeprefix(f"{STAGE}.") for override in overrides]
    values = config.model_dump(mode="json")
    changed = apply_overrides(values, plain_names, "key=value", "quality.gopher.min_words=20")
    then = _examine(directory, parse_section(PrepareConfig, changed, STAGE))
    return WhatIf(drop_table(now), drop_table(then), _kept(now), _kept(then))


def _kept(found: Examined) -> tuple[int, int]:
    rows = [row for row in found.groups().to_pylist() if row["fate"] == KEPT]
    return sum(row["documents"] for row in rows), sum(row["left"] for row in rows)


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
    _, config, found = open_prepared(run)
    fates = found.fates()
    if fate is not None and fate not in fates:
        raise UsageError(f"no document has come to {fate!r}", f"there are: {', '.join(sorted(fates))}")
    order, places = [np.empty(0, np.uint64)], [np.empty((0, 2), np.int64)]
    for number, (part, verdicts) in enumerate(zip(found.parts, found.verdicts, strict=True)):
        reasons = np.array([reason or KEPT for reason in verdicts.read()["dropped_by"].to_pylist()], dtype=object)
        rows = np.flatnonzero(reasons == fate) if fate is not None else np.arange(len(reasons))
        order.append(ranks(words(part.read(columns=["id"])["id"])[rows, 0], seed))
        places.append(np.stack([np.full(len(rows), number), rows], axis=1))
    chosen = np.argsort(np.concatenate(order), kind="stable")[skip : skip + count]
    if skip and not len(chosen):
        raise UsageError("there are no documents on that page", f"{sum(map(len, order)):,} have come to this")
    return [_document(found, config.privacy, *place) for place in np.concatenate(places)[chosen].tolist()]


def _document(found: Examined, privacy: PrivacyConfig | None, number: int, row: int) -> dict[str, Any]:
    reason = found.verdicts[number].read().slice(row, 1).to_pylist()[0]["dropped_by"]
    tables = [parts[number].read().slice(row, 1) for parts in found.columns.values()]
    columns = {name: column[0].as_py() for name, column in known_columns(tables).items()}
    document = (found.read if reason else found.parts)[number].read().slice(row, 1).to_pylist()[0]
    edits = [edits_of(parts[number].read().slice(row, 1)) for parts in found.edits]
    return {
        "id": document["id"].hex(),
        "source": document["source"],
        "offset": document["offset"],
        "fate": reason or KEPT,
        "columns": {name: plain(value) for name, value in columns.items()},
        "text": shown(document["text"], None if reason else edits, privacy),
    }
