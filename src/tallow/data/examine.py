"""What is known of all documents, and which of them are dropped: all of preparation but the writing.

The work is done in steps on parts of bounded size, by as many processes as there are, and what each has made is kept.
So asking again with other bounds looks at columns alone, and asking again with the same ones at nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from tallow.data.config import ContaminationConfig, PrepareConfig, ScoreRule
from tallow.data.contamination.benchmarks import Search, SearchSettings, load_items
from tallow.data.contamination.rule import CONTAMINATED, ContaminationRule
from tallow.data.inputs import Inputs
from tallow.data.language.identify import (
    UNDETERMINED,
    LanguageConfig,
    find_language_model,
    load_language_model,
)
from tallow.data.quality.c4 import C4Lines
from tallow.data.quality.classifier import find_classifier
from tallow.data.quality.families import QualityRules
from tallow.data.quality.ngram import find_ngrams
from tallow.data.read import ReadSettings
from tallow.data.read_plan import plan_reading
from tallow.data.records import Rejected
from tallow.data.selection.diversity import DiversityConfig
from tallow.data.selection.importance import KEY, ImportanceConfig
from tallow.data.sources import Source, find_sources
from tallow.data.steps.clusters import CLUSTER
from tallow.data.steps.contamination import Contamination, find_contamination, judge_contamination
from tallow.data.steps.diversity import keep_diverse
from tallow.data.steps.importance import weigh_importance
from tallow.data.steps.judge import JUDGE, Bound, JudgeConfig
from tallow.data.steps.left import LEFT, NOTHING_LEFT, LeftConfig
from tallow.data.steps.lines import LINES, LinesStep
from tallow.data.steps.measure import (
    LANGUAGES,
    PRIVATE,
    QUALITY,
    SCORES,
    SIZES,
    LanguageStep,
    PrivacyStep,
    QualityStep,
    ScoreStep,
    SizesStep,
)
from tallow.data.steps.near import near_duplicates
from tallow.data.steps.ranks import keep_ranks
from tallow.data.steps.read import NOTE, READ, ReadConfig
from tallow.data.steps.semantic import drop_but_survivors, semantic_duplicates
from tallow.data.steps.substrings import repeated_substrings
from tallow.data.steps.tables import known_columns
from tallow.data.steps.tally import GROUPS, TALLY, TallyConfig
from tallow.data.steps.unique import unique
from tallow.data.steps.units import repeated_units
from tallow.data.work.step import Part, Step, beside
from tallow.data.work.work import Work
from tallow.errors import UsageError
from tallow.files import hash_file
from tallow.kernels.text.labels import LABEL_PREFIX
from tallow.models.store import resolve
from tallow.recipe import Section

LATER = ("contamination", "cluster", "bytes_left")
"""What columns of numbers are named after that are made once documents have been judged."""

DUPLICATE, NEAR_DUPLICATE, SEMANTIC_DUPLICATE = "duplicate", "near-duplicate", "semantic duplicate"


@dataclass
class Examined:
    """All documents, and what is known of them; lists have an item a part.

    Args:
        sources: What was read, and its SHA-256.
        reads: How it was.
        read: The documents as they were read.
        parts: The documents, from here on.
        rejected: What was set aside, in numbers …
        records: … and as records.
        columns: Tables beside the parts, by what made them.
        edits: Tables beside the parts with what is done to texts.
        repeated: Of these, what occurs before.
        contamination: What of benchmarks was found.
        near: Of near-duplicates, how many clusters there are of each size, and other counts.
        judged: What the rules for single documents have dropped, with their counts.
        asked: Besides rules, what documents may have been dropped for, in the order in which it was asked.
        verdicts: What has dropped each document.
        tallies, samples: As `TALLY` gives them.
    """

    sources: Mapping[Source, str]
    reads: tuple[ReadConfig, ...]
    read: list[Part]
    parts: list[Part]
    rejected: Rejected
    records: list[Part]
    columns: dict[str, list[Part]] = field(default_factory=dict)
    edits: list[list[Part]] = field(default_factory=list)
    repeated: list[Part] = field(default_factory=list)
    contamination: Contamination | None = None
    near: Counter[str] = field(default_factory=Counter)
    judged: list[Part] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    verdicts: list[Part] = field(default_factory=list)
    tallies: list[Part] = field(default_factory=list)
    samples: list[Part] = field(default_factory=list)

    def groups(self) -> pa.Table:
        """How many documents, and how much text, of each source and language have come to what (`GROUPS`)."""
        keys = ["fate", "source", "language"]
        sums = pa.concat_tables(tally.read() for tally in self.tallies).group_by(keys, use_threads=False)
        numbers = ["documents", "bytes", "left"]
        found = sums.aggregate([(name, "sum") for name in numbers])
        table = pa.table(found.select([*keys, *(f"{name}_sum" for name in numbers)]).columns, schema=GROUPS)
        return table.sort_by([(key, "ascending") for key in keys])

    def fates(self) -> Counter[str]:
        """How many documents were dropped for each reason, or `kept`."""
        table, fates = self.groups(), Counter[str]()
        for fate, documents in zip(table["fate"].to_pylist(), table["documents"].to_pylist(), strict=True):
            fates[fate] += documents
        return fates

    def beside(self, *more: Sequence[Part]) -> list[tuple[Part, ...]]:
        """For each part an input of it, and one of what is beside it."""
        return beside(self.parts, *more)


def examine(
    config: PrepareConfig, work: Work, reads: Sequence[ReadConfig] | None = None, samples: bool = True
) -> Examined:
    """Read the sources, annotate all documents, and decide which are kept.

    Args:
        config: The settings.
        work: Where and by whom it is done.
        reads: How sources were read, where they are to be taken as they were then; None: they are looked at.
        samples: Whether samples are taken, in which what is private is sought.

    Raises:
        DataError: A source is unusable, too many records are, or a model is.
        CapacityError: The disk is full.
    """
    if config.contamination is not None and reads is None:
        load_items(_search(config.contamination, work.inputs))
    annotations = _annotations(config, work.inputs)  # first, as what is wrong with a model is better said at once
    with work.telling("reading"):
        found = _read(config, work, reads)
    if config.quality is not None and config.quality.lines is not None:
        step = LinesStep(lines=config.quality.lines)
        with work.telling("lines"):
            made = work.each(LINES, [(step, inputs) for inputs in found.beside()])
        found.parts, found.columns["lines"] = ([tables[number] for tables in made] for number in range(2))
    for name, (step, settings) in annotations.items():
        with work.telling(name):
            made = work.each(step, [(settings, inputs) for inputs in found.beside()])
        found.columns[name] = [part for [part] in made]
    given = [(rules_of(config), inputs) for inputs in beside(*found.columns.values())]
    with work.telling("rules"):
        found.judged = [made for [made] in work.each(JUDGE, given)]
    found.verdicts = found.judged
    for rule in config.quantiles:  # what is wrong with one is better said before what takes long
        if rule.column.partition(".")[0] not in LATER:
            _find_column(found, rule.column)
    with work.telling("benchmarks"):
        _drop_contaminated(config, work, found)
    _drop_duplicates(config, work, found)
    with work.telling("repeated passages"):
        _cut_repeated(config, work, found)
    with work.telling("selection"):
        _select(config, work, found)
    private = annotations["privacy"][1] if "privacy" in annotations else None
    assert private is None or isinstance(private, PrivacyStep)
    tallied = TallyConfig(lines="lines" in found.columns, edits=len(found.edits), privacy=private)
    given = found.beside(found.verdicts, *[found.read] * tallied.lines, *found.columns.values(), *found.edits)
    with work.telling("counts"):
        settings = tallied if samples else tallied.model_copy(update={"samples": 0, "privacy": None})
        made = work.each(TALLY, [(settings, inputs) for inputs in given])
    found.tallies, found.samples = ([tables[number] for tables in made] for number in range(2))
    return found


def _drop_contaminated(config: PrepareConfig, work: Work, found: Examined) -> None:
    """Drop documents with items of benchmarks, or have these cut out."""
    settings = config.contamination
    if settings is None:
        return
    search = _search(settings, work.inputs)
    found.contamination = find_contamination(work, found.parts, search)
    columns = found.contamination.columns
    rule = ContaminationRule(**_inherited(settings, ContaminationRule))
    found.columns["contamination"] = columns
    found.verdicts = judge_contamination(work, found.parts, found.verdicts, columns, rule)
    if rule.action == "cut":
        found.edits.append(found.verdicts)
    else:
        found.asked.append(CONTAMINATED)


def _search(config: ContaminationConfig, inputs: Inputs) -> Search:
    return Search(
        benchmarks=inputs.files(config.benchmarks), settings=SearchSettings(**_inherited(config, SearchSettings))
    )


def _drop_duplicates(config: PrepareConfig, work: Work, found: Examined) -> None:
    """Of documents that are the same, nearly the same, or say nearly the same, keep one."""
    parts, size = found.parts, config.part_bytes
    if config.deduplicate:
        with work.telling("duplicates"):
            found.verdicts = unique(work, parts, found.verdicts, parts, "digest", DUPLICATE, size)
        found.asked.append(DUPLICATE)
    if config.near_duplicates is not None:
        with work.telling("near-duplicates"):
            near, found.near = near_duplicates(work, parts, config.near_duplicates, size)
            found.verdicts = unique(work, parts, found.verdicts, near, CLUSTER, NEAR_DUPLICATE, size)
        found.columns[CLUSTER] = near
        found.asked.append(NEAR_DUPLICATE)
    if config.semantic_duplicates is not None:
        with work.telling("semantic duplicates"):
            survivors = semantic_duplicates(work, parts, found.verdicts, config.semantic_duplicates)
            found.verdicts = drop_but_survivors(work, parts, found.verdicts, survivors, SEMANTIC_DUPLICATE)
        found.columns["semantic"] = survivors
        found.asked.append(SEMANTIC_DUPLICATE)


def _cut_repeated(config: PrepareConfig, work: Work, found: Examined) -> None:
    """Have lines, paragraphs and substrings cut out that occur before; drop what nothing is left of."""
    given = found.parts, found.verdicts
    for units in config.repeated_units:
        found.edits.append(repeated_units(work, *given, units, config.part_bytes))
        found.repeated += found.edits[-1]
    if config.repeated_substrings is not None:
        found.edits.append(repeated_substrings(work, *given, config.repeated_substrings, config.part_bytes))
        found.repeated += found.edits[-1]
    if "privacy" in found.columns:
        found.edits.append(found.columns["privacy"])
    if found.edits:
        left = LeftConfig(min_chars=config.min_chars)
        beside = found.beside(found.verdicts, *found.edits)
        made = work.each(LEFT, [(left, inputs) for inputs in beside])
        found.verdicts, found.columns["left"] = ([tables[number] for tables in made] for number in range(2))
        found.asked.append(NOTHING_LEFT)


def _select(config: PrepareConfig, work: Work, found: Examined) -> None:
    """Of what is left, keep what is wanted."""
    for rule in config.quantiles:
        columns = _find_column(found, rule.column)
        found.asked.append(f"quantiles.{rule.column}")
        ranks = columns, rule.column, rule.low, rule.high, found.asked[-1]
        found.verdicts = keep_ranks(work, found.parts, found.verdicts, *ranks)
    if config.importance is not None:
        rule = config.importance
        settings, reading = (
            ImportanceConfig(**_inherited(rule, ImportanceConfig)),
            ReadSettings(**_inherited(config, ReadSettings)),
        )
        weights = weigh_importance(work, found.parts, found.verdicts, rule.target, settings, reading)
        found.columns["importance"] = weights
        found.asked.append("importance")
        ranks = weights, KEY, 1 - rule.share, 1.0, found.asked[-1]
        found.verdicts = keep_ranks(work, found.parts, found.verdicts, *ranks)
    if config.diversity is not None:
        settings = DiversityConfig(**_inherited(config.diversity, DiversityConfig))
        found.asked.append("diversity")
        wanted = config.diversity.share, found.asked[-1], settings, config.part_bytes
        found.verdicts = keep_diverse(work, found.parts, found.verdicts, *wanted)


def _find_column(found: Examined, name: str) -> list[Part]:
    """The tables that have a column of numbers.

    Raises:
        UsageError: There is none of that name.
    """
    numbers = {key: _numbers(parts) for key, parts in found.columns.items()}
    for key, names in numbers.items():
        if name in names:
            return found.columns[key]
    known = ", ".join(name for names in numbers.values() for name in names)
    raise UsageError(f"quantiles: there is no column of numbers {name}", f"there are: {known}")


def _numbers(parts: Sequence[Part]) -> list[str]:
    """The columns of numbers that tables have."""
    columns = known_columns([part.read() for part in parts[:1]])
    kinds = pa.types.is_integer, pa.types.is_floating
    return [name for name, column in columns.items() if any(is_kind(column.type) for is_kind in kinds)]


def _annotations(config: PrepareConfig, inputs: Inputs) -> dict[str, tuple[Step[Any], Section]]:
    """What makes which columns."""
    steps: dict[str, tuple[Step[Any], Section]] = {"lengths": (SIZES, SizesStep())}
    if config.language is not None:
        settings = LanguageConfig(**_inherited(config.language, LanguageConfig))
        if config.language.keep:
            _check_languages(config.language.keep, load_language_model(settings).labels)
        model = inputs.model(f"{settings.model or 'language'}", lambda: find_language_model(settings))
        steps["language"] = (LANGUAGES, LanguageStep(settings=settings, model=model.sha256))
    if config.quality is not None:
        steps["quality"] = (QUALITY, QualityStep(lines=config.quality.lines or C4Lines()))
    for column, kind, rule in _scores(config):
        find = find_classifier if kind == "classifier" else find_ngrams
        sha256 = inputs.model(str(rule.model), partial(find, rule.model)).sha256
        score = ScoreStep(column=column, kind=kind, sha256=sha256, model=rule.model)
        steps[column] = (SCORES, score)
    if config.privacy is not None:
        name = config.privacy.name
        names = None if name is None else inputs.model(str(name.model), partial(resolve, name.model)).sha256
        steps["privacy"] = (PRIVATE, PrivacyStep(settings=config.privacy, names=names))
    return steps


def _check_languages(names: Iterable[str], labels: Iterable[bytes]) -> None:
    known = [label.decode(errors="replace").removeprefix(LABEL_PREFIX.decode()) for label in labels]
    for name in names:
        if name not in (*known, UNDETERMINED):
            near = ", ".join(get_close_matches(name[:3], known, 4, 0.5) or ("en", "ru", "zh"))
            raise UsageError(
                f"language.keep: the model knows no language {name}", f"languages have codes of ISO 639, such as {near}"
            )


def _scores(config: PrepareConfig) -> Iterator[tuple[str, Literal["classifier", "ngrams"], ScoreRule]]:
    for name, rule in sorted(config.classifiers.items()):
        yield f"classifier.{name}", "classifier", rule
    if config.perplexity is not None:
        yield "perplexity", "ngrams", config.perplexity


def rules_of(config: PrepareConfig) -> JudgeConfig:
    """What documents are judged by."""
    bounds: list[Bound] = []
    if config.language is not None and config.language.min_score is not None:
        bounds.append(Bound(reason="language.min_score", column="language.score", min=config.language.min_score))
    for column, _, rule in _scores(config):
        if rule.min is not None:
            bounds.append(Bound(reason=f"{column}.min", column=column, min=rule.min))
        if rule.max is not None:
            bounds.append(Bound(reason=f"{column}.max", column=column, max=rule.max))
    for kind in config.privacy.sought if config.privacy is not None else ():
        assert config.privacy is not None
        if (most := config.privacy.of(kind).drop_beyond) is not None:
            bounds.append(Bound(reason=f"privacy.{kind}", column=f"privacy.{kind}", max=most))
    quality = None if config.quality is None else QualityRules(**_inherited(config.quality, QualityRules))
    return JudgeConfig(
        min_chars=config.min_chars,
        languages=None if config.language is None else config.language.keep,
        bounds=tuple(bounds),
        quality=quality,
    )


def _inherited(config: Section, parent: type[Section]) -> dict[str, Any]:
    """The settings that a section has of its parent."""
    return {name: getattr(config, name) for name in parent.model_fields}


def _read(config: PrepareConfig, work: Work, reads: Sequence[ReadConfig] | None) -> Examined:
    """All documents, and what was set aside.

    Raises:
        DataError: A source is unusable, or too many records are.
    """
    if reads is None:
        sources = {source: hash_file(source.path) for source in find_sources(config.sources, config.directories)}
        reads = plan_reading(config, sources)
    else:
        pieces = (piece for read in reads for piece in read.pieces)
        sources = {Source(piece.name, piece.path, piece.kind, piece.root): piece.sha256 for piece in pieces}
    made = work.each(READ, [(each, ()) for each in reads])
    rejected = Rejected()
    for counts in (tables[-1].counts for tables in made):
        rejected.good += int(counts["good"])
        rejected.bad += int(counts["bad"])
        rejected.notes.update(
            {name.removeprefix(NOTE): int(times) for name, times in counts.items() if name.startswith(NOTE)}
        )
    records = [tables[-1] for tables in made if tables[-1].rows]
    if records:
        first = records[0].read().slice(0, 1).to_pylist()[0]
        rejected.first, rejected.hint = first["first"], first["hint"]
    rejected.check(config.max_bad_fraction)
    parts = [part for tables in made for part in tables[:-1]]
    return Examined(sources=sources, reads=tuple(reads), read=parts, parts=parts, rejected=rejected, records=records)
