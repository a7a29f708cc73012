"""OpenAI's embeddings: texts as vectors."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from tallow.serve.answers import Question
from tallow.serve.document import answers
from tallow.serve.errors import ApiError
from tallow.serve.http import respond, salt_of
from tallow.serve.requests import Asked, Prompts
from tallow.serve.service import Service

INPUTS_AT_ONCE = 32
"""Of one request: enough to fill the engine's steps; the others wait here, where they take no places from others."""


class EmbeddingsRequest(Asked):
    """A text or its tokens, or several."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None


class _Embedded(NamedTuple):
    """What one input has come to."""

    model: str
    vector: list[float] | str
    num_tokens: int


class Embeddings:
    """The vectors of one request's inputs.

    Args:
        service: Who computes them.
        request: What is asked.
        salt: Of who asks.

    Raises:
        ApiError: There are too many inputs, or an empty one.
    """

    def __init__(self, service: Service, request: EmbeddingsRequest, salt: str | None) -> None:
        limits = service.settings.limits
        self._service, self._request = service, request
        self._turns = asyncio.Semaphore(min(INPUTS_AT_ONCE, limits.requests))
        self._seconds = min(request.timeout or limits.request_s, limits.request_s)
        if len(request.input) > limits.prompts:
            raise ApiError(400, f"at most {limits.prompts} inputs are taken", param="input")
        if not all(request.input):
            raise ApiError(400, "an input is empty", param="input")
        self._questions = [
            Question(params={"max_new_tokens": 0}, prompt=prompt, embed=True, **request.asked(salt))
            for prompt in request.input
        ]

    async def whole(self) -> dict[str, Any]:
        """All of them, in the order of the inputs.

        Raises:
            ApiError: One cannot be computed, or not all are in time.
        """
        tasks = [asyncio.create_task(self._embed(question)) for question in self._questions]
        try:
            async with asyncio.timeout(self._seconds):
                found = await asyncio.gather(*tasks)
        except TimeoutError as error:
            raise ApiError(408, f"there was no answer within {self._seconds:g} s", code="timeout") from error
        finally:
            for task in tasks:
                task.cancel()
        num_tokens = sum(each.num_tokens for each in found)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": each.vector} for index, each in enumerate(found)
            ],
            "model": found[0].model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }

    async def _embed(self, question: Question) -> _Embedded:
        most = self._request.dimensions
        async with self._turns, self._service.answer(question) as answers:
            size = answers.facts.hidden_size
            if most is not None and most > size:
                raise ApiError(400, f"this model's vectors have {size} dimensions", param="dimensions")
            vector: list[float] = []
            async for delta in answers.deltas():
                vector = delta.piece.embedding or vector
        shortened = _shorten(vector, most) if most is not None else vector
        encoded = _base64(shortened) if self._request.encoding_format == "base64" else shortened
        return _Embedded(answers.name, encoded, answers.num_prompt_tokens)


def add_routes(app: FastAPI, service: Service) -> None:
    """Let an app answer this API."""

    @app.post("/v1/embeddings", responses=answers("EmbeddingList"))
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        """Texts as vectors: the final hidden state of each one's last token, at length 1."""
        return await respond(request, Embeddings(service, body, salt_of(request)).whole())


def _shorten(vector: Sequence[float], most: int) -> list[float]:
    """The first dimensions, at length 1 again (Matryoshka representations, arXiv 2205.13147)."""
    kept = vector[:most]
    length = math.hypot(*kept) or 1.0
    return [value / length for value in kept]


def _base64(vector: Sequence[float]) -> str:
    """Little-endian fp32, as OpenAI's clients ask for it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
