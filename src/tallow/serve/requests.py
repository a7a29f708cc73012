"""What requests may ask: their bodies, and the parts of a question that all APIs make of them alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from tallow.serve.errors import ApiError
from tallow.serve.settings import Limits
from tallow.serve.tool_choice import MAX_CALLS

MAX_TOKENS = 1 << 20
MAX_OBJECTS = 1 << 14
"""Of each kind: what a server of any settings is spared, whose limits count only what has been read."""
MAX_TOP_LOG_PROBS = 20
MAX_SEED = 9_223_372_036_854_776_000
"""OpenAI's: 2^63 as programs write it that have all numbers as floats."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
ModelName = Annotated[str, Field(max_length=256)]
NumTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Item = TypeVar("Item")
Few = Annotated[list[Item], Field(max_length=MAX_OBJECTS, fail_fast=True)]
"""A list that is refused at its first wrong item: a complaint of each would cost far more than the list."""
Some = Annotated[Few[Item], Field(min_length=1)]
Tokens = Annotated[list[Token], Field(max_length=MAX_TOKENS, fail_fast=True)]
TokenIds = Annotated[Tokens, Field(min_length=1)]
Texts = Some[str]
Tokenized = Some[TokenIds]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


def _several(prompts: Any) -> Any:
    """A text or its tokens as the only one of several."""
    first = prompts[0] if isinstance(prompts, list) and prompts else []
    return [prompts] if isinstance(prompts, str) or not isinstance(first, str | list) else prompts


def _few_parts(messages: Any) -> Any:
    """Messages that have not too many parts and calls together."""
    fields = (message.values() for message in messages[:MAX_OBJECTS] if isinstance(message, dict))
    if sum(len(part) for part in chain.from_iterable(fields) if isinstance(part, list)) > MAX_OBJECTS:
        raise ValueError(f"messages have at most {MAX_OBJECTS:,} parts together")
    return messages


FewParts = BeforeValidator(lambda messages: _few_parts(messages) if isinstance(messages, list) else messages)
Prompts = Annotated[
    Texts | Tokenized, BeforeValidator(_several, json_schema_input_type=str | Texts | TokenIds | Tokenized)
]
"""A text or its tokens, or several of either."""


class Body(BaseModel):
    """A request's body. Fields that are not known are let be, as OpenAI's clients grow faster than servers."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class ModelRequest(Body):
    """What every request may say that is for a model."""

    model: ModelName | None = None
    user: str | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    priority: Int32 = 0
    timeout: Annotated[float, Field(gt=0, le=86400)] | None = None

    def common_fields(self, salt: str | None) -> dict[str, Any]:
        """Those of its `Question` that all requests have.

        Args:
            salt: Of who asks.
        """
        both = None if salt is None and self.cache_salt is None else f"{salt or ''}\0{self.cache_salt or ''}"
        return {"model": self.model, "salt": both, "priority": self.priority, "timeout_s": self.timeout}


class StructuredOutputs(Body):
    """What an answer must look like, beyond `response_format`: one of these."""

    json_schema: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Few[str] | None = None
    grammar: str | None = None


class JsonSchema(Body):
    schema_: dict[str, Any] | bool = Field(default_factory=dict, alias="schema")


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


class SamplingSettings(Body):
    """Arguments of `SamplingParams`: OpenAI's settings, and the others under the names that vLLM gave them."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED, le=MAX_SEED), AfterValidator(lambda seed: seed % 2**64)] | None = None
    stop: str | Few[str] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(fail_fast=True),
        ]
        | None
    ) = None

    top_k: Annotated[int, Field(ge=-1, lt=2**31), AfterValidator(lambda count: max(count, 0))] | None = None
    min_p: Fraction | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    dry_multiplier: Annotated[float, Field(ge=0, le=100)] | None = None
    dry_base: Annotated[float, Field(ge=1, le=4)] | None = None
    dry_allowed_length: NumTokens | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(None, alias="min_tokens")
    stop_ids: Annotated[Tokens, Field(max_length=64)] | None = Field(None, alias="stop_token_ids")
    ignore_eos: bool = False


