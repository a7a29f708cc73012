"""OpenAI's completions and chat completions: questions from their requests, their answers from deltas."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from tallow.serve.answers import Answers, Delta, Question
from tallow.serve.blocks import text_of, tool_call
from tallow.serve.engine_process import Facts
from tallow.serve.errors import ApiError
from tallow.serve.http import sse
from tallow.serve.requests import ChatRequest, CompletionRequest, Message, TokenizeRequest, tool_fields
from tallow.serve.service import Service
from tallow.serve.settings import Limits
from tallow.serve.tools import ToolCallDelta
from tallow.serve.wire import Update

DONE = sse(b"[DONE]")


def tell_error(error: ApiError) -> bytes:
    """An error within a stream."""
    return sse(error.as_openai()) + DONE


class Chat:
    """One chat completion.

    Args:
        service: Who answers.
        request: What is asked.
        salt: Of who asks.

    Raises:
        ApiError: It asks for what there is not.
    """

    def __init__(self, service: Service, request: ChatRequest, salt: str | None) -> None:
        limits = service.settings.limits
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self._service, self._request = service, request
        self._wants_log_probs = bool(request.logprobs)
        if request.top_logprobs and not self._wants_log_probs:
            raise ApiError(400, "top_logprobs needs logprobs", param="top_logprobs")
        params = request.params(request.max_completion_tokens or request.max_tokens, limits)
        if self._wants_log_probs:
            params["top_log_probs"] = request.top_logprobs or 0
        tools = [tool.function for tool in request.tools or ()]
        self.question = Question(
            params=params,
            messages=template_messages(request.messages, limits),
            count=request.answers(limits),
            log_probs=self._wants_log_probs,
            template_variables=request.chat_template_kwargs,
            **tool_fields(tools, request.choice, request.parallel_tool_calls, limits),
            **request.common_fields(salt),
        )

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""
        async with self._service.answer(self.question) as answers:
            choices = [self._choice(answers.facts, whole) for whole in await answers.whole()]
        return self._head(answers, "chat.completion") | {"choices": choices, "usage": usage(answers)}

    def _choice(self, facts: Facts, whole: Delta) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": whole.text, "refusal": None}
        if whole.calls:
            message |= {"content": whole.text or None, "tool_calls": _whole_calls(whole.calls)}
        scores = {"content": self._log_probs(facts, whole.piece), "refusal": None} if self._wants_log_probs else None
        return {"index": whole.choice, "message": message, "logprobs": scores, "finish_reason": whole.finish_reason}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer piece by piece."""
        options = self._request.stream_options
        with_usage = {"usage": None} if options is not None and options.include_usage else {}
        begun: set[int] = set()
        async with self._service.answer(self.question) as answers:
            head = self._head(answers, "chat.completion.chunk") | with_usage
            async for delta in answers.deltas():
                content: dict[str, Any] = {}
                if delta.choice not in begun:
                    begun.add(delta.choice)
                    content = {"role": "assistant", "content": ""}
                if delta.text:
                    content["content"] = delta.text
                if delta.calls:
                    content["tool_calls"] = [_call_delta(call) for call in delta.calls]
                scores = self._log_probs(answers.facts, delta.piece)
                if not content and not scores and delta.finish_reason is None:
                    continue
                choice: dict[str, Any] = {"index": delta.choice, "delta": content, "finish_reason": delta.finish_reason}
                choice["logprobs"] = {"content": scores, "refusal": None} if scores else None
                yield sse(head | {"choices": [choice]})
            if with_usage:
                yield sse(head | {"choices": [], "usage": usage(answers)})
        yield DONE

    def _head(self, answers: Answers, kind: str) -> dict[str, Any]:
        return _head(self.id, kind, self.created, answers) | {"service_tier": None}

    def _log_probs(self, facts: Facts, piece: Update) -> list[dict[str, Any]]:
        if not self._wants_log_probs:
            return []
        tops = piece.top_log_probs or [[]] * len(piece.ids)
        return [
            _scored(facts, token, score) | {"top_logprobs": [_scored(facts, *pair) for pair in top]}
            for token, score, top in zip(piece.ids, piece.log_probs, tops, strict=True)
        ]


