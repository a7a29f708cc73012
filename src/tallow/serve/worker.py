"""The process that holds a model: takes jobs from the server's front, steps the engine, tells what answers grow by.

It has one thread: between two steps it reads what has arrived and sends what has come up. It ends with the front.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tallow.engine.language_model import LanguageModel, load
from tallow.engine.process_group import ProcessLost
from tallow.engine.request import Request, RequestState, SamplingParams, TopLogProbs
from tallow.engine.structure import Structure
from tallow.errors import DataError, TallowError, UsageError
from tallow.serve.wire import Closed, Connection, Update

STATE_S = 0.2
"""How often the front is told the engine's state while it works."""
FIRST_TOKEN_S = 0.001
"""The engine waits for so long when an answer has begun: so the front has a core to send its first token on."""
MOST_FAILURES = 3
"""After so many failed steps one after the other the process ends, and the front starts another."""

log = logging.getLogger("tallow.serve")


@dataclass(slots=True)
class _Answer:
    """One answer of a job, and how much of it the front has been told."""

    job: int
    choice: int
    wants_log_probs: bool
    num_ids: int = 0
    num_characters: int = 0
    is_begun: bool = False

    def update(self, request: Request) -> Update:
        ids, text = request.ids[self.num_ids :], request.text[self.num_characters :]
        scores = request.log_probs[self.num_ids :] if self.wants_log_probs else []
        top = request.top_log_probs[self.num_ids :]
        prompt: tuple[list[float], list[TopLogProbs]] = ([], [])
        if not self.is_begun and request.params.prompt_log_probs:
            prompt = request.prompt_log_probs, request.prompt_top_log_probs
        self.num_ids, self.num_characters, self.is_begun = len(request.ids), len(request.text), True
        error = request.error.as_json()["error"] if request.error is not None else None
        reason, cached = request.finish_reason, request.num_cached_tokens
        stop = request.stopped_by
        embedding = request.embedding.tolist() if request.embedding is not None else None
        return Update(self.job, self.choice, ids, text, reason, scores, top, *prompt, cached, error, stop, embedding)


