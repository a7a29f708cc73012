"""What is dropped for itself, whatever else there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.steps.tables import VERDICTS
from tallow.data.work.step import Made, Step
from tallow.recipe import Section

TOO_SHORT = "too short"


class FilterConfig(Section):
    """Fewer characters than this, white space at the ends not counted, are too short."""

    min_chars: int


def _filter(config: FilterConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    [documents] = tables
    trimmed = pc.call_function("utf8_trim_whitespace", [documents.column("text")])
    short = pc.call_function("less", [pc.call_function("utf8_length", [trimmed]), pa.scalar(config.min_chars)])
    verdicts = pc.call_function("if_else", [short, pa.scalar(TOO_SHORT), pa.scalar(None, pa.string())])
    yield Made(pa.table([verdicts], schema=VERDICTS))


FILTER = Step(f"{__name__}:FILTER", 1, FilterConfig, _filter)
