"""Instructions chosen by what they teach a small model: records of files, to files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tallow.console import say
from tallow.data.records import Record, Rejected
from tallow.errors import UsageError
from tallow.files import write_json, write_text
from tallow.models.formats import load_model, load_tokenizer
from tallow.models.store import resolve
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.trainable import refuse_quantized
from tallow.tune.examples import Example, keep_fitting, read_examples
from tallow.tune.influence import InfluenceConfig, choose, influence
from tallow.tune.sft import give_template, pad_id


def select(
    model: str | Path,
    data: Sequence[str | Path],
    targets: Sequence[str | Path],
    out: Path,
    config: InfluenceConfig,
    *,
    fraction: float = 0.05,
    sequence_length: int = 512,
) -> dict[str, Any]:
    """Write the records that teach most of what the targets show, as they are, to a JSONL file.

    Beside it, `<out>.scores.jsonl` has every record's place and its score by each target, so that another share can be
    taken without measuring again, and `<out>.json` all settings.

    Args:
        model: A small model, by whose gradients it is chosen; anything that `store.resolve` understands.
        data: Files of instructions to choose from.
        targets: Files of a few examples; each is a kind of task, and a record counts for the one that it teaches most.
        out: The file to write.
        config: How influence is measured.
        fraction: Share of the examples to take.
        sequence_length: Longer examples are left out.

    Returns:
        `path`, `selected`, `examples`, and the `score` of the last that was taken.

    Raises:
        DataError: Model or data cannot be read, or there is nothing to choose from.
        UsageError: The model is quantized, or the fraction makes no sense.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"a fraction of {fraction:g} cannot be taken", "set it above 0, and at most to 1")
    source = resolve(model)
    decoder, tokenizer = load_model(source, dtype=torch.float32), load_tokenizer(source)
    refuse_quantized(decoder, source)
    give_template(tokenizer)
    names = [str(name) for name in targets]
    wanted = {name: keep_fitting((found for found, _ in _read(name, tokenizer)), sequence_length) for name in names}
    read = [pair for name in data for pair in _read(name, tokenizer)]
    fitting = {id(example) for example in keep_fitting([example for example, _ in read], sequence_length)}
    read = [pair for pair in read if id(pair[0]) in fitting]
    scores_NK = influence(decoder, [example for example, _ in read], wanted, config, pad_id(tokenizer))
    chosen = choose(scores_NK, math.ceil(fraction * len(read)))
    records = dict[int, Record]()
    for index in chosen:
        records.setdefault(id(read[index][1]), read[index][1])
    write_text(out, "".join(json.dumps(record.fields, ensure_ascii=False) + "\n" for record in records.values()))
    taken = set(chosen)
    lines = [
        {"place": str(record.place), "scores": dict(zip(names, scores, strict=True)), "selected": index in taken}
        for index, ((_, record), scores) in enumerate(zip(read, scores_NK.tolist(), strict=True))
    ]
    write_text(
        out.with_name(f"{out.name}.scores.jsonl"),
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    )
    result = {
        "selected": len(chosen),
        "examples": len(read),
        "score": float(scores_NK[chosen].max(dim=1).values.min()),
    }
    settings = {**config.model_dump(mode="json"), "fraction": fraction, "sequence_length": sequence_length}
    write_json(out.with_name(f"{out.name}.json"), {**result, "model": str(model), "settings": settings})
    return {"path": str(out), **result}


def _read(name: str | Path, tokenizer: Tokenizer) -> list[tuple[Example, Record]]:
    rejected = Rejected()
    found = list(read_examples([name], tokenizer, rejected))
    if rejected.bad:
        say(f"left out {rejected.bad:,} records (first: {rejected.first})")
    return found
