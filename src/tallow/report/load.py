"""Latency and load of a server, from its request log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tallow.errors import DataError
from tallow.serve.request_log import LoggedRequest, read_requests

Array = NDArray[np.float64]
MOST_SPANS = 120
SPANS_S = (1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600)
"""How long a span of time may be for which a curve has one value."""
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Load:
    """What a server did over time, in spans of equal length.

    Args:
        edges_s: Where spans begin, and where the last one ends, in seconds since 1970; one more than there are spans.
        tokens_per_s: Generated; a request's are spread evenly from its first to its last.
        prompt_tokens_per_s: Of prompts, without those found in the cache; counted at the first token of the answer.
        first_token_s: Percentiles (50 and 95) of the time to the first token, of what arrived then; nan: nothing did.
        waiting, running: Most requests at a time before, and after, their first token.
    """

    edges_s: Array
    tokens_per_s: Array
    prompt_tokens_per_s: Array
    first_token_s: dict[int, Array]
    waiting: Array
    running: Array


@dataclass(frozen=True)
class LogSummary:
    """A request log.

    Args:
        path: The file.
        requests: Its rows, as they arrived; at least one.
    """

    path: Path
    requests: list[LoggedRequest]

    def as_json(self) -> dict[str, Any]:
        """Counts, and percentiles of what requests that were answered took."""
        answered = [request for request in self.requests if request.status == 200]
        between = [
            (request.latency_s - request.first_token_s) / (request.completion_tokens - 1)
            for request in answered
            if request.first_token_s is not None and request.completion_tokens > 1
        ]
        firsts = [request.first_token_s for request in answered if request.first_token_s is not None]
        return {
            "first": _utc(self.requests[0].arrived_s),
            "last": _utc(self.requests[-1].arrived_s),
            "requests": len(self.requests),
            "answered": len(answered),
            "prompt_tokens": sum(request.prompt_tokens for request in self.requests),
            "cached_tokens": sum(request.cached_tokens for request in self.requests),
            "completion_tokens": sum(request.completion_tokens for request in self.requests),
            "first_token_s": _percentiles(firsts),
            "latency_s": _percentiles([request.latency_s for request in answered]),
            "time_per_token_s": _percentiles(between),
        }

    def groups(self, by: Callable[[LoggedRequest], Hashable]) -> dict[Any, dict[str, Any]]:
        """The same of the requests that have something in common, those with the most first."""
        found: dict[Hashable, list[LoggedRequest]] = defaultdict(list)
        for request in self.requests:
            found[by(request)].append(request)
        largest_first = sorted(found.items(), key=lambda item: -len(item[1]))
        return {common: LogSummary(self.path, requests).as_json() for common, requests in largest_first}

    def load(self) -> Load:
        """What there was to do, and was done, over time."""
        rows = self.requests
        arrived = np.array([request.arrived_s for request in rows])
        ended = arrived + np.array([request.latency_s for request in rows])
        has_begun = np.array([request.first_token_s is not None for request in rows])
        begun = arrived + np.array([request.first_token_s or 0.0 for request in rows])
        tokens = np.array([request.completion_tokens for request in rows], float)
        computed = np.array([request.prompt_tokens - request.cached_tokens for request in rows], float)
        edges = _edges(arrived.min(), ended.max())
        span_s = edges[1] - edges[0]
        durations = np.maximum(ended - begun, 1e-9)
        done = [np.sum((tokens * np.clip((edge - begun) / durations, 0, 1))[has_begun]) for edge in edges]
        prompts, _ = np.histogram(begun[has_begun], edges, weights=computed[has_begun])
        spans = np.clip(np.searchsorted(edges, arrived, "right") - 1, 0, len(edges) - 2)
        firsts = [(begun - arrived)[has_begun & (spans == span)] for span in range(len(edges) - 1)]
        waits_until = np.where(has_begun, begun, ended)
        return Load(
            edges_s=edges,
            tokens_per_s=np.diff(done) / span_s,
            prompt_tokens_per_s=prompts / span_s,
            first_token_s={
                percent: np.array([np.percentile(each, percent) if each.size else np.nan for each in firsts])
                for percent in (50, 95)
            },
            waiting=_most_at_a_time(arrived, waits_until, edges),
            running=_most_at_a_time(begun[has_begun], ended[has_begun], edges),
        )


def summarize_log(path: Path) -> LogSummary:
    """Read a request log.

    Raises:
        DataError: It is none, or empty.
    """
    requests = read_requests(path)
    if not requests:
        raise DataError(f"no request has been written to {path} yet", "ask the server something")
    return LogSummary(path, requests)


def _edges(first_s: float, last_s: float) -> Array:
    span_s = next((each for each in SPANS_S if (last_s - first_s) / each < MOST_SPANS), SPANS_S[-1])
    begin_s = first_s // span_s * span_s
    return begin_s + span_s * np.arange(int((last_s - begin_s) // span_s) + 2.0)


def _most_at_a_time(begin_s: Array, end_s: Array, edges_s: Array) -> Array:
    """How many intervals hold one moment, at most, in each span of time."""
    times = np.concatenate([begin_s, end_s])
    steps = np.concatenate([np.ones_like(begin_s), -np.ones_like(end_s)])
    order = np.lexsort([steps, times])  # what ends when another begins leaves before
    times, counts = times[order], np.concatenate([[0.0], np.cumsum(steps[order])])
    most = counts[np.searchsorted(times, edges_s[:-1], "right")]  # what a span begins with
    spans = np.clip(np.searchsorted(edges_s, times, "right") - 1, 0, len(most) - 1)
    np.maximum.at(most, spans, counts[1:])
    return most


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(values, [*PERCENTILES, 100])
    return dict(zip([*(f"p{percent}" for percent in PERCENTILES), "max"], map(float, found), strict=True))


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
