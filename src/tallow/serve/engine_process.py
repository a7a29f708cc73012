"""The front's side of an engine process: jobs go in, what answers grow by comes out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import tokenizers

from tallow.errors import DataError
from tallow.serve.errors import ApiError
from tallow.serve.settings import Limits, ModelSettings
from tallow.serve.torchrun import num_processes
from tallow.serve.wire import Closed, Update, join_updates, read_message, write_message
from tallow.tokenizer.chat import ChatTemplate, encode_chat_prompt
from tallow.tokenizer.tokenizer import Tokenizer

MOST_TRIES = 3
"""So often a job is given to an engine that dies before the job has begun."""
MOST_STARTS = 3
"""After so many ends without a step in between an engine is not started again by itself."""
FIRST_RETRY_S, LONGEST_RETRY_S = 15.0, 600.0
"""How long a dead engine is let be before it is tried again: twice as long each time, until it has answered."""
GREETING = [{"role": "user", "content": "Hello"}]
MOST_WARM_UP_S = 0.1
"""For which a model that has been loaded waits for its chat template, so that the first conversation need not."""
MOST_BYTES = 1 << 28  # of a message
SILENT_END_HINT = "see what it has written above; SIGKILL mostly says that there was no memory left"

log = logging.getLogger("tallow.serve")
State = Literal["unloaded", "loading", "ready", "dead"]


Watcher = Callable[[Update], None]


class Job:
    """Answers to one prompt, while they grow.

    What has come up since they were looked at is kept together, so a client that reads slowly gets larger updates, and
    holds up nobody.

    Args:
        message: What the engine process is told.
        watchers: Called with each update.
    """

    def __init__(self, message: dict[str, Any], watchers: Sequence[Watcher] = ()) -> None:
        self.message = message
        self._watchers = watchers
        self.has_begun = False
        self.cached_tokens = 0
        self.num_tries = 0
        self._unfinished = message["count"]
        self._unread: dict[int, list[Update]] = {}
        self._error: ApiError | None = None
        self._news, self._end = asyncio.Event(), asyncio.Event()

    @property
    def is_finished(self) -> bool:
        return self._unfinished == 0 or self._error is not None

    async def read(self) -> list[Update]:
        """What the answers have grown by, as soon as they have; one update of each. None when all have ended.

        Raises:
            ApiError: There will be no answer, or no more of it.
        """
        if not self._unread and not self.is_finished:
            self._news.clear()
            await self._news.wait()
        if not self._unread and self._error is not None:
            raise self._error
        unread, self._unread = self._unread, {}
        return [join_updates(updates) for updates in unread.values()]

    async def read_all(self) -> list[Update]:
        """All of each answer, at their end, if nothing has been read before.

        Raises:
            ApiError: There will be no answer, or not all of it.
        """
        await self._end.wait()
        if self._error is not None:
            raise self._error
        return [join_updates(self._unread[choice]) for choice in sorted(self._unread)]

    def grow(self, update: Update) -> None:
        for watcher in self._watchers:
            watcher(update)
        if not self.has_begun:
            self.has_begun, self.cached_tokens = True, update.cached_tokens
        if update.error is not None:
            self.fail(ApiError.of_engine(update.error))
            return
        self._unread.setdefault(update.choice, []).append(update)
        self._unfinished -= update.finish_reason is not None
        self._wake()

    def fail(self, error: ApiError) -> None:
        if not self.is_finished:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        if self.is_finished:
            self._end.set()


class Facts(NamedTuple):
    """What a process that is ready says of its model."""

    context_length: int
    hidden_size: int
    weight_bytes: int
    tokenizer: Tokenizer


class EngineProcess:
    """A model in a process of its own.

    Args:
        settings: The model.
        limits: How long what may take.
        threads: CPU threads; None: all cores.
    """

    def __init__(self, settings: ModelSettings, limits: Limits, threads: int | None = None) -> None:
        self.settings = settings
        self.state: State = "unloaded"
        self.engine_state: dict[str, int] = {}
        self.facts: Facts | None = None
        self.error: ApiError | None = None
        self.failure: dict[str, str] | None = None
        self.num_restarts = 0
        self.last_used_s = time.monotonic()
        self.adapters = dict(settings.adapters)
        self.jobs: dict[int, Job] = {}
        self._limits, self._threads = limits, threads
        self._calls: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._heard_s = 0.0
        self._fruitless_starts = 0
        self._retry_s, self._died_s = FIRST_RETRY_S, 0.0

    @property
    def is_stranded(self) -> bool:
        """Whether it has been dead for so long that it is to be tried again, though nobody asks."""
        return self.state == "dead" and num_processes() == 1 and time.monotonic() - self._died_s > self._retry_s

    @property
    def is_overdue(self) -> bool:
        """Whether nobody has asked for so long that it is to be unloaded."""
        after_s = self.settings.unload_after_s
        if after_s is None or self.state != "ready" or self.jobs or self._calls:
            return False
        return time.monotonic() - self.last_used_s > after_s

    def start(self) -> None:
        """Begin to load the model, if that is not done or under way."""
        if self._task is None or self._task.done():
            if self.state == "dead":
                self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
            self.state, self.error, self._fruitless_starts = "loading", None, 0
            self._ready.clear()
            self._task = asyncio.create_task(self._keep_running())

    async def ready(self) -> Facts:
        """Wait until the model can answer.

        Raises:
            ApiError: It cannot be loaded, is not in time, or is unloaded meanwhile.
        """
        self.start()
        self.last_used_s = time.monotonic()
        task = self._task
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(self._limits.load_s):
                    await self._ready.wait()
            except TimeoutError as error:
                raise ApiError(503, "the model is still being loaded", retry_after_s=10) from error
        if self.error is not None or self._task is not task:  # it has been unloaded, and perhaps is being loaded again
            raise self.error or _unloaded()
        assert self.facts is not None
        return self.facts

    async def stop(self, reason: ApiError | None = None) -> None:
        """End the process; those that wait for it, and jobs that are not finished, fail."""
        task, self._task = self._task, None
        self.state, self.error = "unloaded", reason or _unloaded()
        self._fail_all(self.error)
        self._ready.set()
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def submit(self, message: Mapping[str, Any], *watchers: Watcher) -> Job:
        """Let the engine answer; `message` holds the arguments of `worker.Host._begin` but for the job's number."""
        number = next(self._numbers)
        job = self.jobs[number] = Job({"do": "answer", "job": number, **message}, watchers)
        self.last_used_s = time.monotonic()
        if self.state == "ready":
            self._give(job)
        self.start()  # if the model has been unloaded since it was ready
        return job

    def abort(self, job: Job) -> None:
        """End a job, finished or not; its memory is free within a step."""
        number = job.message["job"]
        if self.jobs.pop(number, None) is not None and not job.is_finished:
            self._send({"do": "abort", "job": number})
        self.last_used_s = time.monotonic()

    async def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter so that requests can name it.

        Raises:
            ApiError: It cannot be loaded.
        """
        await self._call({"do": "load_adapter", "name": name, "path": path})
        self.adapters[name] = path

    async def unload_adapter(self, name: str) -> None:
        """Let no more requests name an adapter.

        Raises:
            ApiError: There is none of this name.
        """
        await self._call({"do": "unload_adapter", "name": name})
        self.adapters.pop(name, None)

    async def _call(self, message: dict[str, Any]) -> None:
        await self.ready()
        number = next(self._numbers)
        self._calls[number] = asyncio.get_running_loop().create_future()
        self._send(message | {"call": number})
        try:
            await asyncio.wait_for(self._calls[number], self._limits.load_s)
        finally:
            self._calls.pop(number, None)

    def _give(self, job: Job) -> None:
        job.num_tries += 1
        self._send(job.message)

    def _send(self, message: dict[str, Any]) -> None:
        if self.state == "ready" and self._writer is not None and not self._writer.is_closing():
            write_message(self._writer, message)

    async def _keep_running(self) -> None:
        """Start the process, listen to it, and start it again when it has died."""
        try:
            while True:
                await self._run_once()
                # torchrun's processes find each other once: it starts all of them again, if it is told to
                if self.error is not None or self._fruitless_starts >= MOST_STARTS or num_processes() > 1:
                    break
                self.num_restarts += 1
                self._fail_begun()
                log.error("starting the engine process of %s again", self.settings.path)
            self.error = self.error or ApiError(503, "the engine does not stay alive", retry_after_s=60)
            self.state, self._died_s = "dead", time.monotonic()
            log.error("%s: %s", self.settings.path, self.error.message)
            self._fail_all(self.error)
            self._ready.set()
        finally:
            self._kill()

    async def _run_once(self) -> None:
        self.state = "loading"
        self._fruitless_starts += 1
        reader = await self._launch()
        watch = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(self._limits.load_s):
                message = await read_message(reader)
            if "failed" in message:
                self._fail_to_load(message["failed"])
                return
            await self._become_ready(message["ready"])
            while True:
                self._hear(await read_message(reader))
        except TimeoutError:
            self._end_silently(f"was not ready after {self._limits.load_s:g} s")
        except Closed:
            self._end_silently(_how_ended(self._kill()))
        finally:
            watch.cancel()
            self._kill()

    def _end_silently(self, how: str) -> None:
        message = f"the engine process of {self.settings.path} {how}"
        log.error("%s", message)
        if self.facts is None:  # it has never been ready, and another try would most likely end like this one
            self._fail_to_load({"type": "TallowError", "message": message, "hint": SILENT_END_HINT})

    def _fail_to_load(self, failure: dict[str, str]) -> None:
        self.failure = failure
        told = ApiError.of_engine(failure).message
        self.error = ApiError(503, f"the model cannot be loaded: {told}", retry_after_s=60)

    async def _launch(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        with theirs:
            self._process = subprocess.Popen(
                # -P: what lies in the working directory is not imported
                [sys.executable, "-P", "-m", "tallow.serve.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=MOST_BYTES)
        loading = self.settings.model_dump(mode="json", exclude={"path", "adapters", "unload_after_s"})
        loading |= {"name_or_path": self.settings.path, "adapters": self.adapters}
        write_message(self._writer, loading | {"must_have_adapters": self.facts is None})
        return reader

    async def _become_ready(self, facts: dict[str, Any]) -> None:
        backend = tokenizers.Tokenizer.from_str(facts.pop("tokenizer"))
        tokens, source, tool_source = facts.pop("special_tokens"), facts.pop("template"), facts.pop("tool_template")
        template = ChatTemplate(source, tokens, tool_source=tool_source) if source is not None else None
        self.engine_state = facts.pop("state")
        for name, error in facts.pop("missing_adapters").items():
            log.error("the adapter %s of %s cannot be loaded again: %s", name, self.settings.path, error["message"])
            self.adapters.pop(name, None)
        tokenizer = Tokenizer(backend, tokens, template)
        with suppress(DataError, TimeoutError):  # there is no template, or it does not take this, or its time
            await asyncio.wait_for(asyncio.to_thread(encode_chat_prompt, tokenizer, GREETING), MOST_WARM_UP_S)
        self.facts = Facts(**facts, tokenizer=tokenizer)
        self.state, self._heard_s = "ready", time.monotonic()
        self.last_used_s = self._heard_s
        self._ready.set()
        for job in self.jobs.values():
            self._give(job)

    def _hear(self, message: dict[str, Any]) -> None:
        self._heard_s = time.monotonic()
        if "state" in message:
            self.engine_state = message["state"]
        for update in itertools.starmap(Update, message.get("updates", ())):
            self._fruitless_starts, self._retry_s = 0, FIRST_RETRY_S
            if (job := self.jobs.get(update.job)) is not None:
                job.grow(update)
        if (refused := message.get("refused")) is not None and (job := self.jobs.get(refused["job"])) is not None:
            job.fail(ApiError.of_engine(refused["error"]))
        if (reply := message.get("reply")) is not None and (call := self._calls.get(reply["call"])) is not None:
            if reply["error"] is None:
                call.set_result(None)
            else:
                call.set_exception(ApiError.of_engine(reply["error"]))

    async def _watch(self) -> None:
        """Kill a process that has work and says nothing."""
        while True:
            await asyncio.sleep(min(1.0, self._limits.stall_s / 4))
            if all(job.is_finished for job in self.jobs.values()):
                self._heard_s = time.monotonic()
            elif self.state == "ready" and time.monotonic() - self._heard_s > self._limits.stall_s:
                log.error("the engine process of %s has hung for %g s", self.settings.path, self._limits.stall_s)
                self._kill()

    def _kill(self) -> int | None:
        """End the process, and with what code it has ended; None: there is none."""
        code = None
        if self._process is not None:
            self._process.kill()
            code = self._process.wait()
            self._process = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        return code

    def _fail_begun(self) -> None:
        """Jobs that had begun are lost with their engine, the others wait for the next."""
        self._ready.clear()
        self._fail_calls(ApiError(503, "the engine has died", retry_after_s=1))
        for job in self.jobs.values():
            if job.has_begun or job.num_tries >= MOST_TRIES:
                job.fail(ApiError(500, "the engine failed while it answered; try again"))

    def _fail_calls(self, error: ApiError) -> None:
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)

    def _fail_all(self, error: ApiError) -> None:
        self._fail_calls(error)
        for job in self.jobs.values():
            job.fail(error)
        self.jobs.clear()


def _how_ended(code: int | None) -> str:
    if code is None:
        return "has been ended"
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"has ended with exit code {code}"


def _unloaded() -> ApiError:
    return ApiError(503, "the model has been unloaded", retry_after_s=1)
