"""What OpenAI's completion APIs may be asked, with the settings of sampling that other servers have, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from tallow.serve.errors import ApiError
from tallow.serve.settings import Limits

Token = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[Token], Field(min_length=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
MAX_TOKENS = 1 << 20
MAX_TOP_LOG_PROBS = 20
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class Body(BaseModel):
    """A request's body. Fields that are not known are let be, as OpenAI's clients grow faster than servers."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class StructuredOutputs(Body):
    """What an answer must look like, beyond `response_format`: one of these."""

    json_schema: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class JsonSchema(Body):
    name: str = "answer"
    schema_: dict[str, Any] | bool = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def structure(self) -> dict[str, Any] | None:
        """As arguments of `Structure`."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"json_object": True}
        if self.json_schema is None or not isinstance(self.json_schema.schema_, dict):
            raise ApiError(400, "response_format has no json_schema.schema", param="response_format")
        return {"json_schema": self.json_schema.schema_}


class StreamOptions(Body):
    include_usage: bool = False


class Sampling(Body):
    """How tokens are chosen: OpenAI's settings, and the engine's others under the names that vLLM gave them."""

    model: str | None = Field(None, max_length=256)
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]] | None
    ) = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None

    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Fraction | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=4)] | None = None
    dry_allowed_length: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    stop_token_ids: list[Token] | None = Field(None, max_length=64)
    ignore_eos: bool = False
    structured_outputs: StructuredOutputs | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None

    def params(self, most_tokens: int | None, limits: Limits) -> dict[str, Any]:
        """Arguments of `SamplingParams`, as JSON has them.

        Raises:
            ApiError: Something is too much, or two things exclude each other.
        """
        given = {
            "max_new_tokens": most_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": self.top_p,
            "seed": self.seed % 2**64 if self.seed is not None else None,
            "stop": self._stop(limits),
            "stop_ids": self.stop_token_ids,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
            "top_k": max(self.top_k, 0) if self.top_k is not None else None,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "repetition_penalty": self.repetition_penalty,
            "dry_multiplier": self.dry_multiplier,
            "dry_base": self.dry_base,
            "dry_allowed_length": self.dry_allowed_length,
            "min_new_tokens": self.min_tokens,
            "ignore_eos": self.ignore_eos,
            "structure": self._structure(limits),
        }
        return {name: value for name, value in given.items() if value is not None}

    def answers(self, limits: Limits) -> int:
        """How many are wanted.

        Raises:
            ApiError: Too many.
        """
        count = self.n or 1
        if count > limits.answers:
            raise ApiError(400, f"n is {count}, at most {limits.answers} answers are given", param="n")
        return count

    def _stop(self, limits: Limits) -> list[str]:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > limits.stop_strings or any(len(each) > limits.stop_characters for each in stop):
            raise ApiError(
                400,
                f"stop takes at most {limits.stop_strings} strings of {limits.stop_characters} characters",
                param="stop",
            )
        return [each for each in stop if each]

    def _structure(self, limits: Limits) -> dict[str, Any] | None:
        found = [self.response_format.structure()] if self.response_format is not None else []
        if self.structured_outputs is not None:
            found.append(self.structured_outputs.model_dump(exclude_none=True))
        found = [structure for structure in found if structure]
        if len(found) > 1:
            raise ApiError(400, "response_format and structured_outputs exclude each other", param="response_format")
        if not found:
            return None
        check_structure(found[0], limits)
        return found[0]


class Function(Body):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class Tool(Body):
    type: Literal["function"]
    function: Function


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Body):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(Body):
    """A call in an earlier answer."""

    id: str | None = None
    type: str | None = None
    function: CalledFunction


class Part(Body):
    """Of a message's content; what is not text is refused by its name."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Message(Body):
    """A turn of a conversation; what else it has is for the chat template."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    role: Annotated[str, Field(max_length=64)]
    content: str | list[Part] | None = None
    tool_calls: list[ToolCall] | None = None


Messages = Annotated[list[Message], Field(min_length=1)]


class ChatRequest(Sampling):
    """A conversation to be answered."""

    messages: Messages
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class CompletionRequest(Sampling):
    """A text to be continued, or several."""

    prompt: str | Annotated[list[str], Field(min_length=1)] | TokenIds | Annotated[list[TokenIds], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBS)] | None = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    def prompts(self, limits: Limits) -> Sequence[str | list[int]]:
        """Each to be continued by itself.

        Raises:
            ApiError: There are too many.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        if len(self.prompt) > limits.prompts:
            raise ApiError(400, f"at most {limits.prompts} prompts are taken", param="prompt")
        return self.prompt  # type: ignore[return-value]


class TokenizeRequest(Body):
    """A text or a conversation, to be told its tokens."""

    model: str | None = Field(None, max_length=256)
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """Tokens, to be told their text."""

    model: str | None = Field(None, max_length=256)
    tokens: list[Token]


def check_structure(structure: Mapping[str, Any], limits: Limits, param: str = "response_format") -> None:
    """Refuse one that is larger or deeper than it may be.

    Raises:
        ApiError: It is.
    """
    try:
        size = len(orjson.dumps(structure))
    except orjson.JSONEncodeError as error:  # deeper than it can count
        raise ApiError(400, f"the structure cannot be read: {error}", param=param) from error
    if size > limits.schema_bytes:
        raise ApiError(400, f"the structure has {size:,} bytes, at most {limits.schema_bytes:,}", param=param)
    if _depth(structure, limits.schema_depth + 1) > limits.schema_depth:
        raise ApiError(400, f"the schema is deeper than {limits.schema_depth}", param=param)


def check_tools(tools: Sequence[Mapping[str, Any]], choice: str, limits: Limits) -> None:
    """Refuse too many tools, or too large ones, or a choice that they do not leave.

    Args:
        tools, choice: As of a question.

    Raises:
        ApiError: They are.
    """
    if len(tools) > limits.tools:
        raise ApiError(400, f"at most {limits.tools} tools are taken", param="tools")
    for tool in tools:
        check_structure(tool, limits, "tools")
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice needs tools", param="tool_choice")
    if choice not in ("auto", "none", "required", *(f":{tool['name']}" for tool in tools)):
        raise ApiError(400, f"there is no tool {choice[1:]!r}", param="tool_choice")


def _depth(value: Any, most: int) -> int:
    if most == 0 or not isinstance(value, dict | list):
        return 0
    return 1 + max(
        (_depth(item, most - 1) for item in (value.values() if isinstance(value, dict) else value)), default=0
    )
