"""All families of quality rules: measure texts once, judge them by the columns as often as wanted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tallow.data.quality import c4, fineweb, gopher, repetition
from tallow.data.quality.c4 import C4Lines, C4Rules
from tallow.data.quality.fineweb import FineWebRules
from tallow.data.quality.gopher import GopherRules
from tallow.data.quality.repetition import RepetitionRules
from tallow.data.quality.rule import Metrics, Verdicts, judge
from tallow.kernels.text.counts import count_texts
from tallow.recipe import Section

RULES = {"repetition": repetition.RULES, "gopher": gopher.RULES, "c4": c4.RULES, "fineweb": fineweb.RULES}
"""The families, in the order in which FineWeb asks them."""


class QualityRules(Section):
    """Bounds of the quality rules, a family each; None turns a family off."""

    repetition: RepetitionRules | None = RepetitionRules()
    gopher: GopherRules | None = GopherRules()
    c4: C4Rules | None = C4Rules()
    fineweb: FineWebRules | None = FineWebRules()


def measure(texts: pa.StringArray, lines: C4Lines | None = None) -> Metrics:
    """All metrics of texts as they are, C4's for the lines that these settings (by default C4's) keep."""
    counts = count_texts(texts, gopher.STOP_WORDS)
    return {
        **repetition.measure(counts),
        **gopher.measure(counts),
        **c4.measure(c4.drop_lines(texts, lines or C4Lines()).counts),
        **fineweb.measure(counts),
    }


def decide(
    columns: Mapping[str, npt.NDArray[np.generic]], rules: QualityRules, languages: pa.StringArray | None = None
) -> Verdicts:
    """What the rules say of documents, by their columns alone.

    Args:
        columns: As `measure` gives them, or read back.
        languages: Of each document; null where it is not known. Without it all are taken to be in a language that each
            rule is for.

    Raises:
        DataError: A column is missing.
    """
    given = {family: getattr(rules, family) for family in RULES}
    found = [
        judge(family, RULES[family], settings, columns, languages)
        for family, settings in given.items()
        if settings is not None
    ]
    if not found:
        return judge("", (), rules, columns)
    names = tuple(name for verdicts in found for name in verdicts.rules)
    return Verdicts(names, np.concatenate([verdicts.drops_DR for verdicts in found], axis=1))
