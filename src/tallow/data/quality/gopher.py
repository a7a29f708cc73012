"""Gopher's quality rules (Rae et al. 2021, 2112.11446, section A.1.1), as datatrove 0.10 has them
(`GopherQualityFilter`).

Words are those of `tallow.kernels.text.words` instead of spaCy's. As there, `words` counts those that are no symbols,
and ratios to words are to all, symbols among them; stop words count as they are written; the shares of lines are of
all lines, also empty ones. A share of nothing is 0 here, where datatrove fails.

Of the words with a letter datatrove takes the share in all words, symbols among them (`letter_tokens`). That drops
punctuated prose: 114 of 394 pieces of Shakespeare and 425 of 456 of FastAPI's documentation. The paper's words, it
seems, were what white space parts; so `letter_words` takes for symbols only those that stand alone.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tallow.data.quality.rule import ENGLISH, SPACED, Metrics, Rule, ratio
from tallow.kernels.text.counts import Counts
from tallow.recipe import Section

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""English; so the rule is for English."""

RULES = (
    Rule("min_words", "words"),
    Rule("max_words", "words"),
    Rule("min_mean_word_length", "mean_word_length", SPACED),
    Rule("max_mean_word_length", "mean_word_length", SPACED),
    Rule("max_hashes", "hashes"),
    Rule("max_ellipses", "ellipses"),
    Rule("max_bullet_lines", "bullet_lines"),
    Rule("max_ellipsis_lines", "ellipsis_lines"),
    Rule("min_letter_words", "letter_words"),
    Rule("min_letter_tokens", "letter_tokens"),
    Rule("min_stop_words", "stop_words", ENGLISH),
)


class GopherRules(Section):
    """Bounds of Gopher's quality rules; None turns a rule off.

    Args:
        min_words: Words that are no symbols.
        max_words: Likewise.
        min_mean_word_length: Mean characters of these words. Not for scripts without spaces.
        max_mean_word_length: Likewise.
        max_hashes: `#` a word.
        max_ellipses: `...` and `…` a word.
        max_bullet_lines: Share of the lines that begin with `-` or `•`.
        max_ellipsis_lines: Share of the lines that end with an ellipsis.
        min_letter_words: Share of the words, and of symbols that stand alone, that have a letter.
        min_letter_tokens: Share of all words and symbols that have a letter; 0.8 in datatrove, here turned off.
        min_stop_words: How many different ones of `the be to of and that have with` there are. For English.
    """

    min_words: int | None = Field(default=50, ge=0)
    max_words: int | None = Field(default=100_000, ge=0)
    min_mean_word_length: float | None = Field(default=3, ge=0)
    max_mean_word_length: float | None = Field(default=10, ge=0)
    max_hashes: float | None = Field(default=0.1, ge=0)
    max_ellipses: float | None = Field(default=0.1, ge=0)
    max_bullet_lines: float | None = Field(default=0.9, ge=0, le=1)
    max_ellipsis_lines: float | None = Field(default=0.3, ge=0, le=1)
    min_letter_words: float | None = Field(default=0.8, ge=0, le=1)
    min_letter_tokens: float | None = Field(default=None, ge=0, le=1)
    min_stop_words: int | None = Field(default=2, ge=0, le=len(STOP_WORDS))

    @model_validator(mode="after")
    def _something_lies_between(self) -> Self:
        for name in ("words", "mean_word_length"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"nothing lies between min_{name} {low} and max_{name} {high}")
        return self


def measure(counts: Counts) -> Metrics:
    """The metrics, from what `count_texts` with `STOP_WORDS` counts."""
    return {
        "gopher.words": counts["plain_words"],
        "gopher.mean_word_length": ratio(counts["plain_characters"], counts["plain_words"]),
        "gopher.hashes": ratio(counts["hashes"], counts["words"]),
        "gopher.ellipses": ratio(counts["ellipses"], counts["words"]),
        "gopher.bullet_lines": ratio(counts["bullet_lines"], counts["lines"]),
        "gopher.ellipsis_lines": ratio(counts["ellipsis_lines"], counts["lines"]),
        "gopher.letter_words": ratio(counts["letter_words"], counts["plain_words"] + counts["lone_symbols"]),
        "gopher.letter_tokens": ratio(counts["letter_words"], counts["words"]),
        "gopher.stop_words": counts["stop_words"],
    }
