"""What the server answers, as JSON schemas for its OpenAPI document; the tests hold its answers to them."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
NULL: Schema = {"type": "null"}


def reference(name: str) -> Schema:
    """Stands for one of `SCHEMAS`, whose names are apart from those of requests."""
    return {"$ref": f"#/components/schemas/answer.{name}"}


def _object(optional: dict[str, Schema] | None = None, /, **required: Schema) -> Schema:
    """With these fields, and no others unless it is `| OPEN`."""
    properties = required | (optional or {})
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def _one_of(*values: str) -> Schema:
    return {"type": "string", "enum": [*values]}


OBJECT: Schema = {"type": "object"}
OPEN: Schema = {"additionalProperties": True}
FINISH_REASON = _one_of("stop", "length", "tool_calls", "abort")
HEALTH = _one_of("ready", "loading", "draining", "dead")
MODEL_STATE = _one_of("unloaded", "loading", "ready", "dead")
HEAD = {"id": STRING, "created": INTEGER, "model": STRING, "system_fingerprint": NULL}
"""With which the answers of OpenAI's completion APIs begin."""
LOG_PROB = {"token": STRING, "logprob": NUMBER, "bytes": _list(INTEGER)}
FUNCTION = _one_of("function")
CHAT_LOG_PROBS = _nullable(reference("ChatLogProbs"))
COMPLETION_CHOICE = {"index": INTEGER, "text": STRING, "logprobs": _nullable(reference("CompletionLogProbs"))}

SCHEMAS = {
    "ErrorBody": _object(
        error=_object(message=STRING, type=STRING, param=_nullable(STRING), code=_nullable(STRING)),
    ),
    "Usage": _object(
        {"prompt_tokens_details": _object(cached_tokens=INTEGER)},
        prompt_tokens=INTEGER,
        completion_tokens=INTEGER,
        total_tokens=INTEGER,
    ),
    # chat completions
    "ChatLogProbs": _object(content=_list(_object(**LOG_PROB, top_logprobs=_list(_object(**LOG_PROB)))), refusal=NULL),
    "ToolCall": _object(id=STRING, type=FUNCTION, function=_object(name=STRING, arguments=STRING)),
    "AnswerMessage": _object(
        {"tool_calls": _list(reference("ToolCall"))},
        role=_one_of("assistant"),
        content=_nullable(STRING),
        refusal=NULL,
    ),
    "ChatCompletion": _object(
        **HEAD,
        object=_one_of("chat.completion"),
        service_tier=NULL,
        choices=_list(
            _object(
                index=INTEGER,
                message=reference("AnswerMessage"),
                logprobs=CHAT_LOG_PROBS,
                finish_reason=FINISH_REASON,
            )
        ),
        usage=reference("Usage"),
    ),
    "ToolCallPart": _object(
        {"id": STRING, "type": FUNCTION}, index=INTEGER, function=_object({"name": STRING}, arguments=STRING)
    ),
    "MessageDelta": _object(
        {"role": _one_of("assistant"), "content": STRING, "tool_calls": _list(reference("ToolCallPart"))}
    ),
    "ChatCompletionChunk": _object(
        {"usage": _nullable(reference("Usage"))},
        **HEAD,
        object=_one_of("chat.completion.chunk"),
        service_tier=NULL,
        choices=_list(
            _object(
                index=INTEGER,
                delta=reference("MessageDelta"),
                logprobs=CHAT_LOG_PROBS,
                finish_reason=_nullable(FINISH_REASON),
            )
        ),
    ),
    # completions
    "CompletionLogProbs": _object(
        tokens=_list(STRING),
        token_logprobs=_list(_nullable(NUMBER)),
        top_logprobs=_nullable(_list(_nullable(_map(NUMBER)))),
        text_offset=_list(INTEGER),
    ),
    "Completion": _object(
        **HEAD,
        object=_one_of("text_completion"),
        choices=_list(_object(**COMPLETION_CHOICE, finish_reason=FINISH_REASON)),
        usage=reference("Usage"),
    ),
    "CompletionChunk": _object(
        {"usage": _nullable(reference("Usage"))},
        **HEAD,
        object=_one_of("text_completion"),
        choices=_list(_object(**COMPLETION_CHOICE, finish_reason=_nullable(FINISH_REASON))),
    ),
    # responses, messages: what else there is to each, OpenAI and Anthropic document
    "ResponseObject": _object(
        id=STRING,
        object=_one_of("response"),
        created_at=INTEGER,
        status=_one_of("completed", "incomplete", "failed"),
        model=STRING,
        output=_list(OBJECT),
        usage=_nullable(OBJECT),
    )
    | OPEN,
    "Message": _object(
        id=STRING,
        type=_one_of("message"),
        role=_one_of("assistant"),
        model=STRING,
        content=_list(OBJECT),
        stop_reason=_nullable(STRING),
        stop_sequence=_nullable(STRING),
        usage=_map(INTEGER),
    ),
    "Event": _object(type=STRING) | OPEN,
    "InputTokens": _object(input_tokens=INTEGER),
    "AnthropicErrorBody": _object(type=_one_of("error"), error=_object(type=STRING, message=STRING)),
    # embeddings
    "EmbeddingList": _object(
        object=_one_of("list"),
        data=_list(_object(object=_one_of("embedding"), index=INTEGER, embedding={"anyOf": [_list(NUMBER), STRING]})),
        model=STRING,
        usage=_object(prompt_tokens=INTEGER, total_tokens=INTEGER),
    ),
    # the server
    "Model": _object(
        id=STRING,
        object=_one_of("model"),
        created=INTEGER,
        owned_by=_one_of("tallow"),
        parent=_nullable(STRING),
        max_model_len=_nullable(INTEGER),
    ),
    "Models": _object(object=_one_of("list"), data=_list(reference("Model"))),
    "Tokens": _object({"token_strs": _list(STRING)}, tokens=_list(INTEGER), count=INTEGER, max_model_len=INTEGER),
    "Text": _object(prompt=STRING),
    "Health": _object(status=HEALTH, models=_map(MODEL_STATE)),
    "Version": _object(version=STRING),
    "ServerStatus": _object(
        status=HEALTH,
        requests=INTEGER,
        models=_map(
            _object(state=MODEL_STATE, restarts=INTEGER, adapters=_map(STRING)) | OPEN
        ),  # once an engine has told, with counts of its requests, blocks and tokens
    ),
    "LoadState": _object(state=MODEL_STATE),
    "Adapters": _object(adapters=_map(STRING)),
}
