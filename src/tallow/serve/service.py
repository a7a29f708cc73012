"""The server without its HTTP: models by name, questions to them, and an orderly end."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from tallow.errors import CapacityError, DataError, TallowError, UsageError
from tallow.serve.admission import Admission
from tallow.serve.answers import Answers, Question
from tallow.serve.engine_process import EngineProcess
from tallow.serve.errors import ApiError
from tallow.serve.metrics import Metrics
from tallow.serve.request_log import RequestLog
from tallow.serve.settings import ServeSettings

TICK_S = 0.5


class Service:
    """Models that answer questions.

    Args:
        settings: Of the server.

    Raises:
        UsageError, DataError: The file that requests are to be written to cannot be used.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.started_s = time.time()
        self.admission = Admission(settings.limits)
        self.engines: Mapping[str, EngineProcess] = {
            name: EngineProcess(model, settings.limits, settings.threads) for name, model in settings.models.items()
        }
        self.metrics = Metrics(self.engines, self.admission)
        self.log = RequestLog(settings.log, with_texts=settings.log_prompts, days=settings.log_days or math.inf)

    @property
    def health(self) -> str:
        """`draining`, `dead` (a model that is to stay loaded cannot answer), `loading`, or `ready`."""
        if self.admission.is_draining:
            return "draining"
        states = {engine.state for engine in self._lasting}
        return "dead" if "dead" in states else "loading" if "loading" in states else "ready"

    @property
    def _lasting(self) -> list[EngineProcess]:
        """The first model's, and those that are never unloaded: all that are loaded before anybody asks."""
        first, *others = self.engines.values()
        return [first, *(engine for engine in others if engine.settings.unload_after_s is None)]

    @property
    def names(self) -> dict[str, tuple[str, str | None]]:
        """What requests may ask for: the model behind each name, and its adapter."""
        names: dict[str, tuple[str, str | None]] = {}
        for model, engine in self.engines.items():
            names |= {adapter: (model, adapter) for adapter in engine.adapters}
        return names | {model: (model, None) for model in self.engines}

    def find(self, name: str | None) -> tuple[str, EngineProcess, str | None]:
        """The name in full, the model and the adapter that a request asks for.

        Raises:
            ApiError: There is no such model (404).
        """
        name = name or next(iter(self.engines))
        if name not in (names := self.names):
            raise ApiError(404, f"there is no model {name!r}", param="model", code="model_not_found")
        model, adapter = names[name]
        return name, self.engines[model], adapter

    def engine(self, name: str | None) -> EngineProcess:
        """The engine of the model that a request asks for; as `find`."""
        return self.find(name)[1]

    @asynccontextmanager
    async def answer(self, question: Question) -> AsyncIterator[Answers]:
        """Put a question; leaving the block ends the answers.

        Raises:
            ApiError: It cannot be answered, is not answered in time, or there are too many others.
        """
        name, engine, adapter = self.find(question.model)
        with self.metrics.request(name) as record, self.log.request(name, question, record) as watch_texts:
            async with self.admission.place(question.num_bytes, question.timeout_s) as place:
                facts = await engine.ready()
                prompt_ids = await question.encode(facts)
                place.reserve(len(prompt_ids))
                record.num_prompt_tokens = len(prompt_ids)
                job = engine.submit(question.job(facts, prompt_ids, adapter), place.watch, record.watch, watch_texts)
                try:
                    yield Answers(name, facts, question, job, prompt_ids)
                finally:
                    engine.abort(job)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Within this block models are loaded: the first and those that stay at once, others when asked for."""
        for engine in self._lasting:
            engine.start()
        tending = asyncio.create_task(self._tend())
        try:
            yield
        finally:
            tending.cancel()
            await asyncio.gather(*(engine.stop() for engine in self.engines.values()))
            await asyncio.to_thread(self.log.close)

    async def load(self) -> None:
        """Wait until the first model has been loaded.

        Raises:
            TallowError: It cannot be; of the class that says why, if it has been told.
        """
        engine = next(iter(self.engines.values()))
        engine.start()
        while engine.state == "loading":
            with suppress(ApiError):
                await engine.ready()
        if engine.failure is not None:
            kinds = {kind.__name__: kind for kind in (UsageError, DataError, CapacityError)}
            raise kinds.get(engine.failure["type"], TallowError)(engine.failure["message"], engine.failure["hint"])

    async def _tend(self) -> None:
        """Unload models that nobody asks for, and try dead ones again."""
        while True:
            await asyncio.sleep(TICK_S)
            for engine in self.engines.values():
                if engine.is_overdue:
                    await engine.stop()
            for engine in self._lasting:
                if engine.is_stranded:
                    engine.start()

    async def drain(self) -> None:
        """Take no more requests, and wait until those that there are have been answered.

        What has not been after `drain_s`, or when this is cancelled, is told that there will be no more.
        """
        self.admission.is_draining = True
        end_s = time.monotonic() + self.settings.limits.drain_s
        try:
            while self.admission.num_requests and time.monotonic() < end_s:
                await asyncio.sleep(0.05)
        finally:
            ended = ApiError(503, "the server has been shut down", code="draining", retry_after_s=5)
            await asyncio.gather(*(engine.stop(ended) for engine in self.engines.values()))