class Completion:
    """Continuations of one or more texts.

    Args:
        service: Who answers.
        request: What is asked.
        salt: Of who asks.

    Raises:
        ApiError: It asks for what there is not.
    """

    def __init__(self, service: Service, request: CompletionRequest, salt: str | None) -> None:
        limits = service.settings.limits
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
        self._service, self._request = service, request
        self._count = request.answers(limits)
        if request.suffix:
            raise ApiError(400, "there is no suffix: this model only continues", param="suffix")
        if request.best_of not in (None, self._count):
            raise ApiError(400, "best_of is n here", param="best_of")
        self._most = 16 if request.max_tokens is None else request.max_tokens
        if self._most == 0 and not request.echo:
            raise ApiError(400, "max_tokens 0 needs echo: there would be nothing to tell", param="max_tokens")
        params = request.params(self._most, limits)
        if request.logprobs is not None:
            params["top_log_probs"] = request.logprobs
            params["prompt_log_probs"] = bool(request.echo)
        elif self._most == 0:
            params["max_new_tokens"], params["prompt_log_probs"] = 0, True
        if len(request.prompt) * self._count > limits.prompts:
            raise ApiError(400, f"at most {limits.prompts} answers are given to all prompts together", param="n")
        self.questions = [
            Question(
                params=params,
                prompt=prompt,
                count=self._count,
                log_probs=request.logprobs is not None,
                **request.common_fields(salt),
            )
            for prompt in request.prompt
        ]

    async def whole(self) -> dict[str, Any]:
        """All answers at once."""
        works = [partial(self._answer, index, question) for index, question in enumerate(self.questions)]
        most_bytes = max(question.num_bytes for question in self.questions)
        parts = await self._service.admission.in_turns(works, most_bytes, self._request.timeout)
        choices = [choice for _, choices in parts for choice in choices]
        all_answers = [answers for answers, _ in parts]
        return self._head(all_answers[0]) | {"choices": choices, "usage": usage(*all_answers)}

    async def _answer(self, index: int, question: Question) -> tuple[Answers, list[dict[str, Any]]]:
        async with self._service.answer(question) as answers:
            echoed = await self._echoed(answers)
            return answers, [self._choice(index, answers, whole, echoed) for whole in await answers.whole()]

    async def events(self) -> AsyncGenerator[bytes, None]:
        """All answers piece by piece, those to several prompts one after the other."""
        options = self._request.stream_options
        all_answers: list[Answers] = []
        async with self._service.admission.deadline(self._request.timeout):
            for index, question in enumerate(self.questions):
                told: dict[int, int] = {}  # characters of each answer that has begun
                async with self._service.answer(question) as answers:
                    all_answers.append(answers)
                    head, echoed = self._head(answers), await self._echoed(answers)
                    async for delta in answers.deltas():
                        begun = told.get(delta.choice)
                        choice = self._choice(index, answers, delta, echoed if begun is None else None, begun or 0)
                        yield sse(head | {"choices": [choice]})
                        told[delta.choice] = (begun or 0) + sum(map(len, (choice["logprobs"] or {}).get("tokens", ())))
        if options is not None and options.include_usage:
            yield sse(self._head(all_answers[0]) | {"choices": [], "usage": usage(*all_answers)})
        yield DONE

    async def _echoed(self, answers: Answers) -> str | None:
        """The prompt's text, if it is to be told before the answer."""
        if not self._request.echo:
            return None
        if isinstance(answers.question.prompt, str):
            return answers.question.prompt
        return await asyncio.to_thread(answers.facts.tokenizer.decode, answers.prompt_ids)

    def _choice(
        self, index: int, answers: Answers, delta: Delta, echoed: str | None, offset: int = 0
    ) -> dict[str, Any]:
        num_top, with_prompt = self._request.logprobs, echoed is not None
        return {
            "index": index * self._count + delta.choice,
            "text": (echoed or "") + delta.text,
            "logprobs": _scores(answers, delta.piece, with_prompt, num_top, offset) if num_top is not None else None,
            "finish_reason": delta.finish_reason,
        }

    def _head(self, answers: Answers) -> dict[str, Any]:
        return _head(self.id, "text_completion", self.created, answers)


def _head(name: str, kind: str, created: int, answers: Answers) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": created, "model": answers.name, "system_fingerprint": None}