@dataclass
class Host:
    """Serves the jobs of one front with one model.

    Args:
        model: The model.
        connection: To the front.
    """

    model: LanguageModel
    connection: Connection
    _answers: dict[Request, _Answer] = field(default_factory=dict)
    _jobs: dict[int, list[Request]] = field(default_factory=dict)
    _told_s: float = 0.0
    _num_failures: int = 0
    _has_begun_answer: bool = False

    def run(self) -> None:
        """Until the front goes.

        Raises:
            Closed: It has gone.
        """
        engine = self.model.engine
        while True:
            was_idle = engine.is_idle
            receive = self.connection.receive_burst if was_idle else self.connection.receive_now
            for message in receive():
                self._obey(message)
            updates = self._step() if not engine.is_idle else []
            news: dict[str, Any] = {"updates": updates} if updates else {}
            if engine.is_idle != was_idle or time.monotonic() - self._told_s > STATE_S:
                self._told_s = time.monotonic()
                news["state"] = asdict(engine.state)
            if news:
                self.connection.send(news)
                if self._has_begun_answer and not engine.is_idle:
                    time.sleep(FIRST_TOKEN_S)
                os.sched_yield()  # else the front waits until the next step lets it have a core

    def _step(self) -> list[Update]:
        try:
            changed = self.model.engine.step()
        except Exception as error:
            return self._fail_step(error)
        self._num_failures = 0
        told = [request for request in changed if request in self._answers]
        self._has_begun_answer = any(not self._answers[request].is_begun for request in told)
        return [self._tell(request) for request in told]

    def _fail_step(self, error: Exception) -> list[Update]:
        """A step that fails takes those along that were in it; what waits goes on."""
        log.exception("a step of the engine failed")
        self._num_failures += 1
        if self._num_failures >= MOST_FAILURES or isinstance(error, ProcessLost):
            raise error
        reason = TallowError(f"the engine failed: {error}", "try again")
        failed = [request for request in self._answers if request.state is RequestState.RUNNING]
        updates = []
        for request in failed:
            self.model.engine.abort(request)
            request.error = reason
            updates.append(self._tell(request))
        return updates

    def _tell(self, request: Request) -> Update:
        update = self._answers[request].update(request)
        if request.state is RequestState.FINISHED:
            answer = self._answers.pop(request)
            requests = self._jobs[answer.job]
            requests.remove(request)
            if not requests:
                del self._jobs[answer.job]
        return update

    def _obey(self, message: dict[str, Any]) -> None:
        match message.pop("do"):
            case "answer":
                self._begin(**message)
            case "abort":
                for request in list(self._jobs.get(message["job"], [])):
                    self.model.engine.abort(request)
                    self._tell(request)
            case "load_adapter":
                self._reply(message["call"], lambda: self.model.load_adapter(message["name"], message["path"]))
            case "unload_adapter":
                self._reply(message["call"], lambda: self.model.unload_adapter(message["name"]))

    def _begin(
        self,
        job: int,
        prompt_ids: list[int],
        params: dict[str, Any],
        count: int,
        salt: str | None,
        adapter: str | None,
        priority: int,
        log_probs: bool,
        embed: bool,
    ) -> None:
        engine = self.model.engine
        common: dict[str, Any] = {
            "cache_salt": salt,
            "adapter": adapter,
            "priority": priority if engine.policy == "priority" else 0,
        }
        try:
            if embed:
                requests = [engine.submit_embedding(prompt_ids, **common)]
            else:
                requests = engine.submit_many(prompt_ids, _sampling_params(params), count, **common)
        except TallowError as error:
            self.connection.send({"refused": {"job": job, "error": error.as_json()["error"]}})
            return
        self._jobs[job] = requests
        for choice, request in enumerate(requests):
            self._answers[request] = _Answer(job, choice, log_probs)

    def _reply(self, call: int, work: Any) -> None:
        error = None
        try:
            work()
        except TallowError as raised:
            error = raised.as_json()["error"]
        except Exception as raised:  # what was asked for is at fault, and not worth an engine
            log.exception("a call has failed")
            error = DataError(f"that cannot be done: {raised}", "see the server's log").as_json()["error"]
        self.connection.send({"reply": {"call": call, "error": error}})


def _sampling_params(values: dict[str, Any]) -> SamplingParams:
    structure = values.pop("structure", None)
    try:
        return SamplingParams(**values, structure=Structure(**structure) if structure else None)
    except TypeError as error:
        raise UsageError(str(error), "see the serving guide") from error


def main() -> None:
    """Load the model that the front names, say so, and serve it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the front decides when it ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(socket.socket(fileno=int(sys.argv[1])))
    [settings] = connection.receive()
    adapters, must_have_adapters = settings.pop("adapters"), settings.pop("must_have_adapters")
    missing: dict[str, Any] = {}
    try:
        model = load(**settings)
        for name, path in adapters.items():
            try:
                model.load_adapter(name, Path(path))
            except TallowError as error:  # the model has been served with it: it goes on without
                if must_have_adapters:
                    raise
                missing[name] = error.as_json()["error"]
    except TallowError as error:
        connection.send({"failed": error.as_json()["error"]})
        return
    gc.freeze()  # the model stays: the collector need not look through it again and again
    tokenizer = model.tokenizer
    template = tokenizer.chat_template
    connection.send(
        {
            "ready": {
                "missing_adapters": missing,
                "context_length": model.context_length,
                "hidden_size": model.config.hidden_size,
                "weight_bytes": model.weight_bytes,
                "tokenizer": tokenizer.backend.to_str(),
                "special_tokens": tokenizer.special_tokens,
                "template": template.source if template is not None else None,
                "tool_template": template.tool_source if template is not None else None,
                "state": asdict(model.engine.state),
            }
        }
    )
    try:
        Host(model, connection).run()
    except Closed:
        return


if __name__ == "__main__":
    main()
