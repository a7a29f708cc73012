"""FineWeb's rules (Penedo et al. 2024, 2406.17557, section 3.5), as datatrove 0.10 has them (`FineWebQualityFilter`).

White space at the end of a line is passed over, where datatrove takes such a line for one without an end. Of the
duplicate lines' characters datatrove's code allows 0.01 and the paper 0.1: the default here is the code's.
"""

from __future__ import annotations

from pydantic import Field

from tallow.data.quality.rule import SPACED, Metrics, Rule, ratio
from tallow.kernels.text.counts import Counts
from tallow.recipe import Section

RULES = (
    Rule("min_terminal_lines", "terminal_lines"),
    Rule("max_short_lines", "short_lines", SPACED),
    Rule("max_duplicate_line_characters", "duplicate_line_characters"),
    Rule("max_newlines", "newlines"),
)


class FineWebRules(Section):
    """Bounds of FineWeb's rules; None turns a rule off.

    Args:
        min_terminal_lines: Share of the lines that end with the end of a sentence, in any script.
        max_short_lines: Share of the lines with 30 characters or less. Not for scripts without spaces, where that is a
            sentence.
        max_duplicate_line_characters: Characters of lines that were there before, as a share of all but newlines.
        max_newlines: Newlines a word (symbols are words).
    """

    min_terminal_lines: float | None = Field(default=0.12, ge=0, le=1)
    max_short_lines: float | None = Field(default=0.67, ge=0, le=1)
    max_duplicate_line_characters: float | None = Field(default=0.01, ge=0)
    max_newlines: float | None = Field(default=0.3, ge=0)


def measure(counts: Counts) -> Metrics:
    """The metrics, from what `count_texts` counts."""
    characters = counts["characters"] - counts["newlines"]
    return {
        "fineweb.terminal_lines": ratio(counts["terminal_lines"], counts["filled_lines"]),
        "fineweb.short_lines": ratio(counts["short_lines"], counts["filled_lines"]),
        "fineweb.duplicate_line_characters": ratio(counts["duplicate_line_characters"], characters),
        "fineweb.newlines": ratio(counts["newlines"], counts["words"]),
    }