def _scores(answers: Answers, piece: Update, with_prompt: bool, num_top: int, offset: int) -> dict[str, Any]:
    """Log-probabilities in the form of completions; the prompt's first token has none.

    Args:
        offset: Characters of the tokens that have been told before.
    """
    facts, prompt_ids = answers.facts, answers.prompt_ids
    scored: list[tuple[int, float | None, Sequence[tuple[int, float]] | None]] = []
    if with_prompt and (piece.prompt_log_probs or len(prompt_ids) == 1):
        scored.append((prompt_ids[0], None, None))
        scored += _with_tops(prompt_ids[1:], piece.prompt_log_probs, piece.prompt_top_log_probs)
    scored += _with_tops(piece.ids, piece.log_probs, piece.top_log_probs)
    tokens = [token_text(facts, token) for token, _, _ in scored]
    tops = [
        {token_text(facts, other): value for other, value in top} if top is not None else None for *_, top in scored
    ]
    for token, (_, score, _), top in zip(tokens, scored, tops, strict=True):
        if top is not None and score is not None:
            top.setdefault(token, score)  # as OpenAI: the token itself is always named
    return {
        "tokens": tokens,
        "token_logprobs": [score for _, score, _ in scored],
        "top_logprobs": tops if num_top else None,
        "text_offset": [*accumulate(map(len, tokens), initial=offset)][: len(tokens)],
    }


def _with_tops(
    ids: Sequence[int], scores: Sequence[float], tops: Sequence[Sequence[tuple[int, float]]]
) -> Iterator[tuple[int, float, Sequence[tuple[int, float]]]]:
    return zip(ids, scores, tops or [()] * len(scores), strict=False)  # tokens without scores are not told


def usage(*all_answers: Answers) -> dict[str, Any]:
    """What was computed for one prompt, or for several."""
    num_prompt_tokens = sum(answers.num_prompt_tokens for answers in all_answers)
    num_tokens = sum(answers.num_tokens for answers in all_answers)
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(answers.cached_tokens for answers in all_answers)},
    }


async def tokenize(service: Service, request: TokenizeRequest) -> tuple[Facts, list[int]]:
    """The tokens of a prompt or of messages, and whose they are.

    Raises:
        ApiError: There is neither, or too much of it.
    """
    messages = template_messages(request.messages or (), service.settings.limits)
    if not messages and request.prompt is None:
        raise ApiError(400, "give a prompt, or messages", param="prompt")
    text = request.prompt or ""
    asked = Question(request.model, {}, messages, text)
    async with service.admission.place(asked.num_bytes):
        facts = await service.engine(request.model).ready()
        if messages:
            return facts, await asked.encode(facts)
        encode = facts.tokenizer.encode  # a text need not fit into the context here
        return facts, await asyncio.to_thread(encode, text, add_special_tokens=request.add_special_tokens)


def token_texts(facts: Facts, tokens: Sequence[int]) -> list[str]:
    """Each token as text."""
    texts = {token: token_text(facts, token) for token in set(tokens)}
    return [texts[token] for token in tokens]


def token_text(facts: Facts, token: int) -> str:
    """A token as text; bytes that are none become the replacement character."""
    return facts.tokenizer.token_bytes(token).decode(errors="replace")


def template_messages(messages: Sequence[Message], limits: Limits) -> list[dict[str, Any]]:
    """Messages as chat templates take them.

    Raises:
        ApiError: There are too many, one has content that is not text, or a call whose arguments are no JSON object.
    """
    if len(messages) > limits.messages:
        raise ApiError(400, f"a conversation has at most {limits.messages} messages", param="messages")
    found = []
    for index, message in enumerate(messages):
        plain, param = message.model_dump(exclude_unset=True), f"messages[{index}]"
        if message.role == "developer":
            plain["role"] = "system"
        if message.content is not None:
            plain["content"] = text_of(plain["content"], f"{param}.content")
        if message.tool_calls is not None:
            plain["tool_calls"] = [
                tool_call(call.id, call.function.name, call.function.arguments, f"{param}.tool_calls")
                for call in message.tool_calls
            ]
        found.append(plain)
    return found


def _whole_calls(deltas: Sequence[ToolCallDelta]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append({"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": ""}})
        calls[delta.index]["function"]["arguments"] += delta.arguments
    return calls


def _call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    if delta.id is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}


def _scored(facts: Facts, token: int, score: float) -> dict[str, Any]:
    spelled = facts.tokenizer.token_bytes(token)
    return {"token": spelled.decode(errors="replace"), "logprob": score, "bytes": list(spelled)}
