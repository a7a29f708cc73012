"""Instructions chosen by what they teach a small model: records of files, to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tallow.console import say
from tallow.data.records import Record, Rejected
from tallow.data.selection.chosen import Scored, Wanted, choose_best, write_chosen
from tallow.models.formats import load_model, load_tokenizer
from tallow.models.store import resolve
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.trainable import refuse_quantized
from tallow.tune.examples import Example, keep_fitting, read_examples
from tallow.tune.influence import InfluenceConfig, influence
from tallow.tune.sft import give_template, pad_id


def select(
    model: str | Path,
    data: Sequence[str | Path],
    targets: Sequence[str | Path],
    out: Path,
    config: InfluenceConfig,
    much: Wanted,
    *,
    sequence_length: int = 512,
) -> dict[str, Any]:
    """Write the records that teach most of what the targets show, as they are, to a JSONL file.

    Args:
        model: A small model, by whose gradients it is chosen; anything that `store.resolve` understands.
        data: Files of instructions to choose from.
        targets: Files of a few examples; each is a kind of task, and a record counts for the one that it teaches most.
        out: The file to write; beside it come scores by each target, settings and the report, as `write_chosen` says.
        config: How influence is measured.
        much: How much is taken.
        sequence_length: Longer examples are left out.

    Returns:
        The report of `write_chosen`.

    Raises:
        DataError: Model or data cannot be read, or there is nothing to choose from.
        UsageError: The model is quantized.
    """
    source = resolve(model)
    decoder, tokenizer = load_model(source, dtype=torch.float32), load_tokenizer(source)
    refuse_quantized(decoder, source)
    give_template(tokenizer)
    names = [str(name) for name in targets]
    shown = {name: keep_fitting((found for found, _ in _read(name, tokenizer)), sequence_length) for name in names}
    read = [pair for name in data for pair in _read(name, tokenizer)]
    fitting = {id(example) for example in keep_fitting([example for example, _ in read], sequence_length)}
    read = [pair for pair in read if id(pair[0]) in fitting]
    scores_NK = influence(decoder, [example for example, _ in read], shown, config, pad_id(tokenizer))
    scored = [
        Scored(record, max(scores), dict(zip(names, scores, strict=True)))
        for (_, record), scores in zip(read, scores_NK.tolist(), strict=True)
    ]
    settings = {
        "by": "influence",
        **config.model_dump(mode="json"),
        **asdict(much),
        "sequence_length": sequence_length,
    }
    return write_chosen(out, scored, choose_best(scored, much), {"model": str(model), "settings": settings})


def _read(name: str | Path, tokenizer: Tokenizer) -> list[tuple[Example, Record]]:
    rejected = Rejected()
    found = list(read_examples([name], tokenizer, rejected))
    if rejected.bad:
        say(f"left out {rejected.bad:,} records (first: {rejected.first})")
    return found
