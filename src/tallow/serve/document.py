"""The OpenAPI document: what FastAPI is told of answers, and what it cannot know."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from tallow.serve.http import ADMIN_PATHS, OPEN_PATHS, Keys
from tallow.serve.schemas import all_schemas, reference

Answers = dict[int | str, dict[str, Any]]


def json_of(name: str) -> dict[str, Any]:
    """The content of an answer that is one of `SHAPES`."""
    return {"application/json": {"schema": reference(name)}}


ERRORS: Answers = {
    "4XX": {
        "content": json_of("ErrorBody"),
        "description": "The request is wrong (400), has no key (401), asks for what there is not (404, 405), is too "
        "slow (408) or too large (413), or comes while too many others wait (429, with Retry-After)",
    },
    "5XX": {
        "content": json_of("ErrorBody"),
        "description": "The engine failed (500), or cannot answer now (503, with Retry-After)",
    },
}
SECURITY_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer"},
    "key-header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "admin-key": {"type": "http", "scheme": "bearer"},
}
METRICS: Answers = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
ANTHROPIC_ERRORS: Answers = {
    status: answer | {"content": json_of("AnthropicErrorBody")} for status, answer in ERRORS.items()
}


def answers(name: str, chunk: str | None = None) -> Answers:
    """What FastAPI is told of a route's answers.

    Args:
        name: Of a whole answer, in `SHAPES`.
        chunk: Of an event's data, where the answer may be streamed. Completions end with [DONE].
    """
    content = json_of(name)
    if chunk is not None:
        told = {"contentMediaType": "application/json", "contentSchema": reference(chunk)}
        data = {"type": "string", "anyOf": [told, {"const": "[DONE]"}]}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"itemSchema": event}
    return {200: {"content": content}}


def describe(app: FastAPI, keys: Keys) -> None:
    """Complete an app's OpenAPI document when it is asked for: schemas of answers, and which keys open what."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(make(), keys)
        return make()

    app.openapi = openapi


def _complete(document: dict[str, Any], keys: Keys) -> None:
    components, paths = document["components"], document["paths"]
    components["schemas"] |= all_schemas()
    components["securitySchemes"] = SECURITY_SCHEMES
    for path, operations in list(paths.items()):
        is_admins = path.startswith(ADMIN_PATHS)
        if is_admins and not keys.open_admin:
            del paths[path]
        elif is_admins or (keys.are_wanted and path not in OPEN_PATHS):
            for operation in operations.values():
                operation["security"] = [{"admin-key": []}] if is_admins else [{"key": []}, {"key-header": []}]
