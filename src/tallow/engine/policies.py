"""Who goes first: the order in which unfinished requests are given the tokens of a step and the blocks of the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tallow.engine.request import Request

PolicyName = Literal["first-come", "priority", "shortest"]
Order = tuple[float, int]
Policy = Callable[["Request"], Order]
"""The least goes first. Arrival numbers make every order a total one, so that somebody always gets all he needs."""

TOKEN_AS_PREFILL = 8.0
"""A token of the answer delays others about as much as so many tokens of a prompt: it needs a step of its own."""
AGEING = 500.0
"""By so many tokens of a prompt a waiting request comes forward each second."""


def first_come(request: Request) -> Order:
    """In order of arrival."""
    return 0.0, request.arrival


def priority(request: Request) -> Order:
    """The smallest `priority` first, those with the same in order of arrival."""
    return float(request.priority), request.arrival


def shortest(request: Request) -> Order:
    """Shortest remaining job first, which minimizes the mean time to completion (Schrage 1968).

    What remains is the part of the prompt that the cache does not have, and the longest answer that is allowed. Who
    waits ages: as all age at the same rate, his order does not change with time, but later requests get a worse one, so
    that nobody waits for ever. What has to be computed again after a preemption does not count: so the order of those
    who answer is that in which they began, and the beams of a search, which wait for each other, keep together.
    """
    answer = TOKEN_AS_PREFILL * (request.limit - len(request.ids))
    known = max(request.num_computed_tokens, request.num_cached_tokens)
    prompt = 0 if request.ids else len(request.prompt_ids) - known
    return answer + prompt + AGEING * request.submitted_s, request.arrival


POLICIES: dict[PolicyName, Policy] = {"first-come": first_come, "priority": priority, "shortest": shortest}
