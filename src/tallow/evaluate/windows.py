"""Fixed windows over a text: which tokens a model sees together, and which of them are scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Window(NamedTuple):
    """Tokens that a model sees together, the last `scored` of which are scored."""

    ids: list[int]
    scored: int


def cut_windows(
    ids: Sequence[int], window: int, stride: int | None = None, bos_id: int | None = None
) -> Iterator[Window]:
    """Cut one document into windows, so that each of its tokens is scored at most once.

    A window holds `window` tokens, of which `bos_id`, if there is one, is the first; the last window may be shorter.
    Each starts `stride` tokens after the one before it. Without a stride windows do not overlap. A token is
    scored in the first window that has it, given all before it there; a token with none before it is not scored.
    """
    start_ids = [] if bos_id is None else [bos_id]
    room = window - len(start_ids)
    seen = 0
    for start in range(0, len(ids), stride or room):
        end = min(start + room, len(ids))
        has_context = bool(start_ids) or start < seen
        scored = end - seen - (0 if has_context else 1)
        if scored:
            yield Window([*start_ids, *ids[start:end]], scored)
        seen = end
        if end == len(ids):
            return
