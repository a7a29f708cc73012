"""A quality rule: a bound on a metric, and what rules say of documents by their metrics alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tallow.errors import DataError
from tallow.recipe import Section

Metrics = dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float64]]
"""A column a metric, named `family.metric`."""

UNSPACED = frozenset({"zh", "ja", "th", "lo", "km", "my", "yue", "wuu"})
"""Languages without spaces between words, of which each letter counts as a word."""


@dataclass(frozen=True)
class Languages:
    """Which languages a rule is for: only some, or all but some; ISO 639 codes, what follows a hyphen left out."""

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    def include(self, code: str) -> bool:
        code = code.replace("_", "-").partition("-")[0].lower()
        return code not in self.without and (self.only is None or code in self.only)


ALL = Languages()
ENGLISH = Languages(only=frozenset({"en"}))
SPACED = Languages(without=UNSPACED)


@dataclass(frozen=True)
class Rule:
    """A bound: what it drops are documents with less (`min_…`) or more (`max_…`), never those that are just there.

    Args:
        name: The field of the settings that holds the bound; None there turns the rule off.
        metric: The column, without the family's name.
        languages: To which it is applied. A document of no known language is none of a list.
    """

    name: str
    metric: str
    languages: Languages = ALL

    def __post_init__(self) -> None:
        assert self.name.startswith(("min_", "max_"))


class Verdicts(NamedTuple):
    """Which rules drop which documents.

    Args:
        rules: `family.rule`, in the order in which they are asked.
        drops_DR: Whether a rule (R) drops a document (D).
    """

    rules: tuple[str, ...]
    drops_DR: npt.NDArray[np.bool_]

    def first(self) -> pa.StringArray:
        """The first rule that drops each document; null for those that stay."""
        dropped: npt.NDArray[np.bool_] = np.any(self.drops_DR, axis=1)
        numbers = pa.array(self.drops_DR.argmax(axis=1) if self.rules else np.zeros(len(dropped), np.int64))
        names = pa.array([*self.rules, None], pa.string())
        return pc.call_function(
            "take", [names, pc.call_function("if_else", [pa.array(dropped), numbers, len(self.rules)])]
        )

    def counts(self) -> dict[str, dict[str, int]]:
        """How many documents each rule drops: as the `first`, at `all`, and `alone`, no other rule dropping them."""
        drops_DR = self.drops_DR
        first_DR = drops_DR & (drops_DR.cumsum(axis=1) == 1)
        alone_DR = drops_DR & (drops_DR.sum(axis=1, keepdims=True) == 1)
        columns = {"first": first_DR, "all": drops_DR, "alone": alone_DR}
        return {
            rule: {kind: int(column_DR[:, number].sum()) for kind, column_DR in columns.items()}
            for number, rule in enumerate(self.rules)
        }


def judge(
    family: str,
    rules: Iterable[Rule],
    settings: Section,
    columns: Mapping[str, npt.NDArray[np.generic]],
    languages: pa.StringArray | None = None,
) -> Verdicts:
    """What the rules that `settings` turns on say of documents, by columns alone.

    Args:
        languages: Of each document; null where it is not known. Without this column all are taken to be in a language
            that each rule is for.

    Raises:
        DataError: A column is missing.
    """
    names: list[str] = []
    drops: list[npt.NDArray[np.bool_]] = []
    codes = None if languages is None else languages.dictionary_encode()
    for rule in rules:
        bound = getattr(settings, rule.name)
        if bound is None:
            continue
        column = f"{family}.{rule.metric}"
        if column not in columns:
            raise DataError(f"there is no column {column} for the rule {rule.name}", "measure the documents again")
        values = columns[column]
        drop = values < bound if rule.name.startswith("min_") else values > bound
        if codes is not None:
            included = [
                *(rule.languages.include(code) for code in codes.dictionary.to_pylist()),
                rule.languages.only is None,
            ]
            drop = drop & np.array(included)[codes.indices.fill_null(len(included) - 1).to_numpy()]
        names.append(f"{family}.{rule.name}")
        drops.append(drop)
    count = len(next(iter(columns.values()), ()))
    return Verdicts(tuple(names), np.array(drops, dtype=np.bool_).reshape(len(names), count).T)


def ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """A share; 0 where there is nothing to have a share of."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)
