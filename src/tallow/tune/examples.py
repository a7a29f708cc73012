"""Instruction records → token ids and a mask of what is learned; and their packing into rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.text import Text

from tallow.console import say, stderr
from tallow.data.batch import Packed
from tallow.errors import DataError
from tallow.tokenizer.chat import encode_chat
from tallow.tokenizer.tokenizer import Tokenizer

PADDING = -1
FORMS = 'use {"messages": [{"role": …, "content": …}]} or {"prompt": …, "completion": …}'


@dataclass(frozen=True)
class Example:
    """One conversation or prompt with its completion: token ids, and for each whether it is learned."""

    ids: list[int]
    learned: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


def encode_record(record: dict[str, Any], tokenizer: Tokenizer, where: str) -> Example:
    """Tokens of one record: `{"messages": [{role, content}, …]}` or `{"prompt": …, "completion": …}`.

    Of a conversation the assistant's turns and their end tokens are learned, of a prompt with its
    completion the completion and the end token.

    Args:
        where: Which record it is, for the error.

    Raises:
        DataError: The record is of neither form, has no answer, or the chat template refuses it.
    """
    if record.get("messages") is not None:
        return _encode_messages(record["messages"], tokenizer, where)
    if record.get("prompt") is not None and record.get("completion") is not None:
        return _encode_completion(record["prompt"], record["completion"], tokenizer, where)
    filled = sorted(name for name, value in record.items() if value is not None)
    raise DataError(
        f"{where} has neither messages nor prompt and completion (it has {', '.join(filled) or 'nothing'})", FORMS
    )


def _encode_messages(messages: Any, tokenizer: Tokenizer, where: str) -> Example:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: messages is no list, or an empty one", FORMS)
    try:
        ids, learned = encode_chat(tokenizer, messages)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error
    if not any(learned):
        raise DataError(f"{where} has no assistant message, so nothing to learn", "leave it out, or add the answer")
    return Example(ids, learned)


def _encode_completion(prompt: Any, completion: Any, tokenizer: Tokenizer, where: str) -> Example:
    for name, text in (("prompt", prompt), ("completion", completion)):
        if not isinstance(text, str):
            raise DataError(f"{where}: {name} is no string", FORMS)
    if tokenizer.eos_id is None:
        raise DataError("the tokenizer has no end token, so the model could not learn to stop", "set eos_token")
    start = tokenizer.encode(prompt, add_special_tokens=True)
    answer = [*tokenizer.encode(completion), tokenizer.eos_id]
    return Example(start + answer, [False] * len(start) + [True] * len(answer))


def check_learned(examples: Sequence[Example], end_ids: Collection[int]) -> None:
    """Refuse a set from which a model could not learn to answer, or could not learn to stop.

    Raises:
        DataError: No token is learned in the whole set, or the end token never is.
    """
    learned = {
        token for example in examples for token, wanted in zip(example.ids, example.learned, strict=True) if wanted
    }
    if not learned - set(end_ids):
        raise DataError(
            "no answer token would be trained: all but end tokens are masked",
            "check that the records have assistant messages, and that the chat template marks them",
        )
    if learned.isdisjoint(end_ids):
        raise DataError(
            "the end token is never trained, so the model would not learn to stop",
            "check that the chat template ends each assistant turn with the end token",
        )


def keep_fitting(examples: Iterable[Example], sequence_length: int) -> list[Example]:
    """The examples that a model can learn which sees `sequence_length` tokens; how many were left out is said.

    Such an example may have one token more: its last is never an input.

    Raises:
        DataError: None fits.
    """
    examples = list(examples)
    if not examples:
        raise DataError("the instruction set is empty", "name a file with records")
    kept = [example for example in examples if len(example) <= sequence_length + 1]
    if not kept:
        shortest = min(map(len, examples)) - 1
        raise DataError(
            f"every example is too long for a sequence_length of {sequence_length}",
            f"set tune.loop.sequence_length to {shortest} or more",
        )
    if left_out := len(examples) - len(kept):
        longest = max(map(len, examples)) - 1
        say(
            f"left out {left_out:,} of {len(examples):,} examples: too long for a sequence_length of {sequence_length} "
            f"(a tune.loop.sequence_length of {longest} would take them all)"
        )
    return kept


def pack(examples: Sequence[Example], row_tokens: int) -> list[list[Example]]:
    """Fill rows of `row_tokens` with whole examples, best fit first, so that little is padding.

    Each example goes, longest first, into the fullest row that still takes it (best-fit decreasing).
    """
    rows: list[list[Example]] = []
    rows_with_room: dict[int, list[int]] = {}
    for example in sorted(examples, key=len, reverse=True):
        room = min((room for room in rows_with_room if room >= len(example)), default=None)
        if room is None:
            rows.append([example])
            index, room = len(rows) - 1, row_tokens
        else:
            index = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rows_with_room[room]
            rows[index].append(example)
        rows_with_room.setdefault(room - len(example), []).append(index)
    return rows


def to_packed(rows: Sequence[Sequence[Example]], row_tokens: int, pad_id: int) -> Packed:
    """Rows of examples as tensors, padded to `row_tokens`."""
    tokens_BT = torch.full((len(rows), row_tokens), pad_id, dtype=torch.int64)
    documents_BT = torch.full((len(rows), row_tokens), PADDING, dtype=torch.int32)
    trainable_BT = torch.zeros((len(rows), row_tokens), dtype=torch.bool)
    for row, examples in enumerate(rows):
        start = 0
        for document, example in enumerate(examples):
            end = start + len(example)
            tokens_BT[row, start:end] = torch.tensor(example.ids)
            documents_BT[row, start:end] = document
            trainable_BT[row, start:end] = torch.tensor(example.learned)
            start = end
    return Packed(tokens_BT, documents_BT, trainable_BT)


def show(example: Example, tokenizer: Tokenizer) -> None:
    """Print one example on standard error: what is learned in green, what is masked faint."""
    text = Text("one example (")
    text.append("learned", style="green").append(", ").append("masked", style="dim").append("): ")
    start = 0
    for end in range(1, len(example) + 1):
        if end == len(example) or example.learned[end] != example.learned[start]:
            piece = tokenizer.decode(example.ids[start:end], skip_special_tokens=False)
            console = stderr()
            marked = piece if console.is_terminal or not example.learned[start] else f"⟦{piece}⟧"
            text.append(marked, style="green" if example.learned[start] else "dim")
            start = end
    stderr().print(text, soft_wrap=True)
