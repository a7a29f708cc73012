"""What is dropped for itself, whatever else there is: by columns alone, so that other bounds need no texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.quality import families
from tallow.data.quality.families import QualityRules
from tallow.data.quality.rule import Verdicts
from tallow.data.steps.lines import CHARS_READ
from tallow.data.steps.measure import CHARS
from tallow.data.steps.tables import VERDICTS
from tallow.data.work.step import Made, Step
from tallow.recipe import Section

NOTHING_OF_LINES = "nothing left of lines"
TOO_SHORT = "too short"
LANGUAGE = "language"


class Bound(Section):
    """Documents are dropped whose column has less than `min` or more than `max`; what has none stays.

    Args:
        reason: What is said of them.
        column: Beside the documents.
    """

    reason: str
    column: str
    min: float | None = None
    max: float | None = None


class JudgeConfig(Section):
    """What is asked of documents, in this order; first of all, whether dropping lines has left anything of them.

    Args:
        min_chars: Documents with fewer are too short.
        languages: Which stay; None: all.
        bounds: On columns.
        quality: On the columns that `families.measure` gives.
    """

    min_chars: int
    languages: tuple[str, ...] | None = None
    bounds: tuple[Bound, ...] = ()
    quality: QualityRules | None = None


def _judge(config: JudgeConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """Verdicts, from tables of columns; counts `<which> <rule>`: how many a rule drops (see `Verdicts.counts`)."""
    columns = {name: table[name] for table in tables for name in table.column_names}
    verdicts = _all(config, columns, tables[0].num_rows)
    counts = {f"{which} {rule}": count for rule, found in verdicts.counts().items() for which, count in found.items()}
    yield Made(pa.table([verdicts.first()], schema=VERDICTS), counts)


def _all(config: JudgeConfig, columns: Mapping[str, pa.ChunkedArray], rows: int) -> Verdicts:
    names, drops = list[str](), list[npt.NDArray[np.bool_]]()
    chars = columns[CHARS].to_numpy()
    if CHARS_READ in columns:
        names.append(NOTHING_OF_LINES)
        drops.append((chars == 0) & (columns[CHARS_READ].to_numpy() > 0))
    names.append(TOO_SHORT)
    drops.append(chars < config.min_chars)
    if config.languages is not None:
        names.append(LANGUAGE)
        among = pc.call_function("is_in", [columns[LANGUAGE]], pc.SetLookupOptions(pa.array(config.languages)))
        drops.append(~among.to_numpy())
    for bound in config.bounds:
        names.append(bound.reason)
        drops.append(_beyond(columns[bound.column], bound))
    if config.quality is not None:
        known = columns[LANGUAGE].combine_chunks() if LANGUAGE in columns else None
        metrics = {
            name: column.to_numpy() for name, column in columns.items() if name.partition(".")[0] in families.RULES
        }
        found = families.decide(metrics, config.quality, known)
        names += found.rules
        drops += list(found.drops_DR.T)
    return Verdicts(tuple(names), np.array(drops, dtype=np.bool_).reshape(len(names), rows).T)


class Broken(NamedTuple):
    """The bound that a document has broken.

    Args:
        column: Beside the documents.
        value: What the document has there.
        min, max: The bound, one of them.
    """

    column: str
    value: float
    min: float | None
    max: float | None


def broken_bound(config: JudgeConfig, reason: str, columns: Mapping[str, Any]) -> Broken | None:
    """The bound that a document with these columns was dropped for; None: it was for something else."""
    family, _, name = reason.partition(".")
    rules = getattr(config.quality, family, None) if family in families.RULES else None
    if reason == TOO_SHORT:
        found = Bound(reason=reason, column=CHARS, min=config.min_chars)
    elif rules is not None:
        [rule] = [rule for rule in families.RULES[family] if rule.name == name]
        bound = {name.partition("_")[0]: getattr(rules, name)}
        found = Bound(reason=reason, column=f"{family}.{rule.metric}", **bound)
    else:
        found = next((bound for bound in config.bounds if bound.reason == reason), None)
    if found is None:
        return None
    value = columns[found.column]
    below = found.min is not None and value < found.min
    return Broken(found.column, value, found.min if below else None, None if below else found.max)


def _beyond(column: pa.ChunkedArray, bound: Bound) -> npt.NDArray[np.bool_]:
    values = pc.call_function("cast", [column], pc.CastOptions.safe(pa.float64())).to_numpy()
    beyond = np.zeros(len(values), dtype=np.bool_)
    if bound.min is not None:
        beyond |= values < bound.min
    if bound.max is not None:
        beyond |= values > bound.max
    return beyond


JUDGE = Step(f"{__name__}:JUDGE", 1, JudgeConfig, _judge)