class Sampling(ModelRequest, SamplingSettings):
    """What every request for answers may say."""

    stream: bool | None = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    def params(self, most_tokens: int | None, limits: Limits) -> dict[str, Any]:
        """Arguments of `SamplingParams`, as JSON has them.

        Args:
            most_tokens: Of an answer; None: as many as fit.
            limits: Of stop strings and structures.

        Raises:
            ApiError: Something is too much, or two things exclude each other.
        """
        given = {"temperature": 1.0} | self.model_dump(include={*SamplingSettings.model_fields}, exclude_none=True)
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > limits.stop_strings or any(len(each) > limits.stop_characters for each in stop):
            most = f"{limits.stop_strings} strings of {limits.stop_characters} characters"
            raise ApiError(400, f"stop takes at most {most}", param="stop")
        given["stop"] = [each for each in stop if each]
        if most_tokens is not None:
            given["max_new_tokens"] = most_tokens
        structures = {param: structure for param, structure in self.structures().items() if structure}
        for param, structure in structures.items():
            if len(structures) > 1:
                raise ApiError(400, f"{' and '.join(structures)} exclude each other", param=param)
            check_structure(structure, limits, param)
            given["structure"] = structure
        return given

    def structures(self) -> dict[str, Any]:
        """What an answer must look like, by the field that says so, as arguments of `Structure`."""
        return {
            "response_format": self.response_format and self.response_format.structure(),
            "structured_outputs": self.structured_outputs and self.structured_outputs.model_dump(exclude_none=True),
        }


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
    arguments: str | dict[str, Any]


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
    content: str | Few[Part] | None = None
    tool_calls: Few[ToolCall] | None = None


Messages = Annotated[Some[Message], FewParts]


class CompletionSettings(Sampling):
    """What both of OpenAI's completion APIs may be asked."""

    n: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None

    def answers(self, limits: Limits) -> int:
        """How many are wanted.

        Raises:
            ApiError: Too many.
        """
        count = self.n or 1
        if count > limits.answers:
            raise ApiError(400, f"n is {count}, at most {limits.answers} answers are given", param="n")
        return count


class ChatRequest(CompletionSettings):
    """A conversation to be answered."""

    messages: Messages
    max_tokens: NumTokens | None = None
    max_completion_tokens: NumTokens | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBS)] | None = None
    tools: Few[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)

    @property
    def choice(self) -> str:
        """Of a tool, as a question has it."""
        given = self.tool_choice
        return f":{given.function.name}" if isinstance(given, NamedTool) else given or "auto"


class CompletionRequest(CompletionSettings):
    """A text to be continued, or several."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOG_PROBS)] | None = None
    echo: bool | None = False
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None


class TokenizeRequest(Body):
    """A text or a conversation, to be told its tokens."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """Tokens, to be told their text."""

    model: ModelName | None = None
    tokens: Tokens


def check_structure(structure: Mapping[str, Any], limits: Limits, param: str) -> None:
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


def _depth(value: Any, most: int) -> int:
    if most == 0 or not isinstance(value, dict | list):
        return 0
    items = value.values() if isinstance(value, dict) else value
    return 1 + max((_depth(item, most - 1) for item in items), default=0)


def tool_fields(tools: Sequence[Body], choice: str, in_parallel: bool | None, limits: Limits) -> dict[str, Any]:
    """Those of a `Question`.

    Args:
        tools: That may be called: each has a `name`, and perhaps a `description` and `parameters`.
        choice: As a question has it.
        in_parallel: Whether one answer may call several; None: it may.
        limits: Of tools and their schemas.

    Raises:
        ApiError: There are too many of them, or too large ones, or the choice is none.
    """
    if len(tools) > limits.tools:
        raise ApiError(400, f"at most {limits.tools} tools are taken", param="tools")
    told = [tool.model_dump(include={"name", "description", "parameters"}, exclude_none=True) for tool in tools]
    for tool in told:
        check_structure(tool, limits, "tools")
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice needs tools", param="tool_choice")
    if choice not in ("auto", "none", "required", *(f":{tool['name']}" for tool in told)):
        raise ApiError(400, f"there is no tool {choice[1:]!r}", param="tool_choice")
    return {"tools": told, "tool_choice": choice, "most_calls": 1 if in_parallel is False else MAX_CALLS}
