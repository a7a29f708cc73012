"""What sets of instructions hold, whatever their spelling: conversations, preferences, judged answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages that a chat template writes.

    Args:
        messages: As in OpenAI's API, the arguments of tool calls as objects.
        learned: For each message whether it is to be learned; those of an assistant may be.
        tools: The functions that may be called, as in OpenAI's API.
    """

    messages: tuple[Message, ...]
    learned: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A text and how it goes on, without a chat template; the completion is learned."""

    prompt: str
    completion: str


Answered = Conversation | Completion


@dataclass(frozen=True)
class Preference:
    """Two answers to the same, of which one is better; what is learned of each is where they differ."""

    chosen: Answered
    rejected: Answered


@dataclass(frozen=True)
class Labelled:
    """An answer, and whether it is a good one."""

    answer: Answered
    good: bool


Sample = Conversation | Completion | Preference | Labelled
