"""Settings of the stage `prepare`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from tallow.data.duplicates.minhash import MinHashSettings
from tallow.data.language.identify import LanguageConfig
from tallow.data.privacy.config import PrivacyConfig
from tallow.data.quality.c4 import C4Lines
from tallow.data.quality.families import QualityRules
from tallow.data.reading.settings import ReadSettings
from tallow.data.sources import SourceNames
from tallow.data.work.cluster import ClusterConfig
from tallow.recipe import Section


class LanguageRules(LanguageConfig):
    """How languages are identified, and which are kept."""

    keep: tuple[str, ...] | None = Field(
        default=None, min_length=1, description="Languages that stay, as the model names them (`en`, `zh`); none: all."
    )
    min_score: float | None = Field(
        default=None, ge=0, le=1, description="Documents whose language is less probable are dropped."
    )


class QualityConfig(QualityRules):
    """Rules for good text, with the published bounds where none are given.

    Args:
        lines: Which lines are dropped before anything else looks at the texts, as C4 did; None: none.
    """

    lines: C4Lines | None = None


class ScoreRule(Section):
    """A model that scores texts, and which scores are kept; without bounds it only annotates.

    Args:
        model: Directory of the model.
        min, max: Documents with less or more are dropped.
    """

    model: Path
    min: float | None = None
    max: float | None = None


class PrepareConfig(ReadSettings):
    """Settings of the prepare stage, and how raw files are read.

    What is annotated (languages, quality, scores, near-duplicates, private things) is kept, so that other bounds need
    no second look at the texts.

    Args:
        sources: Files, directories and globs, or `tallow:pepys`, the text that comes with the package.
        validation_fraction: Share of the documents held out, chosen by the hash of their text; 0 holds out none.
        deduplicate: Keep one of the documents with the same text: the one with the smallest id.
        min_chars: Drop documents with fewer characters, white space at the ends not counted.
        language: Identify languages, and keep some.
        quality: Measure quality by the rules of Gopher, C4 and FineWeb, and drop what is beyond their bounds.
        classifiers: Classifiers (`tallow data classifier` trains them), by a name for each; their score is the
            probability that a text is of the good examples' kind.
        perplexity: An n-gram model (`tallow data ngrams` trains it); its score is a text's perplexity.
        near_duplicates: Keep one of the documents that are nearly the same: the one with the smallest id.
        privacy: Replace what is private by placeholders.
        part_mb: Text that a process works on at once, in MB; it needs several times as much memory.
        cluster: Who does the work.
    """

    incidental = frozenset(("cluster",))

    sources: SourceNames = Field(min_length=1)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    deduplicate: bool = True
    min_chars: int = Field(default=1, ge=1)
    language: LanguageRules | None = None
    quality: QualityConfig | None = None
    classifiers: dict[str, ScoreRule] = Field(default_factory=dict)
    perplexity: ScoreRule | None = None
    near_duplicates: MinHashSettings | None = None
    privacy: PrivacyConfig | None = None
    part_mb: float = Field(default=16.0, gt=0, le=1024)
    cluster: ClusterConfig = ClusterConfig()

    @property
    def part_bytes(self) -> int:
        return int(self.part_mb * 2**20)
