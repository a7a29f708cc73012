"""Instructions chosen by what their texts tell without a model, or by a classifier: records of files, to files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from tallow.console import say
from tallow.data.instructions.read import Read, read_samples
from tallow.data.instructions.samples import Answered, Completion, Labelled, Preference, Sample
from tallow.data.quality.classifier import Classifier, load_classifier
from tallow.data.records import Rejected
from tallow.data.selection.chosen import Scored, Wanted, choose_best, write_chosen
from tallow.data.selection.instruction import score_instructions
from tallow.errors import UsageError
from tallow.files import hash_path

TextScore = Literal["prompt_words", "response_words", "distinct", "copied", "classifier"]
"""What `COLUMNS` of instruction.py say, and the probability that a classifier gives a response."""

LOWEST = ("copied",)
"""Of these low ones are the better ones."""

BATCH = 10_000
"""Samples that are measured at once."""


def select_by_text(
    data: Sequence[str | Path],
    out: Path,
    by: TextScore,
    much: Wanted,
    *,
    classifier: Path | None = None,
    lowest: Mapping[str, float] | None = None,
    highest: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Write the records with the best scores, as they are, to a JSONL file; all samples are held in memory.

    Of preferences the chosen answer is measured, of a conversation all turns that are learned as one response and the
    others as its prompt.

    Args:
        data: Files of instructions to choose from.
        out: The file to write; beside it come scores, settings and the report, as `write_chosen` says.
        by: Which score: the longest prompts or responses (arXiv 2402.04833), those that repeat themselves or their
            prompt least, or those that a classifier finds the best.
        much: How much is taken.
        classifier: The directory of one that `tallow data classifier` has trained.
        lowest: By score, what it must have at least; a sample without that score stays.
        highest: The same at most.

    Returns:
        The report of `write_chosen`.

    Raises:
        DataError: Data cannot be read, there is nothing to choose from, or the classifier is missing or broken.
        UsageError: A bound is on a score that there is not, or a classifier is wanted and not given.
    """
    names = [name for name in get_args(TextScore) if name != "classifier" or classifier is not None]
    for name in (by, *(lowest or {}), *(highest or {})):
        if name == "classifier" and classifier is None:
            raise UsageError(
                "there is no classifier to score by", "name the directory that tallow data classifier wrote"
            )
        if name not in names:
            raise UsageError(f"there is no score {name}", f"there are: {', '.join(names)}")
    model = None if classifier is None else load_classifier(classifier)
    rejected, scored = Rejected(), list[Scored]()
    samples = read_samples(data, rejected)
    while batch := list(islice(samples, BATCH)):
        for read, scores in zip(batch, _measure(batch, model), strict=True):
            scored.append(Scored(read.record, scores[by], scores, _beyond(scores, lowest or {}, highest or {})))
    if rejected.bad:
        say(f"left out {rejected.bad:,} records (first: {rejected.first})")
    chosen = choose_best(scored, much, by in LOWEST)
    settings = {
        "by": by,
        **asdict(much),
        "min": dict(lowest or {}),
        "max": dict(highest or {}),
        "classifier": None if classifier is None else hash_path(classifier),
    }
    return write_chosen(out, scored, chosen, {"settings": settings}, by in LOWEST)


def read_bounds(given: Sequence[str]) -> dict[str, float]:
    """Bounds by score, of `SCORE=VALUE`.

    Raises:
        UsageError: One is not of this form.
    """
    bounds: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            bounds[name.strip()] = float(value)
        except ValueError as error:
            raise UsageError(f"{text} is no bound", "write SCORE=VALUE, such as distinct=0.8") from error
    return bounds


def texts_of(sample: Sample) -> tuple[str, str]:
    """What is given and what is answered: of preferences the chosen answer, of conversations what is learned."""
    answered: Answered
    if isinstance(sample, Preference):
        answered = sample.chosen
    else:
        answered = sample.answer if isinstance(sample, Labelled) else sample
    if isinstance(answered, Completion):
        return answered.prompt, answered.completion
    sides: tuple[list[str], list[str]] = ([], [])
    for message, learned in zip(answered.messages, answered.learned, strict=True):
        sides[learned].append(message.get("content") or "")  # a call of a tool may have none
    return "\n".join(sides[False]), "\n".join(sides[True])


def _measure(batch: Sequence[Read], model: Classifier | None) -> Iterator[dict[str, float | None]]:
    prompts, responses = zip(*(texts_of(read.sample) for read in batch), strict=True)
    answers = pa.array(responses, pa.string())
    columns = score_instructions(pa.array(prompts, pa.string()), answers)
    probabilities = [] if model is None else model.probabilities(answers).tolist()
    for number, row in enumerate(columns.to_pylist()):
        scores: dict[str, float | None] = {name.removeprefix("instruction."): value for name, value in row.items()}
        yield scores if model is None else {**scores, "classifier": probabilities[number]}


def _beyond(
    scores: Mapping[str, float | None], lowest: Mapping[str, float], highest: Mapping[str, float]
) -> str | None:
    """The first bound that a sample is beyond."""
    for name, bound in lowest.items():
        if (value := scores[name]) is not None and value < bound:
            return f"{name} below {bound:g}"
    for name, bound in highest.items():
        if (value := scores[name]) is not None and value > bound:
            return f"{name} above {bound:g}"
    return None
