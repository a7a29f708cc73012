"""What a model is asked for, and how its answers are read.

The steps are those of Self-Instruct (Wang et al., 2022, arXiv 2212.10560, section 2.2 and appendix A).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

NUMBERED = re.compile(r"^\s*(?:task\s*)?(\d+)\s?[.):]\s*(?:\d+[.)]\s+)*", re.IGNORECASE | re.MULTILINE)
"""A number, and others behind it: small models begin a list of their own (`1. 9. Sing.`)."""

EXAMPLE = re.compile(r"^\s*example\s*\d*\s*[.:]?\s*$", re.IGNORECASE | re.MULTILINE)
INPUT, OUTPUT, LABEL = "Input:", "Output:", "Class label:"
MOST_INSTANCES = 5
NO_INPUT = frozenset({"", "none", "none.", "n/a", "no input", "<noinput>", "not applicable"})


@dataclass(frozen=True)
class Instance:
    """An input, perhaps empty, and the output for it."""

    input: str
    output: str


@dataclass(frozen=True)
class Task:
    """An instruction with instances."""

    instruction: str
    is_classification: bool
    instances: tuple[Instance, ...] = field(default=())


def ask_for_instructions(shown: Sequence[str], listed: int) -> str:
    """Goes on with a list of tasks up to the number `listed`."""
    lines = [f"{number}. {one_line(text)}" for number, text in enumerate(shown, 1)]
    head = f"Go on with this list of varied tasks up to number {listed}, one on each line:"
    return "\n".join([head, *lines, f"{len(shown) + 1}."])


def read_instructions(answer: str, ended: bool, shown: int) -> list[str]:
    """The tasks of an answer, which may begin with the text of the first or with its number.

    Args:
        answer: What the model wrote.
        ended: Whether it ended by itself; else its last task is incomplete.
        shown: How many tasks the list had: if the answer repeats them, they are left out later, as too much alike.
    """
    begins = NUMBERED.match(answer)
    text = answer if begins else f"{shown + 1}. {answer}"
    tasks = [one_line(task) for task in NUMBERED.split(text)[2::2]]
    return [task for task in (tasks if ended else tasks[:-1]) if task]


def ask_for_kind(instruction: str, shown: Sequence[Task]) -> str:
    """Asks whether a task is one of classification."""
    parts = ["Is a task one of classification, so that its output is one of a few labels? Answer Yes or No."]
    for task in shown:
        parts.append(f"Task: {one_line(task.instruction)}\nClassification: {'Yes' if task.is_classification else 'No'}")
    return "\n\n".join([*parts, f"Task: {one_line(instruction)}\nClassification:"])


def read_kind(answer: str) -> bool:
    """Whether the answer begins with a yes."""
    return answer.strip().strip("*\"'").lower().startswith("yes")


def ask_for_instances(instruction: str, shown: Sequence[Task]) -> str:
    """Asks for inputs and then outputs, for tasks that are not of classification."""
    parts = [
        "Write examples for the last task, several where that makes sense. "
        "Where a task needs no further input, write the output alone."
    ]
    for task in shown:
        examples = "\n".join(
            f"Example {number}\n{_written(instance)}"
            for number, instance in enumerate(task.instances[:MOST_INSTANCES], 1)
        )
        parts.append(f"Task: {one_line(task.instruction)}\n{examples}")
    return "\n\n".join([*parts, f"Task: {one_line(instruction)}\nExample 1\n"])


def ask_for_labelled_instances(instruction: str, shown: Sequence[Task]) -> str:
    """Asks for a label and then an input that has it: by inputs first, one label would be by far the most frequent."""
    parts = [
        "For the last task, a classification, write each class label and an input that belongs to it. "
        "Where a task needs no input, write the class labels alone."
    ]
    for task in shown:
        examples = "\n".join(
            f"{LABEL} {instance.output}" + (f"\n{INPUT} {instance.input}" if instance.input else "")
            for instance in task.instances[:MOST_INSTANCES]
        )
        parts.append(f"Task: {one_line(task.instruction)}\n{examples}")
    return "\n\n".join([*parts, f"Task: {one_line(instruction)}\n{LABEL}"])


def read_instances(answer: str, ended: bool) -> list[Instance]:
    """Instances of an answer to `ask_for_instances`; the last is left out if it did not end by itself.

    An input without an output becomes an instance that has none; of several outputs the first counts.
    """
    found = []
    for part in EXAMPLE.split(answer):
        before, output, after = part.partition(OUTPUT)
        if output:
            found.append(Instance(_input(before), after.partition(f"\n{OUTPUT}")[0].strip()))
        elif part.strip().startswith(INPUT):
            found.append(Instance(_input(part), ""))
        elif part.strip():
            found.append(Instance("", part.strip()))
    return found if ended else found[:-1]


def read_labelled_instances(answer: str, ended: bool) -> list[Instance]:
    """Instances of an answer to `ask_for_labelled_instances`; the last is left out if it did not end by itself."""
    found = []
    for part in answer.strip().removeprefix(LABEL).split(LABEL):
        label, _, rest = part.strip().partition("\n")
        if label.strip():
            found.append(Instance(_input(rest), label.strip()))
    return found if ended else found[:-1]


def one_line(text: str) -> str:
    """A text on one line, without a colon at its end, as lists have it."""
    return re.sub(r"\s+", " ", text).strip().rstrip(":")


def _written(instance: Instance) -> str:
    before = f"{INPUT} {instance.input}\n" if instance.input else ""
    return f"{before}{OUTPUT} {instance.output}"


def _input(text: str) -> str:
    text = text.strip().removeprefix(INPUT).strip()
    return "" if text.lower() in NO_INPUT else text
