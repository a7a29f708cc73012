"""What a server counts and measures, for Prometheus; vLLM's names where the meaning is the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily as Count
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import Metric

from tallow.serve.admission import Admission
from tallow.serve.engine_process import EngineProcess
from tallow.serve.wire import Update

METRICS_TYPE = "text/plain; version=0.0.4"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = tuple(float(2**power) for power in range(18))

Read = Callable[[EngineProcess], float]


def _state(field: str) -> Read:
    return lambda engine: engine.engine_state.get(field, 0)


ENGINE_METRICS: dict[str, tuple[type[Gauge | Count], str, Read]] = {
    "vllm:num_requests_running": (Gauge, "Answers that grow.", _state("running")),
    "vllm:num_requests_waiting": (Gauge, "Answers that wait for room.", _state("waiting")),
    "vllm:kv_cache_usage_perc": (Gauge, "Share of the cache that is in use, 0 to 1.", lambda engine: _usage(engine)),
    "tallow:engine_ready": (Gauge, "1 if the model can answer.", lambda engine: float(engine.state == "ready")),
    "tallow:weight_bytes": (Gauge, "Of the model.", lambda engine: engine.facts.weight_bytes if engine.facts else 0),
    "vllm:num_preemptions": (Count, "Answers that were put off.", _state("preemptions")),
    "vllm:prefix_cache_queries": (Count, "Tokens looked up.", _state("queried_tokens")),
    "vllm:prefix_cache_hits": (Count, "Tokens found in the cache.", _state("hit_tokens")),
    "vllm:spec_decode_num_draft_tokens": (Count, "Guessed.", _state("guessed_tokens")),
    "vllm:spec_decode_num_accepted_tokens": (Count, "Guessed right.", _state("accepted_tokens")),
    "tallow:engine_restarts": (Count, "Engines that have died.", lambda engine: engine.num_restarts),
}


class ErrorMetrics:
    """How many requests were answered by errors."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._errors = Counter("tallow:errors", "Requests answered by an error.", ("status",), registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def count_error(self, status: int) -> None:
        """A request was answered by an error, or its answer has ended in one."""
        self._errors.labels(str(status)).inc()


class Metrics(ErrorMetrics):
    """The numbers of one server.

    Args:
        engines: Its models by name.
        admission: Its bounds.
    """

    def __init__(self, engines: Mapping[str, EngineProcess], admission: Admission) -> None:
        super().__init__()
        self._registry.register(_Engines(engines, admission))
        by_model = {"labelnames": ("model_name",), "registry": self._registry}
        self._prompt_tokens = Counter("vllm:prompt_tokens", "Of prompts.", **by_model)
        self._tokens = Counter("vllm:generation_tokens", "Of answers.", **by_model)
        self._finished = Counter(
            "vllm:request_success",
            "Answers by what has ended them.",
            ("model_name", "finished_reason"),
            registry=self._registry,
        )
        self._first_token = Histogram("vllm:time_to_first_token_seconds", "From arrival.", buckets=SECONDS, **by_model)
        self._between = Histogram("vllm:inter_token_latency_seconds", "Between tokens.", buckets=SECONDS, **by_model)
        self._whole = Histogram("vllm:e2e_request_latency_seconds", "To the last token.", buckets=SECONDS, **by_model)
        self._prompt_sizes = Histogram("vllm:request_prompt_tokens", "A request.", buckets=TOKENS, **by_model)
        self._sizes = Histogram("vllm:request_generation_tokens", "A request.", buckets=TOKENS, **by_model)

    @contextmanager
    def request(self, name: str) -> Iterator[Record]:
        """What one request takes, from now to the end of the block."""
        record = Record()
        try:
            yield record
        finally:
            self._take(name, record)

    def _take(self, name: str, record: Record) -> None:
        self._prompt_tokens.labels(name).inc(record.num_prompt_tokens)
        self._tokens.labels(name).inc(record.num_tokens)
        for reason in record.finish_reasons:
            self._finished.labels(name, reason).inc()
        if record.first_s is not None:
            self._first_token.labels(name).observe(record.first_s - record.arrived_s)
            self._whole.labels(name).observe(record.last_s - record.arrived_s)
            self._prompt_sizes.labels(name).observe(record.num_prompt_tokens)
            self._sizes.labels(name).observe(record.num_tokens)
        between = self._between.labels(name)
        for seconds in record.between_s:
            between.observe(seconds)


class Record:
    """What one request has taken so far."""

    def __init__(self) -> None:
        self.arrived_s = self.last_s = time.monotonic()
        self.first_s: float | None = None
        self.num_prompt_tokens = self.num_cached_tokens = self.num_tokens = 0
        self.between_s: list[float] = []
        self.finish_reasons: list[str] = []

    def watch(self, update: Update) -> None:
        """One of its answers has grown."""
        now = time.monotonic()
        if self.first_s is None:
            self.first_s, self.num_cached_tokens = now, update.cached_tokens
        elif update.ids:
            self.between_s.append((now - self.last_s) / len(update.ids))
        self.last_s = now
        self.num_tokens += len(update.ids)
        if update.finish_reason is not None:
            self.finish_reasons.append(update.finish_reason)


class _Engines:
    """Reads the engines' states when it is asked."""

    def __init__(self, engines: Mapping[str, EngineProcess], admission: Admission) -> None:
        self._engines, self._admission = engines, admission

    def collect(self) -> Iterator[Metric]:
        for name, (kind, text, read) in ENGINE_METRICS.items():
            family = kind(name, text, labels=["model_name"])
            for model, engine in self._engines.items():
                family.add_metric([model], read(engine))
            yield family
        yield Gauge("tallow:requests", "Unfinished requests.", self._admission.num_requests)
        yield Gauge("tallow:queued_tokens", "Of prompts that wait.", self._admission.num_queued_tokens)


def _usage(engine: EngineProcess) -> float:
    blocks = engine.engine_state.get("num_blocks", 0)
    return 1 - engine.engine_state["free_blocks"] / blocks if blocks else 0.0
