"""Conversations that are written down as one text, as in Anthropic's HH-RLHF and in openassistant-guanaco."""

from __future__ import annotations

import re
from typing import Any

from tallow.errors import DataError

STYLES = (
    re.compile(r"(?:^|\n\n)(Human|Assistant): ?"),
    re.compile(r"### (Human|Assistant): ?"),
)
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: Any) -> bool:
    """Whether a text begins with a turn of someone."""
    return isinstance(text, str) and _style(text) is not None


def read_transcript(text: str) -> list[dict[str, str]]:
    """The messages of a transcript; that of somebody who did not say anything at its end is left out.

    Raises:
        DataError: It is none, or somebody said nothing in between.
    """
    style = _style(text)
    if style is None:
        raise DataError("is no transcript", 'one begins with "\\n\\nHuman: " or "### Human: "')
    _, *parts = style.split(text.strip())
    messages = [
        {"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if not messages[-1]["content"]:
        messages.pop()
    if not messages or not all(message["content"] for message in messages):
        raise DataError("holds an empty turn", "leave it out")
    return messages


def _style(text: str) -> re.Pattern[str] | None:
    begin = text.lstrip()[:20]
    return next((style for style in STYLES if style.match(begin)), None)
