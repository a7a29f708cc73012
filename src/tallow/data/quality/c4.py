"""C4's rules (Raffel et al. 2020, section 2.2; `c4_utils.py` of TensorFlow Datasets), as datatrove 0.10 has them
(`C4QualityFilter`), without its list of bad words.

Lines are dropped first, which changes the text; the rules for documents are about what is left. So these metrics depend
on the settings for lines, and a change of those needs the texts. Differences: sentences are counted by their marks
instead of by a model; the end of a sentence is that of any script, and quotation marks of any kind may follow it;
letters of scripts without spaces count as words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from tallow.data.quality.rule import Metrics, Rule
from tallow.kernels.text.kept_lines import LINE_COUNTS, KeptLines, LineRules, keep_lines
from tallow.recipe import Section

RULES = (
    Rule("max_lorem_ipsum", "lorem_ipsum"),
    Rule("max_brackets", "bracket"),
    Rule("min_sentences", "sentences"),
)


class C4Lines(Section):
    """Which lines are dropped; empty ones always are.

    Args:
        min_words: Words that a line needs.
        max_word_length: Characters of its longest word.
        sentence_end: It must end with the end of a sentence or a quotation mark, and not with `...`. FineWeb leaves
            this rule out.
        javascript: Not with the word "javascript".
        policy: Not with "privacy policy", "terms of use" and the like. The phrases are English.
        citations: `[1]`, `[edit]` and `[citation needed]` are removed from lines.
    """

    min_words: int = Field(default=3, ge=0)
    max_word_length: int = Field(default=1000, ge=1)
    sentence_end: bool = True
    javascript: bool = True
    policy: bool = True
    citations: bool = True


class C4Rules(Section):
    """Bounds of C4's rules for documents, asked of the lines that are kept; None turns a rule off.

    Args:
        max_lorem_ipsum: Lines with that phrase.
        max_brackets: Lines with `{`.
        min_sentences: Sentences.
    """

    max_lorem_ipsum: int | None = Field(default=0, ge=0)
    max_brackets: int | None = Field(default=0, ge=0)
    min_sentences: int | None = Field(default=5, ge=0)


def drop_lines(texts: pa.StringArray, settings: C4Lines) -> KeptLines:
    """Texts without the lines that these settings drop, and `LINE_COUNTS` of each."""
    return keep_lines(texts, LineRules(**settings.model_dump()))


def measure(counts: dict[str, npt.NDArray[np.int64]]) -> Metrics:
    """The metrics, from what `drop_lines` counts: all of it, so that one sees why lines went."""
    return {f"c4.{name}": counts[name] for name in LINE_COUNTS}
