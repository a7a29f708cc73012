"""Gopher's repetition rules (Rae et al. 2021, 2112.11446, table A1), as datatrove 0.10 has them
(`GopherRepetitionFilter`).

Of copies all but the first count (dolma counts all); the most common n-gram counts with all its copies, also if there
is one; duplicate n-grams are looked for from the left, and the search goes on behind each. Lines and paragraphs that
are empty or white space do not count, where datatrove counts empty ones at a text's ends and lines of white space.

The bounds are for words. In scripts without spaces words are letters, of which five in a row recur in any longer text:
there n-grams have no bounds, and lines and paragraphs have the same.
"""

from __future__ import annotations

from pydantic import Field

from tallow.data.quality.rule import SPACED, Metrics, Rule, ratio
from tallow.kernels.text.counts import DUPLICATE_GRAMS, TOP_GRAMS, Counts
from tallow.recipe import Section

RULES = (
    Rule("max_duplicate_lines", "duplicate_lines"),
    Rule("max_duplicate_paragraphs", "duplicate_paragraphs"),
    Rule("max_duplicate_line_characters", "duplicate_line_characters"),
    Rule("max_duplicate_paragraph_characters", "duplicate_paragraph_characters"),
    *(Rule(f"max_top_{n}_gram_characters", f"top_{n}_gram_characters", SPACED) for n in TOP_GRAMS),
    *(Rule(f"max_duplicate_{n}_gram_characters", f"duplicate_{n}_gram_characters", SPACED) for n in DUPLICATE_GRAMS),
)


class RepetitionRules(Section):
    """Bounds of Gopher's repetition rules; None turns a rule off. Characters are shares of the text's.

    Args:
        max_duplicate_lines: Share of the lines that were there before.
        max_duplicate_paragraphs: Likewise of the paragraphs, which are lines without an empty one between them.
        max_duplicate_line_characters: Characters of these lines.
        max_duplicate_paragraph_characters: Characters of these paragraphs.
        max_top_2_gram_characters: Characters of all copies of the two words in a row that are the most common.
        max_top_3_gram_characters: Likewise of three.
        max_top_4_gram_characters: Likewise of four.
        max_duplicate_5_gram_characters: Characters of five words in a row that were there before.
        max_duplicate_6_gram_characters: Likewise of six.
        max_duplicate_7_gram_characters: Likewise of seven.
        max_duplicate_8_gram_characters: Likewise of eight.
        max_duplicate_9_gram_characters: Likewise of nine.
        max_duplicate_10_gram_characters: Likewise of ten.
    """

    max_duplicate_lines: float | None = Field(default=0.3, ge=0)
    max_duplicate_paragraphs: float | None = Field(default=0.3, ge=0)
    max_duplicate_line_characters: float | None = Field(default=0.2, ge=0)
    max_duplicate_paragraph_characters: float | None = Field(default=0.2, ge=0)
    max_top_2_gram_characters: float | None = Field(default=0.2, ge=0)
    max_top_3_gram_characters: float | None = Field(default=0.18, ge=0)
    max_top_4_gram_characters: float | None = Field(default=0.16, ge=0)
    max_duplicate_5_gram_characters: float | None = Field(default=0.15, ge=0)
    max_duplicate_6_gram_characters: float | None = Field(default=0.14, ge=0)
    max_duplicate_7_gram_characters: float | None = Field(default=0.13, ge=0)
    max_duplicate_8_gram_characters: float | None = Field(default=0.12, ge=0)
    max_duplicate_9_gram_characters: float | None = Field(default=0.11, ge=0)
    max_duplicate_10_gram_characters: float | None = Field(default=0.1, ge=0)


def measure(counts: Counts) -> Metrics:
    """The metrics, from what `count_texts` counts."""
    lines = ratio(counts["duplicate_lines"], counts["filled_lines"])
    paragraphs = ratio(counts["duplicate_paragraphs"], counts["paragraphs"])
    characters = [rule.metric for rule in RULES if rule.metric.endswith("_characters")]
    return {
        "repetition.duplicate_lines": lines,
        "repetition.duplicate_paragraphs": paragraphs,
        **{f"repetition.{name}": ratio(counts[name], counts["characters"]) for name in characters},
    }
