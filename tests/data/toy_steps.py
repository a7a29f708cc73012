"""Steps for tests of those who do them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from tallow.data.work.step import Made, Step, pieces
from tallow.errors import DataError
from tallow.recipe import Section


class Numbers(Section):
    first: int
    count: int
    tables: int = 1


class Plus(Section):
    amount: int = 1
    """What goes wrong, where."""
    wrong: str = ""
    mark: Path | None = None
    spared: int = 0


def _count(config: Numbers, _: Sequence[pa.Table]) -> Iterator[Made]:
    for number in range(config.tables):
        first = config.first + number * config.count
        yield Made(pa.table({"x": range(first, first + config.count)}), {"sum": first})


def _add(config: Plus, tables: Sequence[pa.Table]) -> Iterator[Made]:
    print("not an answer")
    if config.mark is not None and os.getpid() != config.spared:  # whoever of the others comes first
        try:
            config.mark.touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    if config.wrong == "data":
        raise DataError("these numbers are wrong", "count again")
    if config.wrong == "bug":
        raise KeyError("a bug")
    xs = [x + config.amount for table in tables for x in table.column("x").to_pylist()]
    yield Made(pa.table({"x": pa.array(xs, pa.int64())}), {"rows": len(xs)})


def _by_rest(_: Plus, tables: Sequence[pa.Table]) -> Iterator[Made]:
    xs = np.sort(tables[0].column("x").to_numpy() % 3, kind="stable")
    order = np.argsort(tables[0].column("x").to_numpy() % 3, kind="stable")
    starts = np.searchsorted(xs, range(3)).tolist()
    yield Made(pieces(tables[0].take(order), starts))


COUNT = Step(f"{__name__}:COUNT", 1, Numbers, _count)
ADD = Step(f"{__name__}:ADD", 1, Plus, _add)
BY_REST = Step(f"{__name__}:BY_REST", 1, Plus, _by_rest)
