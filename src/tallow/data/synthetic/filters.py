"""Which instructions and instances are kept: the heuristics of Self-Instruct (arXiv 2212.10560, section 2.2)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from tallow.data.synthetic.prompts import Instance, Task

FEWEST_WORDS, MOST_WORDS = 4, 150
COPIED = 30
"""Characters with which two texts do not begin by chance."""

BEYOND_TEXT = re.compile(r"\b(images?|graphs?|pictures?|files?|maps?|draw|plot|go to)\b", re.IGNORECASE)
"""What a language model can neither see nor do."""


def why_not(instruction: str, ascii_only: bool = True) -> str | None:
    """What speaks against an instruction by itself; None: nothing.

    Args:
        instruction: On one line.
        ascii_only: As in the paper, those go that begin with a character of another script than Latin.
    """
    count = len(instruction.split())
    if count < FEWEST_WORDS and instruction.isascii():
        return "too short"
    if count > MOST_WORDS or len(instruction) > 20 * MOST_WORDS:
        return "too long"
    if BEYOND_TEXT.search(instruction):
        return "beyond text"
    if instruction.startswith("Write a program"):
        return "a program"  # of these there would be far too many
    if instruction[0] in string.punctuation:
        return "begins with punctuation"
    if ascii_only and not instruction[0].isascii():
        return "not ASCII"
    return None


def is_copied(instance: Instance, shown: Sequence[Task]) -> bool:
    """Whether an input or output begins as one of those that the model was shown.

    The paper does not ask for that; small models write little else.
    """
    begins = {text[:COPIED] for task in shown for each in task.instances for text in (each.input, each.output)}
    return any(len(text) >= COPIED and text[:COPIED] in begins for text in (instance.input, instance.output))


def usable_instances(instances: Sequence[Instance]) -> list[Instance]:
    """Instances without empty or unfinished ones, repetitions, and inputs that have several outputs."""
    kept = [
        instance
        for instance in dict.fromkeys(instances)
        if instance.output
        and instance.input != instance.output
        and not instance.input.endswith(":")
        and not instance.output.endswith(":")
    ]
    outputs: dict[str, set[str]] = {}
    for instance in kept:
        outputs.setdefault(instance.input, set()).add(instance.output)
    # Several outputs for no input are several answers to the same task: one is enough.
    without = next((instance for instance in kept if not instance.input), None)
    return [
        instance for instance in kept if (len(outputs[instance.input]) == 1 if instance.input else instance == without)
    ]
