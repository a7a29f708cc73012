"""What drops how many documents, now and with other settings."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from tallow.data.examine import Examined


class Drop(NamedTuple):
    """How many documents a rule drops.

    Args:
        reason: The rule, or what else documents are dropped for.
        first: Those that it has dropped, nothing before it having done so.
        all: Those that it is against; None: it is asked only of what is left by then, as duplicates are.
        alone: Those that no other rule is against; None likewise.
    """

    reason: str
    first: int
    all: int | None
    alone: int | None


def drop_table(found: Examined) -> list[Drop]:
    """What has dropped documents, in the order in which it was asked."""
    counts: dict[str, Counter[str]] = {}
    for judged in found.judged:
        for name, count in judged.counts.items():
            which, _, reason = name.partition(" ")
            counts.setdefault(reason, Counter())[which] += int(count)
    fates = found.fates()
    rows = [Drop(reason, *(count[which] for which in ("first", "all", "alone"))) for reason, count in counts.items()]
    return rows + [Drop(reason, fates[reason], None, None) for reason in dict.fromkeys(found.asked)]
