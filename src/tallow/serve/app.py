"""The HTTP face of a service: its routes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

import tallow
from tallow.serve import anthropic_api, embeddings_api, openai_api, page, responses_api
from tallow.serve.document import ERRORS, METRICS, answers, describe, json_of
from tallow.serve.errors import ApiError
from tallow.serve.http import EventStream, Guard, Json, Keys, StrictRoute, error_response, respond, salt_of
from tallow.serve.metrics import METRICS_TYPE
from tallow.serve.requests import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from tallow.serve.service import Service

MOST_PLACE_CHARACTERS = 256
"""Of where in a body something is wrong: keys may be of any length."""
HEALTH_STATUS = {"ready": 200, "loading": 503, "draining": 503, "dead": 503}


def make_app(service: Service, keys: Keys) -> FastAPI:
    """The routes of a service.

    Args:
        service: Who answers.
        keys: Who may ask.
    """

    app = FastAPI(
        title="tallow",
        version=tallow.__version__,
        lifespan=lambda _app: service.running(),
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
    )
    app.router.route_class = StrictRoute
    _add_errors(app)
    _add_operation(app, service)
    _add_openai(app, service)
    responses_api.add_routes(app, service)
    anthropic_api.add_routes(app, service)
    embeddings_api.add_routes(app, service)
    _add_admin(app, service)
    page.add_routes(app, service)
    describe(app, keys)
    app.add_middleware(Guard, keys=keys, limits=service.settings.limits, count_error=service.metrics.count_error)
    return app


def _add_errors(app: FastAPI) -> None:
    async def tell(request: Request, error: Exception) -> Response:
        told = _as_api_error(error)
        response = error_response(told, request.scope)
        if isinstance(error, HTTPException):
            response.headers.update(error.headers or {})
        return response

    for kind in (ApiError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, tell)


def _as_api_error(error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case RequestValidationError():
            problem = error.errors()[0]
            if isinstance(error.body, bytes):
                return ApiError(400, "the body is not taken for JSON: send the header Content-Type: application/json")
            place = ".".join(str(part) for part in problem["loc"][1:])[:MOST_PLACE_CHARACTERS]
            return ApiError(400, f"{place or 'the body'}: {problem['msg']}", param=place or None)
        case HTTPException():
            return ApiError(error.status_code, str(error.detail))
    return ApiError(500, f"the server failed: {type(error).__name__}")


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses={status: {"content": json_of("Health")} for status in HEALTH_STATUS.values()})
    async def health() -> Response:
        """Whether requests are answered: 200 if so, 503 while it loads, drains, or when a model is dead."""
        state = service.health
        models = {name: engine.state for name, engine in service.engines.items()}
        return Json({"status": state, "models": models}, HEALTH_STATUS[state])

    @app.get("/version", responses=answers("Version"))
    async def version() -> Response:
        """Of tallow."""
        return Json({"version": tallow.__version__})

    @app.get("/metrics", response_class=Response, responses=METRICS)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=METRICS_TYPE)

    @app.post("/tokenize", responses=answers("Tokens"))
    async def tokenize(body: TokenizeRequest) -> Response:
        """The tokens of a text (`prompt`) or a conversation (`messages`)."""
        facts, ids = await openai_api.tokenize(service, body)
        answer: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": facts.context_length}
        if body.return_token_strs:
            answer["token_strs"] = await asyncio.to_thread(openai_api.token_texts, facts, ids)
        return Json(answer)

    @app.post("/detokenize", responses=answers("Text"))
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of `tokens`."""
        async with service.admission.place(len(body.tokens)):
            facts = await service.engine(body.model).ready()
            if max(body.tokens, default=0) >= facts.tokenizer.vocab_size:
                raise ApiError(400, "tokens must be a list of tokens of this model", param="tokens")
            decode = facts.tokenizer.decode
            return Json({"prompt": await asyncio.to_thread(decode, body.tokens, skip_special_tokens=False)})


def _add_openai(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=answers("Models"))
    async def models() -> Response:
        """What `model` may be."""
        return Json({"object": "list", "data": [_model(service, name) for name in service.names]})

    @app.get("/v1/models/{name:path}", responses=answers("Model"))
    async def model(name: str) -> Response:
        """One of them."""
        service.find(name)
        return Json(_model(service, name))

    @app.post("/v1/chat/completions", responses=answers("ChatCompletion", "ChatCompletionChunk"))
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        asked = openai_api.Chat(service, body, salt_of(request))
        if body.stream:
            return EventStream(asked.events(), openai_api.tell_error)
        return await respond(request, asked.whole())

    @app.post("/v1/completions", responses=answers("Completion", "CompletionChunk"))
    async def completion(body: CompletionRequest, request: Request) -> Response:
        """A text continued."""
        asked = openai_api.Completion(service, body, salt_of(request))
        if body.stream:
            return EventStream(asked.events(), openai_api.tell_error)
        return await respond(request, asked.whole())


def _add_admin(app: FastAPI, service: Service) -> None:
    @app.get("/admin/state", responses=answers("ServerStatus"))
    async def state() -> Response:
        """What each model's engine is doing."""
        engines = {
            name: {"state": engine.state, "restarts": engine.num_restarts, "adapters": engine.adapters}
            | engine.engine_state
            for name, engine in service.engines.items()
        }
        return Json({"status": service.health, "requests": service.admission.num_requests, "models": engines})

    @app.post("/admin/models/{name}/load", responses=answers("LoadState"))
    async def load(name: str) -> Response:
        """Load a model that is not, and wait until it can answer."""
        engine = service.engine(name)
        await engine.ready()
        return Json({"state": engine.state})

    @app.post("/admin/models/{name}/unload", responses=answers("LoadState"))
    async def unload(name: str) -> Response:
        """End a model's process and what it answers; the next request loads it again."""
        engine = service.engine(name)
        await engine.stop()
        return Json({"state": engine.state})

    @app.post("/admin/models/{name}/adapters", responses=answers("Adapters"))
    async def load_adapter(name: str, adapter: AdapterBody) -> Response:
        """Load a LoRA adapter from a directory of the server's machine, so that requests can name it."""
        engine = service.engine(name)
        if adapter.name in service.names:
            raise ApiError(400, f"there is a model {adapter.name!r} already", param="name")
        await engine.load_adapter(adapter.name, adapter.path)
        return Json({"adapters": engine.adapters})

    @app.delete("/admin/models/{name}/adapters/{adapter:path}", responses=answers("Adapters"))
    async def unload_adapter(name: str, adapter: str) -> Response:
        """Let no more requests name an adapter."""
        engine = service.engine(name)
        await engine.unload_adapter(adapter)
        return Json({"adapters": engine.adapters})


class AdapterBody(BaseModel):
    """A LoRA adapter, and the name for it."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    path: Annotated[str, Field(min_length=1, max_length=4096)]


def _model(service: Service, name: str) -> dict[str, Any]:
    model, adapter = service.names[name]
    engine = service.engines[model]
    about = {"id": name, "object": "model", "created": int(service.started_s), "owned_by": "tallow"}
    length = engine.facts.context_length if engine.facts is not None else None
    return about | {"parent": model if adapter is not None else None, "max_model_len": length}
