"""Self-Instruct (Wang et al., 2022, arXiv 2212.10560): instructions with instances, bootstrapped from seed tasks.

A model is asked to go on with lists of tasks, mixed of people's and its own; then, of each new one, whether it is a
classification, and for instances. Prompts follow from the seed and from what was answered before, so from the same
answers comes the same set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field, NonNegativeFloat, PositiveInt

from tallow.console import progress, say
from tallow.data.read import read_records
from tallow.data.records import Record, Rejected
from tallow.data.synthetic.filters import is_copied, usable_instances, why_not
from tallow.data.synthetic.log import AskLog
from tallow.data.synthetic.prompts import (
    MOST_INSTANCES,
    Instance,
    Task,
    ask_for_instances,
    ask_for_instructions,
    ask_for_kind,
    ask_for_labelled_instances,
    one_line,
    read_instances,
    read_instructions,
    read_kind,
    read_labelled_instances,
)
from tallow.data.synthetic.rouge import Similarity
from tallow.data.synthetic.writers import Ask, Writer
from tallow.errors import DataError
from tallow.files import hash_value, write_json, write_text
from tallow.recipe import Section

TOO_ALIKE = "too much like another"
LISTED = 16
"""Where the list of tasks ends."""


class SynthesizeConfig(Section):
    """How instructions are made; the defaults are the paper's.

    Args:
        count: How many instructions to make, besides the seed tasks. It may be raised later.
        seed: Names which tasks are shown, and the seeds that go with what is asked.
        shown_seeds: Seed tasks in a list that the model goes on with,
        shown_generated: and its own, as soon as there are some.
        shown_classifications: Seed tasks shown where it is asked for a kind: those of classification,
        shown_others: and others.
        shown_examples: Seed tasks with instances that are shown where these are asked for.
        similarity: An instruction is left out whose ROUGE-L with another is that or more.
        temperature: Of lists of tasks; kinds and instances are asked for at 0.
        top_p: Likewise.
        presence_penalty: Of lists of tasks; of instances it is 1.5, as in the paper.
        max_tokens: Of an answer.
        ascii_only: Leave out instructions that begin with a character of another script than Latin.
        patience: Give up when so many asks one after another have brought nothing new.
    """

    count: PositiveInt = 100
    seed: int = Field(default=0, ge=0, lt=2**31)
    shown_seeds: PositiveInt = 6
    shown_generated: int = Field(default=2, ge=0)
    shown_classifications: PositiveInt = 12
    shown_others: PositiveInt = 19
    shown_examples: PositiveInt = 4
    similarity: float = Field(default=0.7, gt=0, le=1)
    temperature: NonNegativeFloat = 0.7
    top_p: float = Field(default=0.5, gt=0, le=1)
    presence_penalty: float = 2.0
    max_tokens: PositiveInt = 1024
    ascii_only: bool = True
    patience: PositiveInt = 20


def synthesize(
    seeds: str | Path | Iterable[str | Path],
    writer: Writer,
    model: str,
    out: Path,
    config: SynthesizeConfig,
    parallel: int = 1,
) -> dict[str, Any]:
    """Write `instructions.jsonl`, a record an instance in Alpaca's spelling, and `summary.json`.

    What was asked and answered is kept in `asked/`; after a kill the same call goes on from there.

    Args:
        seeds: Files of tasks: `instruction` with `instances`, or with `input` and `output`, and `is_classification`.
        writer: The model.
        model: What it is called; it is noted, and another one cannot go on.
        out: The directory.
        config: How.
        parallel: How many lists are asked for at once; their prompts are made of what was there before all of them.

    Returns:
        The summary: how many instructions, instances and asks there are, and how many were left out for what reason.

    Raises:
        DataError: There are no seed tasks, or the model brings nothing new.
        UsageError: The directory was begun with other settings.
        TallowError: As the writer.
    """
    tasks = _read_seeds(seeds)
    known = {
        "model": model,
        "parallel": parallel,
        "seeds": hash_value([repr(task) for task in tasks]),
        **config.model_dump(exclude={"count", "patience"}),
    }
    logs = {name: AskLog(out / "asked" / f"{name}.jsonl", known) for name in ("tasks", "kinds", "instances")}
    left_out = Counter[str]()
    instructions = _instructions(tasks, logs["tasks"], writer, config, parallel, left_out)
    made = _kinds(instructions, tasks, logs["kinds"], writer, config)
    made = _instances(made, tasks, logs["instances"], writer, config, left_out)
    records = [
        {
            "instruction": task.instruction,
            "input": instance.input,
            "output": instance.output,
            "is_classification": task.is_classification,
        }
        for task in made
        for instance in task.instances
    ]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_text(out / "instructions.jsonl", "".join(lines))
    summary = {
        "instructions": sum(bool(task.instances) for task in made),
        "classifications": sum(bool(task.instances) and task.is_classification for task in made),
        "instances": len(records),
        "left_out": dict(sorted(left_out.items())),
        "asks": {name: len(log) for name, log in logs.items()},
        "seed_tasks": len(tasks),
        "settings": {**known, "count": config.count},
    }
    write_json(out / "summary.json", summary)
    return summary


def _instructions(
    seeds: Sequence[Task], log: AskLog, writer: Writer, config: SynthesizeConfig, parallel: int, left_out: Counter[str]
) -> list[str]:
    """New instructions, in the order in which they were made: at least as many as wanted."""
    made: list[str] = []
    similarity = Similarity(task.instruction for task in seeds)
    number = in_vain = 0
    with progress("instructions", config.count) as bar:
        while len(made) < config.count:
            asks = [_ask_for_tasks(seeds, made, number + place, config) for place in range(parallel)]
            before, number = len(made), number + parallel
            shown = min(config.shown_seeds, len(seeds)) + min(config.shown_generated, before)
            for answer in log.answers(asks, writer):
                for instruction in read_instructions(answer.text, answer.ended, shown):
                    reason = why_not(instruction, config.ascii_only)
                    if reason is None and similarity.reaches(instruction, config.similarity):
                        reason = TOO_ALIKE
                    if reason is not None:
                        left_out[reason] += 1
                        continue
                    similarity.add(instruction)
                    made.append(instruction)
            bar.advance(len(made) - before)
            in_vain = 0 if len(made) > before else in_vain + parallel
            if in_vain >= config.patience:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common(3))
                say(f"the last {in_vain} answers brought nothing new (left out: {reasons or 'nothing'})")
                break
    if not made:
        raise DataError("the model has made no instruction", "take a larger one, or see what it says in asked/")
    return made


def _ask_for_tasks(seeds: Sequence[Task], made: Sequence[str], number: int, config: SynthesizeConfig) -> Ask:
    chance = Random(f"{config.seed} tasks {number}")
    shown = [task.instruction for task in chance.sample(seeds, min(config.shown_seeds, len(seeds)))]
    shown += chance.sample(made, min(config.shown_generated, len(made)))
    chance.shuffle(shown)
    return Ask(
        ask_for_instructions(shown, LISTED),
        config.max_tokens,
        config.temperature,
        config.top_p,
        config.presence_penalty,
        (f"\n{LISTED + 1}.",),
        chance.getrandbits(31),
    )


def _kinds(
    instructions: Sequence[str], seeds: Sequence[Task], log: AskLog, writer: Writer, config: SynthesizeConfig
) -> list[Task]:
    """The instructions as tasks, of which it is known whether they are classifications."""
    chance = Random(f"{config.seed} kinds")
    classifications = [task for task in seeds if task.is_classification]
    others = [task for task in seeds if not task.is_classification]
    if not classifications or not others:  # from examples of one kind a model would learn that there is no other
        return [Task(instruction, bool(classifications)) for instruction in instructions]
    shown = chance.sample(classifications, min(config.shown_classifications, len(classifications)))
    shown += chance.sample(others, min(config.shown_others, len(others)))
    chance.shuffle(shown)
    asks = [
        Ask(ask_for_kind(instruction, shown), 3, 0.0, 1.0, 0.0, ("\n", "Task:"), config.seed)
        for instruction in instructions
    ]
    made = list[Task]()
    with progress("kinds", len(asks)) as bar:
        for instruction, answer in zip(instructions, log.answers(asks, writer), strict=True):
            made.append(Task(instruction, read_kind(answer.text)))
            bar.advance()
    return made


def _instances(
    made: Sequence[Task],
    seeds: Sequence[Task],
    log: AskLog,
    writer: Writer,
    config: SynthesizeConfig,
    left_out: Counter[str],
) -> list[Task]:
    """The tasks with their instances, as far as any are usable."""
    chance = Random(f"{config.seed} instances")
    shown = {}
    for kind in (True, False):
        usable = [task for task in seeds if task.is_classification == kind and task.instances]
        shown[kind] = chance.sample(usable, min(config.shown_examples, len(usable)))
    asks = [_ask_for_instances(task, shown[task.is_classification], config) for task in made]
    finished = list[Task]()
    with progress("instances", len(asks)) as bar:
        for task, answer in zip(made, log.answers(asks, writer), strict=True):
            read = read_labelled_instances if task.is_classification else read_instances
            found = read(answer.text, answer.ended)
            own = [instance for instance in found if not is_copied(instance, shown[task.is_classification])]
            usable = usable_instances(own)
            left_out["copied instance"] += len(found) - len(own)
            left_out["unusable instance"] += len(own) - len(usable)
            left_out["no usable instance"] += not usable
            finished.append(replace(task, instances=tuple(usable)))
            bar.advance()
    return finished


def _ask_for_instances(task: Task, shown: Sequence[Task], config: SynthesizeConfig) -> Ask:
    ask = ask_for_labelled_instances if task.is_classification else ask_for_instances
    stop = (f"Example {MOST_INSTANCES + 1}", "Task:")
    return Ask(ask(task.instruction, shown), config.max_tokens, 0.0, 1.0, 1.5, stop, config.seed)


def _read_seeds(sources: str | Path | Iterable[str | Path]) -> list[Task]:
    """Seed tasks, each instruction once.

    Raises:
        DataError: There are none, or too many records are none.
    """
    rejected, tasks = Rejected(), dict[str, Task]()
    for record in read_records(sources, rejected=rejected):
        task = _task(record)
        if task is None:
            rejected.good -= 1
            reason = "is no task (instruction, with instances or input and output)"
            rejected.add(record.place, reason, json.dumps(record.fields, default=str).encode())
        else:
            tasks.setdefault(task.instruction, task)
    if rejected.bad:
        say(f"left out {rejected.bad:,} seed tasks (first: {rejected.first})")
    if not tasks:
        raise DataError("there are no seed tasks", 'write {"instruction": …, "instances": [{"input", "output"}]}')
    return list(tasks.values())


def _task(record: Record) -> Task | None:
    fields = record.fields
    instruction, given = fields.get("instruction"), fields.get("instances")
    if not isinstance(instruction, str) or not instruction.strip():
        return None
    instances = []
    for instance in given if isinstance(given, list) else [fields]:
        if isinstance(instance, dict) and isinstance(instance.get("output"), str):
            instances.append(Instance(str(instance.get("input") or "").strip(), instance["output"].strip()))
    return Task(one_line(instruction), fields.get("is_classification") is True, tuple(instances))
