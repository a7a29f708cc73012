"""OpenAI's embeddings: texts as vectors."""

from __future__ import annotations

import base64
import math
import struct
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import Field

from tallow.serve.answers import Answers, Question
from tallow.serve.document import answers
from tallow.serve.errors import ApiError
from tallow.serve.http import respond, salt_of
from tallow.serve.requests import ModelRequest, Prompts
from tallow.serve.service import Service

INPUTS_AT_ONCE = 32
"""Of one request: enough to fill the engine's steps; the others wait here, where they take no places from others."""


class EmbeddingsRequest(ModelRequest):
    """A text or its tokens, or several."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None


async def embed(service: Service, request: EmbeddingsRequest, salt: str | None) -> dict[str, Any]:
    """The vectors of a request's inputs, in their order.

    Args:
        service: Who computes them.
        request: What is asked.
        salt: Of who asks.

    Raises:
        ApiError: There are too many inputs, one is empty or cannot be computed, or not all are in time.
    """
    limits = service.settings.limits
    if len(request.input) > limits.prompts:
        raise ApiError(400, f"at most {limits.prompts} inputs are taken", param="input")
    if not all(request.input):
        raise ApiError(400, "an input is empty", param="input")

    async def embed_one(question: Question) -> tuple[list[float], Answers]:
        async with service.answer(question) as answers:
            size = answers.facts.hidden_size
            if (request.dimensions or 0) > size:
                raise ApiError(400, f"this model's vectors have {size} dimensions", param="dimensions")
            [vector] = [delta.piece.embedding async for delta in answers.deltas() if delta.piece.embedding]
            return vector, answers

    questions = [
        Question(params={"max_new_tokens": 0}, prompt=prompt, embed=True, **request.common_fields(salt))
        for prompt in request.input
    ]
    found = await service.admission.in_turns(
        [partial(embed_one, question) for question in questions],
        max(question.num_bytes for question in questions),
        request.timeout,
        at_once=INPUTS_AT_ONCE,
    )
    num_tokens = sum(answers.num_prompt_tokens for _, answers in found)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(vector, request)}
            for index, (vector, _) in enumerate(found)
        ],
        "model": found[0][1].name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }


def _written(vector: list[float], request: EmbeddingsRequest) -> list[float] | str:
    """A vector as it is asked for: the first of its dimensions (Matryoshka representations, arXiv 2205.13147), at
    length 1 again; and perhaps as little-endian fp32 in base64, as OpenAI's clients want it."""
    if request.dimensions is not None:
        kept = vector[: request.dimensions]
        length = math.hypot(*kept) or 1.0
        vector = [value / length for value in kept]
    if request.encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return vector


def add_routes(app: FastAPI, service: Service) -> None:
    """Let an app answer this API."""

    @app.post("/v1/embeddings", responses=answers("EmbeddingList"))
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Response:
        """Texts as vectors: the final hidden state of each one's last token, at length 1."""
        return await respond(request, embed(service, body, salt_of(request)))
