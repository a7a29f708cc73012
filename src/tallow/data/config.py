"""Settings of the stage `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from tallow.data.contamination.benchmarks import SearchSettings
from tallow.data.contamination.rule import ContaminationRule
from tallow.data.duplicates.minhash import MinHashSettings
from tallow.data.duplicates.semantic import SemanticSettings
from tallow.data.duplicates.substrings import SubstringSettings
from tallow.data.duplicates.units import UnitSettings
from tallow.data.language.identify import LanguageConfig
from tallow.data.privacy.config import PrivacyConfig
from tallow.data.quality.c4 import C4Lines
from tallow.data.quality.families import QualityRules
from tallow.data.reading.settings import ReadSettings
from tallow.data.selection.diversity import DiversityConfig
from tallow.data.selection.importance import ImportanceConfig
from tallow.data.sources import SourceNames
from tallow.data.work.cluster import ClusterConfig
from tallow.recipe import Section


class LanguageRules(LanguageConfig):
    """How languages are identified, and which are kept.

    Args:
        keep: Languages that stay, as the model names them (`en`, `zh`); null: all.
        min_score: Documents whose language is less probable are dropped; FineWeb's is 0.65.
    """

    keep: tuple[str, ...] | None = Field(default=None, min_length=1)
    min_score: float | None = Field(default=None, ge=0, le=1)


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
        min: Documents with less are dropped.
        max: Documents with more are dropped.
    """

    model: Path
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _min_is_not_above_max(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"nothing lies between min {self.min} and max {self.max}")
        return self


class ClassifierRule(ScoreRule):
    """A classifier, whose scores are probabilities."""

    min: float | None = Field(default=None, ge=0, le=1)
    max: float | None = Field(default=None, ge=0, le=1)


class ContaminationConfig(SearchSettings, ContaminationRule):
    """Items of benchmarks that must not be learned.

    Args:
        benchmarks: Their files: JSON lines, CSV or parquet.
    """

    benchmarks: SourceNames = Field(min_length=1)


class QuantileRule(Section):
    """Documents stay whose value is between two shares of all values that there are.

    Args:
        column: Which value: `perplexity`, `classifier.NAME`, or a metric such as `gopher.words`.
        low: So large a share of the documents, those with the smallest values, goes.
        high: What is above this share goes, too.
    """

    column: str
    low: float = Field(default=0.0, ge=0, lt=1)
    high: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"nothing lies between low {self.low} and high {self.high}")
        return self


class ImportanceRule(ImportanceConfig):
    """Documents are drawn that are like a target (DSIR, arXiv 2302.03169).

    Args:
        target: Files of what documents are to be like.
        share: Of the documents that are left, so many stay.
    """

    target: SourceNames = Field(min_length=1)
    share: float = Field(gt=0, le=1)


class DiversityRule(DiversityConfig):
    """Documents stay that are different from each other.

    Args:
        share: Of the documents that are left, so many stay.
    """

    share: float = Field(gt=0, le=1)


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
        contamination: Drop documents with items of benchmarks, or cut these out.
        near_duplicates: Keep one of the documents that are nearly the same: the one with the smallest id.
        semantic_duplicates: Keep one of the documents that say nearly the same, by the vectors of a model.
        repeated_units: Cut out lines or paragraphs that occur before.
        repeated_substrings: Cut out long substrings that occur before.
        quantiles: Keep documents by their rank among those that are left.
        importance: Draw documents that are like a target.
        diversity: Keep documents that are different from each other.
        privacy: Replace what is private by placeholders.
        licences: For the data card: what the sources are licensed under, by a pattern of their names; the first one
            that fits counts.
        part_mb: Text that a thread works on at once, in MB; it needs several times as much memory.
        cluster: Who does the work.
    """

    incidental = frozenset(("cluster",))

    sources: SourceNames = Field(min_length=1)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    deduplicate: bool = True
    min_chars: int = Field(default=1, ge=1)
    language: LanguageRules | None = None
    quality: QualityConfig | None = None
    classifiers: dict[str, ClassifierRule] = Field(default_factory=dict)
    perplexity: ScoreRule | None = None
    contamination: ContaminationConfig | None = None
    near_duplicates: MinHashSettings | None = None
    semantic_duplicates: SemanticSettings | None = None
    repeated_units: tuple[UnitSettings, ...] = ()
    repeated_substrings: SubstringSettings | None = None
    quantiles: tuple[QuantileRule, ...] = ()
    importance: ImportanceRule | None = None
    diversity: DiversityRule | None = None
    privacy: PrivacyConfig | None = None
    licences: dict[str, str] = Field(default_factory=dict)
    part_mb: float = Field(default=8.0, ge=0.001, le=1024)
    cluster: ClusterConfig = ClusterConfig()

    def check_inputs(self) -> None:
        """Refuse models and benchmarks that are none.

        Raises:
            DataError: One is missing, or something else.
        """
        from tallow.data.checks import check_inputs  # it knows all kinds of models; who wants settings need not wait

        check_inputs(self)

    @property
    def part_bytes(self) -> int:
        return int(self.part_mb * 2**20)
