"""From a question, as all APIs put it, to deltas of its answers, as all APIs tell them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tallow.errors import DataError
from tallow.serve.engine_process import Facts, Job
from tallow.serve.errors import ApiError
from tallow.serve.tool_choice import MAX_CALLS, forced_structure
from tallow.serve.tool_formats import ANY_FORMAT, tool_format
from tallow.serve.tools import ToolCallDelta, ToolParser
from tallow.serve.wire import Update
from tallow.tokenizer.chat import render_chat_prompt, turn_end_ids

Message = Mapping[str, Any]
QUICK_CHARACTERS = 512
"""A text of so many has its tokens sooner than a thread has begun to make them."""
TOOLS_TOLD = """\
You can call these functions; each line describes one as JSON:
{tools}
To call one, answer with a JSON object of its name and its arguments between these tags, and nothing else:
<tool_call>
{{"name": "the function's name", "arguments": {{"its": "arguments"}}}}
</tool_call>"""
CALL_WRITTEN = '<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@dataclass(frozen=True)
class Question:
    """What is asked.

    Args:
        model: The name of a model or adapter; None: the default.
        messages: A conversation to be answered; or else
        prompt: a text to be continued, or its tokens.
        params: Arguments of `SamplingParams`, as JSON has them; without `max_new_tokens`: as many as fit.
        count: How many answers.
        log_probs: Whether those of the answers' tokens are wanted.
        embed: Whether the prompt's embedding is wanted, and no answer.
        tools: Functions that may be called: `{"name", "description", "parameters"}`.
        tool_choice: `auto`, `none`, `required`, or the name of one after a colon.
        most_calls: Of tools, in one answer.
        salt: Prefixes are shared in the cache only with questions of the same one.
        template_variables: For the chat template.
        timeout_s: Until it must be answered.
    """

    model: str | None
    params: Mapping[str, Any]
    messages: Sequence[Message] = ()
    prompt: str | Sequence[int] = ""
    count: int = 1
    log_probs: bool = False
    embed: bool = False
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    most_calls: int = MAX_CALLS
    salt: str | None = None
    priority: int = 0
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None

    @property
    def num_bytes(self) -> int:
        """Of the prompt: no tokenizer makes more tokens of it."""
        prompt = self.prompt
        texts = (self.messages, self.tools, self.template_variables)
        return sum(map(_size, texts)) + (_size(prompt) if isinstance(prompt, str) else len(prompt))

    async def encode(self, facts: Facts) -> list[int]:
        """Its tokens; unless that is done at once, they are made in a thread beside the loop.

        Raises:
            ApiError: The model cannot take it.
        """
        is_quick = not self.messages and (not isinstance(self.prompt, str) or len(self.prompt) <= QUICK_CHARACTERS)
        try:
            return self._encode(facts) if is_quick else await asyncio.to_thread(self._encode, facts)
        except DataError as error:
            raise ApiError(400, f"{error.message} ({error.hint})", param="messages") from error

    def _encode(self, facts: Facts) -> list[int]:
        tokenizer = facts.tokenizer
        if not self.messages:
            if isinstance(self.prompt, str):
                self._check_bytes(self.prompt, facts)
                return tokenizer.encode(self.prompt, add_special_tokens=True)
            return list(self.prompt)
        messages, tools = self.messages, [{"type": "function", "function": dict(tool)} for tool in self.tools]
        if not self._may_call:
            tools = []
        elif "tools" not in (_template_source(facts) or ""):
            messages, tools = with_tools_told(messages, tools), []
        text, marker = render_chat_prompt(tokenizer, messages, tools=tools or None, variables=self.template_variables)
        self._check_bytes(text.replace(marker, ""), facts)
        return tokenizer.sealed.encode_pieces([(text, False)], marker)[0]

    def job(self, facts: Facts, prompt_ids: list[int], adapter: str | None) -> dict[str, Any]:
        """What the engine process is told.

        Raises:
            ApiError: The prompt leaves no room for an answer.
        """
        room = facts.context_length - len(prompt_ids)
        params = dict(self.params)
        most = params.setdefault("max_new_tokens", max(room, 1))
        if room < min(1, most):
            raise self._too_long(f"{len(prompt_ids)} tokens, the model's context is of {facts.context_length}")
        params["max_new_tokens"] = min(most, max(room, 0))
        params["min_new_tokens"] = min(params.get("min_new_tokens", 0), params["max_new_tokens"])
        if self.messages and not params.get("ignore_eos"):
            params["stop_ids"] = [*params.get("stop_ids", ()), *turn_end_ids(facts.tokenizer)]
        if self._may_call:
            params |= self._tool_params(facts)
        return {
            "prompt_ids": prompt_ids,
            "params": params,
            "count": self.count,
            "salt": self.salt,
            "adapter": adapter,
            "priority": self.priority,
            "log_probs": self.log_probs,
            "embed": self.embed,
        }

    def _check_bytes(self, text: str, facts: Facts) -> None:
        """Refuse a text that is too long whatever its tokens are, before they are made."""
        if len(text) > facts.context_length:
            num_bytes, most = _size(text), facts.context_length * facts.tokenizer.longest_token_bytes
            if num_bytes > most:
                raise self._too_long(f"{num_bytes:,} bytes, in {facts.context_length} tokens fit at most {most:,}")

    def _too_long(self, told: str) -> ApiError:
        param = "messages" if self.messages else "input" if self.embed else "prompt"
        return ApiError(400, f"the prompt has {told}", code="context_length_exceeded", param=param)

    def tool_parser(self, facts: Facts) -> ToolParser | None:
        """What finds calls in an answer; None: there can be none."""
        if not self._may_call:
            return None
        if self.tool_choice != "auto":
            return ToolParser(ANY_FORMAT, self.tools, self._function)
        return ToolParser(tool_format(_template_source(facts)), self.tools)

    @property
    def _may_call(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def _function(self) -> str | None:
        """The one that must be called."""
        return self.tool_choice[1:] if self.tool_choice.startswith(":") else None

    def _tool_params(self, facts: Facts) -> dict[str, Any]:
        """What the parser of calls needs of the answer."""
        if self.tool_choice != "auto":
            schema = forced_structure(self.tools, self._function, max_calls=self.most_calls)
            return {"structure": {"json_schema": schema}}
        tokenizer = facts.tokenizer
        found = (tokenizer.backend.token_to_id(tag) for tag in tool_format(_template_source(facts)).tags)
        return {"shown_special_ids": [token for token in found if token in tokenizer.special_ids]}


@dataclass(slots=True)
class Delta:
    """What one answer has grown by.

    Args:
        choice: Which.
        text: Of its content.
        calls: Of its tool calls.
        piece: All that the engine has told.
        finish_reason: `stop`, `length`, `tool_calls` or `abort`; None while it goes on.
    """

    choice: int
    text: str
    calls: list[ToolCallDelta]
    piece: Update
    finish_reason: str | None


class Answers:
    """The answers to a question, while they grow.

    Args:
        name: Of the model or adapter that gives them.
        facts: Of the model.
        question: The question.
        job: What the engine does for it.
        prompt_ids: The tokens of the prompt.
    """

    def __init__(self, name: str, facts: Facts, question: Question, job: Job, prompt_ids: list[int]) -> None:
        self.name, self.facts, self.question = name, facts, question
        self.prompt_ids, self.num_prompt_tokens, self.num_tokens = prompt_ids, len(prompt_ids), 0
        self._job = job
        self._parsers = [question.tool_parser(facts) for _ in range(question.count)]
        self._has_calls = [False] * question.count

    @property
    def cached_tokens(self) -> int:
        return self._job.cached_tokens

    async def deltas(self) -> AsyncIterator[Delta]:
        """What they grow by.

        Raises:
            ApiError: There will be no more of them.
        """
        while updates := await self._job.read():
            for update in updates:
                self.num_tokens += len(update.ids)
                yield self._delta(update)

    async def whole(self) -> list[Delta]:
        """All of each answer.

        Raises:
            ApiError: There will not be all of them.
        """
        updates = await self._job.read_all()
        self.num_tokens = sum(len(update.ids) for update in updates)
        return [self._delta(update) for update in updates]

    def _delta(self, piece: Update) -> Delta:
        choice = piece.choice
        parser = self._parsers[choice]
        if parser is None:
            return Delta(choice, piece.text, [], piece, piece.finish_reason)
        text, calls = parser.push(piece.text)
        if piece.finish_reason is not None:
            rest, last = parser.finish()
            text, calls = text + rest, [*calls, *last]
        calls = [call for call in calls if call.index < self.question.most_calls]
        self._has_calls[choice] |= bool(calls)
        called = piece.finish_reason == "stop" and self._has_calls[choice]
        return Delta(choice, text, calls, piece, "tool_calls" if called else piece.finish_reason)


def with_tools_told(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages that tell a model of its tools where its chat template does not, in the form that most were taught."""
    told = TOOLS_TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    plain = [_with_calls_written(message) for message in messages]
    if plain[0].get("role") == "system":
        return [{**plain[0], "content": f"{plain[0].get('content') or ''}\n\n{told}"}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]


def _with_calls_written(message: Message) -> Message:
    """An earlier answer whose calls are part of its text."""
    if not message.get("tool_calls"):
        return message
    functions = [call.get("function", call) for call in message["tool_calls"]]
    written = [CALL_WRITTEN.format(name=each["name"], arguments=_json_text(each["arguments"])) for each in functions]
    plain = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**plain, "content": "\n".join([*filter(None, [message.get("content")]), *written])}


def _json_text(value: Any) -> str:
    """A value as JSON, unless it is that already."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _template_source(facts: Facts) -> str | None:
    template = facts.tokenizer.chat_template
    return None if template is None else template.tool_source or template.source


def _size(value: Any) -> int:
    """Bytes of all texts in a value; a token or another number counts as one."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if isinstance(value, Mapping):
        return sum(_size(key) + _size(item) for key, item in value.items())
    if isinstance(value, Sequence):
        return sum(map(_size, value))
    return 1
