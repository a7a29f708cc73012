"""Instruction records → token ids and a mask of what is learned; and their packing into rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.text import Text

from tallow.console import say, stderr
from tallow.data.batch import Packed
from tallow.data.instructions.read import read_samples, set_aside
from tallow.data.instructions.samples import Answered, Conversation, Labelled, Preference
from tallow.data.instructions.spellings import Form
from tallow.data.reading.settings import ReadSettings
from tallow.data.records import Record, Rejected
from tallow.errors import DataError
from tallow.tokenizer.chat import encode_chat
from tallow.tokenizer.tokenizer import Tokenizer

PADDING = -1
SHOWN_CHARACTERS = 1_000  # of a piece that is masked or learned as a whole


@dataclass(frozen=True)
class Example:
    """One conversation or prompt with its completion: token ids, and for each whether it is learned."""

    ids: list[int]
    learned: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


def encode_answered(answered: Answered, tokenizer: Tokenizer) -> Example:
    """Tokens of a conversation, or of a prompt with its completion.

    Of a conversation the assistant's turns and their end tokens are learned, as far as it says so, of a prompt with
    its completion the completion and the end token.

    Raises:
        DataError: The chat template refuses it, or what is learned cannot be told.
    """
    if isinstance(answered, Conversation):
        ids, learned = encode_chat(tokenizer, answered.messages, tools=answered.tools or None, learned=answered.learned)
        return Example(ids, learned)
    start = tokenizer.encode(answered.prompt, add_special_tokens=True)
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    answer = [*tokenizer.encode(answered.completion), *end]
    return Example(start + answer, [False] * len(start) + [True] * len(answer))


def read_examples(
    sources: Iterable[str | Path],
    tokenizer: Tokenizer,
    rejected: Rejected,
    spelling: str | None = None,
    settings: ReadSettings | None = None,
    learn_chosen: bool = False,
) -> Iterator[tuple[Example, Record]]:
    """Examples of instruction files with their records; what was recognised, and the first of each, is shown.

    Args:
        sources: What `read_samples` takes.
        tokenizer: Of the model that is to learn them.
        rejected: Counts what is set aside: malformed records, and those that the chat template refuses.
        spelling: As of `read_samples`.
        settings: As of `read_samples`.
        learn_chosen: Of preferences learn the chosen answers, of labelled ones the good.

    Raises:
        DataError: As `read_samples`; or they are preferences or labelled answers, and `learn_chosen` is not set.
    """
    shown = set[tuple[str, Form]]()
    bad: Record | None = None  # one may hold several samples
    for sample, form, record in read_samples(sources, rejected, spelling, settings):
        name = record.place.source.name
        if isinstance(sample, Preference | Labelled) and not learn_chosen:
            raise DataError(
                f"{name} holds {form}, from which tuning does not learn",
                "set tune.learn_chosen to learn the better answers",
            )
        if isinstance(sample, Labelled) and not sample.good:
            continue
        answered = sample.chosen if isinstance(sample, Preference) else sample
        answered = answered.answer if isinstance(answered, Labelled) else answered
        _require_parts(tokenizer, answered)
        try:
            example = encode_answered(answered, tokenizer)
        except DataError as error:
            if record is not bad:
                set_aside(rejected, record, error)
            bad = record
            continue
        if (name, form) not in shown:
            shown.add((name, form))
            say(f"{name}: {form}")
            show(example, tokenizer)
        yield example, record


def _require_parts(tokenizer: Tokenizer, answered: Answered) -> None:
    """Refuse a tokenizer that lacks what no record of such a set can do without."""
    if isinstance(answered, Conversation) and tokenizer.chat_template is None:
        raise DataError(
            "the model has no chat template, which conversations need",
            "put a chat_template.jinja into its directory, or give records of prompt and completion",
        )
    if not isinstance(answered, Conversation) and tokenizer.eos_id is None:
        raise DataError("the tokenizer has no end token, so the model could not learn to stop", "set eos_token")


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
            piece = _shortened(tokenizer.decode(example.ids[start:end], skip_special_tokens=False))
            console = stderr()
            marked = piece if console.is_terminal or not example.learned[start] else f"⟦{piece}⟧"
            text.append(marked, style="green" if example.learned[start] else "dim")
            start = end
    stderr().print(text, soft_wrap=True)


def _shortened(text: str) -> str:
    left_out = len(text) - SHOWN_CHARACTERS
    if left_out <= 0:
        return text
    half = SHOWN_CHARACTERS // 2
    return f"{text[:half]} … {left_out:,} characters … {text[-half:]}"
