"""Which replica has which beginnings of prompts in its cache, as far as that follows from what it was sent."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import orjson

PART_BYTES = 64
"""About what a block of the cache holds."""
MOST_PARTS = 1024
"""Of one prompt; what comes after them makes no difference to where it goes."""
MOST_KNOWN = 1 << 17
"""Parts; those that were not asked for the longest are forgotten first."""
MOST_BEHIND = 8
"""A replica that has so many more requests than another waits for none for the sake of its cache."""


def beginnings(user: str | None, body: bytes) -> list[bytes]:
    """Names of the beginnings of a request's prompt, the shortest first; none if it has no prompt.

    Two requests share a name only if they share everything before it: who asks, which model, what tools, and the text.

    Args:
        user: Who asks, as caches are not shared between users.
        body: Of the request, in any API's form.
    """
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        return []
    if not isinstance(asked, Mapping):
        return []
    prompt = next((asked[name] for name in ("messages", "prompt", "input") if name in asked), None)
    if prompt is None:
        return []
    before: list[Any] = [asked.get(name) for name in ("model", "cache_salt", "tools", "system", "instructions")]
    text = orjson.dumps([user, *before, prompt])
    names, state = [], hashlib.blake2b(digest_size=12)
    for start in range(0, min(len(text) - PART_BYTES, MOST_PARTS * PART_BYTES) + 1, PART_BYTES):
        state.update(text[start : start + PART_BYTES])
        names.append(state.digest())
    return names


class Prefixes:
    """What each replica was sent, and how many requests it has."""

    def __init__(self) -> None:
        self._owners: OrderedDict[bytes, set[str]] = OrderedDict()
        self._loads: Counter[str] = Counter()
        self._turns: dict[str, int] = {}  # the number of the last request that each was sent
        self._num_sent = 0

    def rank(self, names: Sequence[bytes], replicas: Collection[str]) -> list[str]:
        """The replicas, best first: those not much busier than another before the others, then those that have been
        sent the longest of these beginnings, then those with the fewest requests, then those whose turn it is."""
        least = min((self._loads[replica] for replica in replicas), default=0)
        lengths = self._lengths(names)
        return sorted(
            replicas,
            key=lambda replica: (
                self._loads[replica] >= least + MOST_BEHIND,
                -lengths[replica],
                self._loads[replica],
                self._turns.get(replica, 0),
            ),
        )

    def send(self, names: Sequence[bytes], replica: str) -> None:
        """A request with these beginnings goes there."""
        self._loads[replica] += 1
        self._num_sent += 1
        self._turns[replica] = self._num_sent
        for name in reversed(names):  # so that the shortest are forgotten last
            self._owners.setdefault(name, set()).add(replica)
            self._owners.move_to_end(name)
        while len(self._owners) > MOST_KNOWN:
            self._owners.popitem(last=False)

    def finish(self, replica: str) -> None:
        """A request that was sent there has ended."""
        self._loads[replica] -= 1

    def keep(self, replicas: Collection[str]) -> None:
        """Forget all other replicas."""
        gone = self._turns.keys() - set(replicas)
        if not gone:
            return
        for replica in gone:
            del self._turns[replica]
            self._loads.pop(replica, None)
        for owners in self._owners.values():
            owners -= gone

    def _lengths(self, names: Sequence[bytes]) -> Counter[str]:
        """How many of the beginnings, from the shortest on, each replica was sent."""
        lengths: Counter[str] = Counter()
        left: set[str] | None = None
        for name in names:
            owners = self._owners.get(name, set())
            left = owners if left is None else left & owners
            if not left:
                break
            lengths.update(left)
        return lengths
