"""Who writes: a served model behind OpenAI's API, or one in this process."""

from __future__ import annotations

import http.client
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from tallow.engine.language_model import LanguageModel
from tallow.engine.request import SamplingParams
from tallow.errors import DataError, TallowError, UsageError
from tallow.files import hash_value

Api = Literal["chat", "completions"]
MOST_BYTES = 1 << 24  # of an answer
LONGEST_WAIT_S = 60.0
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True)
class Ask:
    """What is asked of a model; the fields are those of OpenAI's API."""

    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    presence_penalty: float
    stop: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        """Hash of all of it."""
        return hash_value(asdict(self))


@dataclass(frozen=True)
class Answer:
    """What the model wrote, and whether it ended by itself rather than at the limit."""

    text: str
    ended: bool


class Writer(Protocol):
    """A model that answers."""

    def write(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        """The answers, in order, each as soon as it and all before it are there."""
        ...


@dataclass(frozen=True)
class Endpoint:
    """A server with OpenAI's API.

    Args:
        base_url: Such as `http://localhost:8000/v1`.
        model: Its name there.
        api: `chat` sends the prompt as a user's message, `completions` lets it be continued as it stands.
        key: Goes along as a bearer token; it is never written anywhere.
        timeout_s: How long to wait for an answer.
        retries: How often an ask is repeated that failed in passing: no connection, no answer in time, too many
            requests, or a failure of the server.
        parallel: Asks under way at once.
    """

    base_url: str
    model: str
    api: Api = "chat"
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    retries: int = 5
    parallel: int = 1

    def write(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        """As `Writer`.

        Raises:
            UsageError: The server refuses the request.
            TallowError: It cannot be reached, or fails again and again.
        """
        if self.parallel == 1:
            yield from map(self._write, asks)
            return
        with ThreadPoolExecutor(self.parallel) as threads:
            try:
                yield from threads.map(self._write, asks)
            finally:
                threads.shutdown(cancel_futures=True)

    def _write(self, ask: Ask) -> Answer:
        reason = None
        for attempt in range(self.retries + 1):
            try:
                return self._ask(ask)
            except _PassingError as error:
                reason = error
                if attempt < self.retries:
                    time.sleep(error.wait_s if error.wait_s is not None else random.uniform(0.5, 1.0) * 2**attempt)
        raise TallowError(
            f"{self.base_url} does not answer ({reason}), asked {self.retries + 1} times",
            "see that it runs; the same command goes on where this one stopped",
        )

    def _ask(self, ask: Ask) -> Answer:
        body = {"model": self.model, **asdict(ask)}
        del body["prompt"]
        if self.api == "chat":
            path, body["messages"] = "chat/completions", [{"role": "user", "content": ask.prompt}]
        else:
            path, body["prompt"] = "completions", ask.prompt
        headers = {"Content-Type": "application/json", "User-Agent": "tallow"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        url = f"{self.base_url.rstrip('/')}/{path}"
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"{self.base_url} is no address of a server", "write http://HOST:PORT/v1")
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        try:
            with _opener().open(request, timeout=self.timeout_s) as response:
                raw = response.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from error
        except (OSError, http.client.HTTPException) as error:  # timeouts and broken connections among them
            reason = getattr(error, "reason", error)
            raise _PassingError(str(reason) or type(reason).__name__) from error
        return self._parse(raw)

    def _parse(self, raw: bytes) -> Answer:
        if len(raw) > MOST_BYTES:
            raise _PassingError(f"an answer of more than {MOST_BYTES >> 20} MB")
        try:
            choice = json.loads(raw)["choices"][0]
            text = choice["message"]["content"] if self.api == "chat" else choice["text"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise _PassingError("what comes back is no answer of OpenAI's API") from error
        return Answer(text if isinstance(text, str) else "", choice.get("finish_reason") != "length")

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        try:
            told = json.loads(error.read(MOST_BYTES))["error"]
            message = str(told["message"] if isinstance(told, dict) else told)
        except (ValueError, LookupError, TypeError, OSError, http.client.HTTPException):
            message = error.reason
        if error.code in PASSING:
            return _PassingError(f"{error.code}: {message}", _seconds(error.headers.get("Retry-After")))
        hint = "set OPENAI_API_KEY" if error.code in (401, 403) else "check the address and the name of the model"
        return UsageError(f"{self.base_url} refuses the request ({error.code}: {message})", hint)


def _opener() -> urllib.request.OpenerDirector:
    """What urllib opens addresses with, but for redirects: the key would go along, to whoever is named."""
    opener, http = urllib.request.OpenerDirector(), urllib.request
    for handler in (http.ProxyHandler, http.HTTPHandler, http.HTTPSHandler, http.HTTPErrorProcessor):
        opener.add_handler(handler())
    opener.add_handler(http.HTTPDefaultErrorHandler())
    return opener


class _PassingError(Exception):
    """May be over when one asks again.

    Args:
        reason: What has happened.
        wait_s: When to do so, if the server has said it.
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else min(max(0.0, float(value)), LONGEST_WAIT_S)
    except ValueError:  # it may also be a date
        return None


@dataclass(frozen=True)
class Local:
    """A model in this process."""

    model: LanguageModel
    api: Api = "chat"

    def write(self, asks: Sequence[Ask]) -> Iterator[Answer]:
        """As `Writer`.

        Raises:
            DataError: The model has no chat template, or a prompt is longer than its context.
        """
        for ask in asks:
            prompt: Any = [{"role": "user", "content": ask.prompt}] if self.api == "chat" else ask.prompt
            params = SamplingParams(
                max_new_tokens=ask.max_tokens,
                temperature=ask.temperature,
                top_p=ask.top_p,
                presence_penalty=ask.presence_penalty,
                stop=ask.stop,
                seed=ask.seed,
            )
            try:
                found = self.model.generate(prompt, params)
            except UsageError as error:
                raise DataError(f"the model cannot be asked: {error.message}", error.hint) from error
            yield Answer(found.text, found.finish_reason != "length")
