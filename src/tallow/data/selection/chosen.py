"""Instructions chosen by a score: which they are, their records as they were, every score, and a report to read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tallow.data.records import Record
from tallow.errors import DataError, UsageError
from tallow.files import write_json, write_text

RANGES = 10
"""Ranges of scores with as many samples each, of which the report says how many were chosen."""

SHOWN = 3
"""Of the best and of the worst samples."""

CHARACTERS = 300
"""Of each text of a sample that is shown."""


class Scored(NamedTuple):
    """A sample of a file of instructions.

    Args:
        record: Where it stands; a record may hold several.
        score: What it is chosen by; None: it has none, and cannot be chosen.
        scores: All that was measured, by name.
        out: Why it cannot be chosen though it has a score, if so.
    """

    record: Record
    score: float | None
    scores: Mapping[str, float | None]
    out: str | None = None


@dataclass(frozen=True)
class Wanted:
    """How much is taken: a share of the samples that could be chosen, rounded up, or so many of them."""

    fraction: float | None = None
    count: int | None = None

    def of(self, total: int) -> int:
        share = math.ceil(round((self.fraction or 0) * total, 6))  # a tenth of thirty is three
        return min(total, share if self.count is None else self.count)


def wanted(fraction: float | None, count: int | None, default: float) -> Wanted:
    """What a user has asked for, `default` being the share if that is nothing.

    Raises:
        UsageError: Both are given, or they make no sense.
    """
    if fraction is not None and count is not None:
        raise UsageError("a fraction and a count are given", "give one of them")
    if fraction is not None and not 0 < fraction <= 1:
        raise UsageError(f"a fraction of {fraction:g} cannot be taken", "set it above 0, and at most to 1")
    if count is not None and count < 1:
        raise UsageError(f"a count of {count} cannot be taken", "set it to 1 or more")
    return Wanted(default if fraction is None and count is None else fraction, count)


def choose_best(scored: Sequence[Scored], much: Wanted, lowest: bool = False) -> list[int]:
    """Numbers of the samples with the highest scores (or the lowest ones), in their order; of equal ones the first.

    Raises:
        DataError: None can be chosen.
    """
    ranked = _ranked(scored, lowest)
    if not ranked:
        raise DataError("there is nothing to choose from", "give other files, or wider bounds")
    return sorted(ranked[: much.of(len(ranked))])


def write_chosen(
    out: Path, scored: Sequence[Scored], chosen: Sequence[int], settings: Mapping[str, Any], lowest: bool = False
) -> dict[str, Any]:
    """Write the records of what was chosen, as they were, to a JSONL file.

    Beside it, `<out>.scores.jsonl` has the place and all scores of every sample, so that another share can be taken
    without measuring again, and `<out>.json` the report and all settings.

    Args:
        out: The file.
        scored: All samples.
        chosen: Numbers of those that were chosen, at least one.
        settings: To be noted.
        lowest: Whether low scores are the better ones.

    Returns:
        The report: `path`; `selected` and `examples` (samples); `records` (written); `score` of the last one taken;
        `left_out`: how many could not be chosen, and why; `ranges` of scores from the best to the worst (`from`, `to`,
        `examples`, `selected`); `best` and `worst` samples that could be chosen, from the
        ends (`score`, `place`, `selected`, `record`).

    Raises:
        CapacityError: The disk is full.
        UsageError: The place cannot be written.
    """
    taken, records = set(chosen), dict[int, Record]()
    for number in chosen:
        records.setdefault(id(scored[number].record), scored[number].record)
    write_text(out, _lines(record.fields for record in records.values()))
    write_text(
        out.with_name(f"{out.name}.scores.jsonl"),
        _lines(
            {
                "place": str(sample.record.place),
                "scores": dict(sample.scores),
                "selected": number in taken,
                **({"left_out": sample.out} if sample.out else {}),
            }
            for number, sample in enumerate(scored)
        ),
    )
    ranked = _ranked(scored, lowest)
    left_out: dict[str, int] = {}
    for sample in scored:
        if (reason := sample.out or ("no score" if sample.score is None else None)) is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
    last = next(number for number in reversed(ranked) if number in taken)
    result = {
        "selected": len(chosen),
        "examples": len(scored),
        "records": len(records),
        "score": scored[last].score,
        "left_out": left_out,
        "ranges": _ranges(scored, ranked, taken),
        "best": [_shown(scored[number], number in taken) for number in ranked[:SHOWN]],
        "worst": [_shown(scored[number], number in taken) for number in ranked[-SHOWN:][::-1]],
    }
    write_json(out.with_name(f"{out.name}.json"), {**result, **settings})
    return {"path": str(out), **result}


def _ranked(scored: Sequence[Scored], lowest: bool) -> list[int]:
    """Numbers of what could be chosen, the best first."""
    able = [
        (sample.score if lowest else -sample.score, number)
        for number, sample in enumerate(scored)
        if sample.score is not None and not sample.out
    ]
    return [number for _, number in sorted(able)]


def _ranges(scored: Sequence[Scored], ranked: Sequence[int], taken: set[int]) -> list[dict[str, Any]]:
    starts = [len(ranked) * place // RANGES for place in range(RANGES + 1)]
    return [
        {
            "from": scored[ranked[start]].score,
            "to": scored[ranked[end - 1]].score,
            "examples": end - start,
            "selected": sum(number in taken for number in ranked[start:end]),
        }
        for start, end in pairwise(starts)
        if end > start
    ]


def _shown(sample: Scored, selected: bool) -> dict[str, Any]:
    place = str(sample.record.place)
    return {"score": sample.score, "place": place, "selected": selected, "record": _shortened(sample.record.fields)}


def _shortened(value: Any) -> Any:
    """A JSON value whose texts have their beginning alone."""
    if isinstance(value, str):
        return value if len(value) <= CHARACTERS else f"{value[:CHARACTERS]} …"
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    return value


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
