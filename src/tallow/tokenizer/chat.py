"""Conversations as text and as token ids: chat templates, and which part of a conversation a model learns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from tallow.errors import DataError

if TYPE_CHECKING:  # at run time tokenizer.py imports this file
    from tallow.tokenizer.program import Program
    from tallow.tokenizer.tokenizer import Tokenizer

Message = Mapping[str, Any]
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]+")
MESSAGE_FORM = 'a message is {"role": "user" or such, "content": text}'

TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
"""Special tokens with which chat templates end a turn, and which not every config.json names as an end token."""

CHATML = """\
{%- macro text(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content %}
            {{- part.text }}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- text(messages[0].content) + '\\n\\n' }}
    {%- endif %}
    {{- 'These functions can be called:\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson + '\\n' }}
    {%- endfor %}
    {{- 'A call is written as:\\n<tool_call>\\n{"name": NAME, "arguments": {...}}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.role == 'assistant' %}
            {%- generation %}
                {{- text(message.content or '') }}
                {%- for call in message.tool_calls or [] %}
                    {{- '\\n' if message.content or not loop.first }}
                    {{- '<tool_call>\\n{"name": ' + call.function.name | tojson + ', "arguments": ' }}
                    {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
                {%- endfor %}
                {{- '<|im_end|>' }}
            {%- endgeneration %}
        {%- else %}
            {{- text(message.content) + '<|im_end|>' }}
        {%- endif %}
        {{- '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


class ChatTemplate:
    """A Jinja template that writes conversations, run as `transformers` runs it, but with limits (see `sandbox`).

    Args:
        source: The template. It is compiled when it is first used, so that a model can be loaded whose template
            is broken.
        tokens: Spelling of the special tokens that the template may name (`bos_token`, `eos_token`, …).
        tool_source: Another template for conversations with tools, if the model has one.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], *, tool_source: str | None = None) -> None:
        self.source, self.tool_source = source, tool_source
        self.tokens = dict(tokens)
        self._programs: dict[str, Program] = {}

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: Each with a `role` and what else the template reads, in values that JSON knows.
            add_generation_prompt: End with the beginning of an assistant's turn.
            tools: JSON schemas of functions that the model may call.
            variables: Further settings of this template (such as `enable_thinking`).

        Raises:
            DataError: A message is not one, or the template fails, refuses the conversation or reaches a limit.
        """
        return self._render(_plain_messages(messages), tools, add_generation_prompt, variables or {})

    def render_masked(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        learned: Sequence[bool] | None = None,
    ) -> list[tuple[str, bool]]:
        """The text of a conversation in pieces, and for each whether the assistant wrote it and a model learns it.

        A template may say so by `{% generation %}`. For others the conversation is rendered up to each answer,
        once before it (with the generation prompt) and once behind it; the difference is the answer with its end
        token. That holds only where each of these texts is the beginning of the next, which is checked.

        Args:
            messages: As of `render`.
            tools: As of `render`.
            learned: For each message whether it is to be learned, if an assistant wrote it; None: all are.

        Raises:
            DataError: As `render`; or what the assistant wrote cannot be told from this template, or it leaves out
                tools or calls of them.
        """
        plain = _plain_messages(messages)
        wanted = [
            learned is None or learned[index] for index, message in enumerate(plain) if message["role"] == "assistant"
        ]
        if self._choose(tools).marks_generation:
            pieces = self._marked_pieces(plain, tools, wanted)
        else:
            pieces = self._prefix_pieces(plain, tools, wanted)
        pieces = [(text, learned) for text, learned in pieces if text]
        if any(wanted) and not any(learned for _, learned in pieces):
            raise DataError(
                "the chat template marks nothing of the assistant's answers as learned",
                "put {% generation %} … {% endgeneration %} around the assistant's content and end token",
            )
        _check_tools_written(plain, tools, wanted, pieces)
        return pieces

    def _marked_pieces(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, wanted: Sequence[bool]
    ) -> list[tuple[str, bool]]:
        start, end = _unused_characters([messages, tools], 2)
        text = self._render(messages, tools, False, self._choose(tools).marks(start, end))
        parts, depth, marked = list[tuple[str, int | None]](), 0, 0
        for part in re.split(f"([{start}{end}])", text):
            if part in (start, end):
                depth += 1 if part == start else -1
                marked += part == end and depth == 0
            else:
                parts.append((part, marked if depth else None))
        if all(wanted):
            return [(part, place is not None) for part, place in parts]
        if marked != len(wanted):
            raise DataError(
                f"it cannot be told which answers are to be learned: the chat template marks {marked} parts in a "
                f"conversation with {len(wanted)} messages of an assistant",
                "use a template that marks each answer once",
            )
        return [(part, place is not None and wanted[place]) for part, place in parts]

    def _prefix_pieces(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, wanted: Sequence[bool]
    ) -> list[tuple[str, bool]]:
        whole = self._render(messages, tools, False, {})
        pieces, done = [], 0
        flags = iter(wanted)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:index], tools, True, {})
            behind = self._render(messages[: index + 1], tools, False, {})
            if not (whole.startswith(behind) and behind.startswith(before) and len(before) >= done):
                raise DataError(
                    f"it cannot be told what the assistant wrote in message {index}: the chat template writes the "
                    "conversation up to there otherwise than as the beginning of the whole",
                    "use a template with {% generation %}, or one answer in each conversation",
                )
            # What follows the end token is not the model's to write: it has stopped by then.
            answer = behind[len(before) :]
            if answer.rstrip().endswith((*TURN_ENDS, self.tokens.get("eos_token", TURN_ENDS[0]))):
                answer = answer.rstrip()
            pieces += [(whole[done : len(before)], False), (answer, next(flags))]
            done = len(before) + len(answer)
        return [*pieces, (whole[done:], False)]

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any],
    ) -> str:
        return self._choose(tools).render(
            {
                "documents": None,
                **self.tokens,
                **variables,
                "messages": messages,
                "tools": _plain(tools, "tools"),
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def _choose(self, tools: Sequence[Mapping[str, Any]] | None) -> Program:
        from tallow.tokenizer.program import Program  # and with it Jinja, which most uses of a tokenizer do without

        source = self.tool_source if tools and self.tool_source is not None else self.source
        return self._programs.setdefault(source, Program(source))


def turn_end_ids(tokenizer: Tokenizer) -> list[int]:
    """The special tokens with which a tokenizer's chat template ends a turn."""
    template = tokenizer.chat_template
    written = [token for token in TURN_ENDS if template is not None and token in template.source]
    encoded = [tokenizer.encode(token, parse_special=True) for token in written]
    return [ids[0] for ids in encoded if len(ids) == 1 and ids[0] in tokenizer.special_ids]


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    learned: Sequence[bool] | None = None,
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and for each whether a model learns it.

    The ids are those of encoding the rendered text as a whole, with one difference: control tokens come from the
    template alone. Where a message (or a tool) spells one, those characters are encoded as text. A token that
    reaches into an assistant's text counts as learned, if that message is one of the `learned` (None: all are).

    Raises:
        DataError: The tokenizer has no chat template; or as `ChatTemplate.render_masked`.
    """
    template, marker, messages, tools = _marked(tokenizer, messages, tools)
    return tokenizer.sealed.encode_pieces(template.render_masked(messages, tools=tools, learned=learned), marker)


def encode_chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation up to where the assistant begins to answer; control tokens as in `encode_chat`.

    Raises:
        DataError: The tokenizer has no chat template; or as `ChatTemplate.render`.
    """
    text, marker = render_chat_prompt(tokenizer, messages, tools=tools, variables=variables)
    return tokenizer.sealed.encode_pieces([(text, False)], marker)[0]


def render_chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """The first half of `encode_chat_prompt`: the text, and the marker in it that `encode_pieces` takes out.

    Raises:
        DataError: As `encode_chat_prompt`.
    """
    template, marker, messages, tools = _marked(tokenizer, messages, tools)
    return template.render(messages, add_generation_prompt=True, tools=tools, variables=variables), marker


def _marked(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
) -> tuple[ChatTemplate, str, list[Message], list[Mapping[str, Any]] | None]:
    """Messages and tools with a marker in everything that spells a control token or part of one."""
    if tokenizer.chat_template is None:
        raise DataError("the model has no chat template", "put a chat_template.jinja into its directory")
    plain, plain_tools = _plain_messages(messages), _plain(tools, "tools")
    marker = _unused_characters([plain, plain_tools], 1)[0]

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            return tokenizer.sealed.mark(value, marker)
        if isinstance(value, list):
            return [mark(item) for item in value]
        if isinstance(value, dict):
            return {key if key.isidentifier() else mark(key): mark(item) for key, item in value.items()}
        return value

    # A role that is a plain word stays whole: templates compare it, and some build their control tokens from it.
    marked: list[Message] = [
        {**mark(message), **({"role": message["role"]} if message["role"].isidentifier() else {})} for message in plain
    ]
    return tokenizer.chat_template, marker, marked, mark(plain_tools)


def _plain_messages(messages: Sequence[Message]) -> list[Message]:
    """Copies of messages, each with a role and a content, which is a string.

    Content in parts (as OpenAI's API has it) is joined without anything in between; parts that are not text are
    refused. An answer that only calls tools needs no content. What is None is left out, for many templates would
    write "None".
    """
    return [_plain_message(message, f"message {index}") for index, message in enumerate(messages)]


def _plain_message(message: Message, where: str) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise DataError(f"{where} has no role", MESSAGE_FORM)
    plain = {key: value for key, value in _plain(message, where).items() if value is not None}
    content = plain.get("content")
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                raise DataError(
                    f"part {number} of the content of {where} is no text", 'a part is {"type": "text", "text": …}'
                )
        plain["content"] = "".join(part["text"] for part in content)
    elif content is None and not plain.get("tool_calls"):
        raise DataError(f"{where} has no content", MESSAGE_FORM)
    elif content is not None and not isinstance(content, str):
        raise DataError(f"the content of {where} is no text", MESSAGE_FORM)
    return plain


def _plain(value: Any, where: str) -> Any:
    """A copy of a value that JSON knows: other objects could offer a template more than data."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: _plain(item, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, where) for item in value]
    raise DataError(f"{where} holds a {type(value).__name__}", "use only text, numbers, lists and mappings")


def _check_tools_written(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None,
    wanted: Sequence[bool],
    pieces: Sequence[tuple[str, bool]],
) -> None:
    """Refuse a template that leaves out tools, or calls of them: a model would learn to answer with nothing.

    Only names that every template would write as they are count.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    calls = [
        call
        for answer, learned in zip(answers, wanted, strict=True)
        if learned
        for call in answer.get("tool_calls") or []
    ]
    for what, functions, text in (
        ("tool", tools or [], "".join(text for text, _ in pieces)),
        ("call of the tool", calls, "".join(text for text, learned in pieces if learned)),
    ):
        for name in map(_function_name, functions):
            if name is not None and PLAIN_NAME.fullmatch(name) and name not in text:
                raise DataError(
                    f"the chat template leaves out the {what} {name}",
                    "use a model whose template knows tools, or the template chatml",
                )


def _function_name(function: Any) -> str | None:
    """The name of a tool or of a call, if it is written in a usual way."""
    inner = function.get("function", function) if isinstance(function, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    return name if isinstance(name, str) else None


def _unused_characters(value: Any, count: int) -> list[str]:
    """Private-use characters that occur nowhere in a value.

    Raises:
        DataError: There are not so many.
    """
    used = set(json.dumps(value, ensure_ascii=False))
    candidates = map(chr, chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE)))
    found = list(islice((character for character in candidates if character not in used), count))
    if len(found) < count:
        raise DataError("the conversation holds all of Unicode's private-use characters", "leave some of them out")
    return found
