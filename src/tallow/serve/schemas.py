"""What the server answers, as JSON schemas for its OpenAPI document; the tests hold its answers to them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TYPES: dict[type, Schema] = {str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, object: {}}
Shape = Any
"""Of a value: a type, None, a set of words, a tuple of alternatives, a list with the shape of its items, or an object
by its fields, of which `field?` may be missing, and `...` stands for all that are not named."""

FINISH_REASON: Shape = {"stop", "length", "tool_calls", "abort"}
HEALTH: Shape = {"ready", "loading", "draining", "dead"}
MODEL_STATE: Shape = {"unloaded", "loading", "ready", "dead"}
ANYTHING: Shape = {...: object}

LOG_PROB: Shape = {"token": str, "logprob": float, "bytes": [int]}
CHAT_LOG_PROBS: Shape = {"content": [LOG_PROB | {"top_logprobs": [LOG_PROB]}], "refusal": None}
LOG_PROBS: Shape = {
    "tokens": [str],
    "token_logprobs": [(float, None)],
    "top_logprobs": ([({...: float}, None)], None),
    "text_offset": [int],
}
TOOL_CALL: Shape = {"id": str, "type": {"function"}, "function": {"name": str, "arguments": str}}
TOOL_CALL_PART: Shape = {"index": int, "id?": str, "type?": {"function"}, "function": {"name?": str, "arguments": str}}
ANSWER: Shape = {"role": {"assistant"}, "content": (str, None), "refusal": None, "tool_calls?": [TOOL_CALL]}
ANSWER_PART: Shape = {"role?": {"assistant"}, "content?": str, "tool_calls?": [TOOL_CALL_PART]}
USAGE: Shape = {
    "prompt_tokens": int,
    "completion_tokens": int,
    "total_tokens": int,
    "prompt_tokens_details?": {"cached_tokens": int},
}
MODEL: Shape = {
    "id": str,
    "object": {"model"},
    "created": int,
    "owned_by": {"tallow"},
    "parent": (str, None),
    "max_model_len": (int, None),
}


def _completion(kind: str, choice: Shape, usage: Shape, **more: Shape) -> Shape:
    """An answer of one of OpenAI's completion APIs."""
    head = {"id": str, "object": {kind}, "created": int, "model": str, "system_fingerprint": None}
    return head | {"choices": [{"index": int} | choice]} | usage | more


def _chat(kind: str, choice: Shape, usage: Shape) -> Shape:
    return _completion(kind, {"logprobs": (CHAT_LOG_PROBS, None)} | choice, usage, service_tier=None)


def _text(choice: Shape, usage: Shape) -> Shape:
    return _completion("text_completion", {"text": str, "logprobs": (LOG_PROBS, None)} | choice, usage)


WHOLE, PART = {"finish_reason": FINISH_REASON}, {"finish_reason": (FINISH_REASON, None)}
WHOLE_USAGE, LAST_USAGE = {"usage": USAGE}, {"usage?": (USAGE, None)}
SHAPES: dict[str, Shape] = {
    "ErrorBody": {"error": {"message": str, "type": str, "param": (str, None), "code": (str, None)}},
    "AnthropicErrorBody": {"type": {"error"}, "error": {"type": str, "message": str}},
    "ChatCompletion": _chat("chat.completion", WHOLE | {"message": ANSWER}, WHOLE_USAGE),
    "ChatCompletionChunk": _chat("chat.completion.chunk", PART | {"delta": ANSWER_PART}, LAST_USAGE),
    "Completion": _text(WHOLE, WHOLE_USAGE),
    "CompletionChunk": _text(PART, LAST_USAGE),
    # responses, messages: what else there is to each, OpenAI and Anthropic document
    "ResponseObject": {
        "id": str,
        "object": {"response"},
        "created_at": int,
        "status": {"completed", "incomplete", "failed"},
        "model": str,
        "output": [ANYTHING],
        "usage": (ANYTHING, None),
        ...: object,
    },
    "Message": {
        "id": str,
        "type": {"message"},
        "role": {"assistant"},
        "model": str,
        "content": [ANYTHING],
        "stop_reason": (str, None),
        "stop_sequence": (str, None),
        "usage": {...: int},
    },
    "Event": {"type": str, ...: object},
    "InputTokens": {"input_tokens": int},
    "EmbeddingList": {
        "object": {"list"},
        "data": [{"object": {"embedding"}, "index": int, "embedding": ([float], str)}],
        "model": str,
        "usage": {"prompt_tokens": int, "total_tokens": int},
    },
    "Model": MODEL,
    "Models": {"object": {"list"}, "data": [MODEL]},
    "Tokens": {"tokens": [int], "count": int, "max_model_len": int, "token_strs?": [str]},
    "Text": {"prompt": str},
    "Health": {"status": HEALTH, "models": {...: MODEL_STATE}},
    "Version": {"version": str},
    "ServerStatus": {
        "status": HEALTH,
        "requests": int,
        # once an engine has told, with counts of its requests, blocks and tokens
        "models": {...: {"state": MODEL_STATE, "restarts": int, "adapters": {...: str}, ...: object}},
    },
    "LoadState": {"state": MODEL_STATE},
    "Adapters": {"adapters": {...: str}},
}


def reference(name: str) -> Schema:
    """Stands for one of `all_schemas`, whose names are apart from those of requests."""
    return {"$ref": f"#/components/schemas/answer.{name}"}


def all_schemas() -> dict[str, Schema]:
    """Those that `reference` stands for."""
    return {f"answer.{name}": _schema(shape) for name, shape in SHAPES.items()}


def _schema(shape: Shape) -> Schema:
    match shape:
        case None:
            return {"type": "null"}
        case type():
            return TYPES[shape]
        case set():
            return {"type": "string", "enum": sorted(shape)}
        case tuple():
            return {"anyOf": [_schema(each) for each in shape]}
        case [items]:
            return {"type": "array", "items": _schema(items)}
    named = {field: value for field, value in shape.items() if field is not ...}
    return {
        "type": "object",
        "properties": {field.removesuffix("?"): _schema(value) for field, value in named.items()},
        "required": [field for field in named if not field.endswith("?")],
        "additionalProperties": _schema(shape[...]) if ... in shape else False,
    }
