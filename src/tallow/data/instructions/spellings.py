"""The spellings of instruction sets: by which fields each is recognised, and what its records say.

A record asks something in one of the ways of `SPELLINGS`, and holds one answer, two of which one is better
(`chosen`, `rejected`), or one with a verdict (`label`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tallow.data.instructions.samples import Answered, Completion, Labelled, Message, Preference, Sample
from tallow.data.instructions.transcripts import is_transcript, read_transcript
from tallow.data.instructions.turns import conversation, read_messages, read_tools
from tallow.errors import DataError

Fields = Mapping[str, Any]
Kind = Literal["conversations", "preferences", "labelled answers"]
VERDICTS: dict[Any, bool] = {True: True, False: False, "true": True, "false": False, "True": True, "False": False}
LABELS = ("label", "kto_tag")


@dataclass(frozen=True)
class Spelling:
    """One way to write down what is asked.

    Args:
        what: What the user is told.
        asked: Fields that it has, each in one of several spellings.
        answers: Spellings of the field with the answer; empty: it is among what is asked.
        read: Gives what is asked: messages, or a plain text to be continued, or several of them with their answers.
    """

    what: str
    asked: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...]
    read: Callable[[Fields], list[Message] | str]


def _messages(fields: Fields) -> list[Message]:
    return [*_system(fields), *read_messages(fields["messages"])]


def _sharegpt(fields: Fields) -> list[Message]:
    name = "conversations" if fields.get("conversations") is not None else "conversation"
    return [*_system(fields), *read_messages(fields[name], name)]


def _alpaca(fields: Fields) -> list[Message]:
    extra = _text(fields, "input", "context", optional=True)
    instruction = _text(fields, "instruction")
    return _question(fields, f"{instruction}\n\n{extra}" if extra.strip() else instruction)


def _questions(fields: Fields) -> list[Message]:
    return _question(fields, _text(fields, "question", "query"))


def _prompt(fields: Fields) -> list[Message] | str:
    prompt = fields["prompt"]
    if is_transcript(prompt):
        return list[Message](read_transcript(prompt))
    return prompt if isinstance(prompt, str) else list[Message](read_messages(prompt, "prompt"))


def _transcript(fields: Fields) -> list[Message]:
    return list[Message](read_transcript(_text(fields, "text")))


SPELLINGS: dict[str, Spelling] = {
    "messages": Spelling("OpenAI's messages", (("messages",),), (), _messages),
    "sharegpt": Spelling("ShareGPT's turns", (("conversations", "conversation"),), (), _sharegpt),
    "alpaca": Spelling("Alpaca's instructions", (("instruction",),), ("output", "response"), _alpaca),
    "question": Spelling("questions", (("question", "query"),), ("answer", "response"), _questions),
    "prompt": Spelling("prompts, continued as they stand", (("prompt",),), ("completion", "response"), _prompt),
    "transcript": Spelling("transcripts", (("text",),), (), _transcript),
    "pairs": Spelling("pairs of whole conversations", (), (), lambda _: []),  # preferences alone can be spelled so
}
FORMS = 'use {"messages": [{"role": …, "content": …}]} or {"prompt": …, "completion": …}'


class Ambiguous(DataError):
    """A record could be read in several ways."""


@dataclass(frozen=True)
class Form:
    """What kind of records there are, and in which spelling."""

    kind: Kind
    spelling: str

    def __str__(self) -> str:
        return f"{self.kind}, spelled as {SPELLINGS[self.spelling].what} ({self.spelling})"


def recognise(fields: Fields, spelling: str | None = None) -> Form:
    """What a record is, by its fields; what is None counts as absent.

    Args:
        fields: The record.
        spelling: Which of `SPELLINGS` to take, where it could be several.

    Raises:
        Ambiguous: It could be several things.
        DataError: It is nothing known.
    """
    filled = [name for name, value in fields.items() if value is not None]
    if _has(fields, "chosen") and _has(fields, "rejected"):
        kind: Kind = "preferences"
    elif any(_verdict(fields.get(name)) is not None for name in LABELS):
        kind = "labelled answers"
    else:
        kind = "conversations"
    found = [
        name
        for name, way in SPELLINGS.items()
        if spelling in (None, name)
        and way.asked
        and all(any(_has(fields, field) for field in fields_of) for fields_of in way.asked)
        and (kind == "preferences" or not way.answers or any(_has(fields, field) for field in way.answers))
        and (name != "transcript" or is_transcript(fields.get("text")))
    ]
    if kind == "preferences" and len(found) > 1:  # many sets repeat the chosen answer as a conversation
        found = [name for name in found if name == "prompt"] or found
    if len(found) > 1:
        raise Ambiguous(
            f"could be {' or '.join(f'{SPELLINGS[name].what} ({name})' for name in found)}",
            f"say which by spelling: {' or '.join(found)}, or leave out the other fields",
        )
    if found:
        return Form(kind, found[0])
    if kind == "preferences" and spelling in (None, "pairs"):
        return Form(kind, "pairs")
    raise DataError(
        f"has neither messages nor prompt and completion, nor another known spelling (it has "
        f"{', '.join(sorted(filled)) or 'nothing'})",
        f"{FORMS}; other spellings are {', '.join(SPELLINGS)}",
    )


def instances(fields: Fields) -> list[Fields]:
    """A record by itself, or as many as it holds: an instruction of Self-Instruct with several inputs and outputs.

    Raises:
        DataError: Its instances are malformed.
    """
    several = fields.get("instances")
    if several is None or not _has(fields, "instruction"):
        return [fields]
    if not isinstance(several, list) or not several or not all(isinstance(instance, dict) for instance in several):
        raise DataError("instances is no list of objects, or an empty one", "")
    return [{"instruction": fields["instruction"], **instance} for instance in several]


def read_sample(fields: Fields, form: Form) -> Sample:
    """What a record of this form says.

    Raises:
        DataError: It is malformed.
    """
    way = SPELLINGS[form.spelling]
    asked = way.read(fields)
    tools = read_tools(fields.get("tools") if fields.get("tools") is not None else fields.get("functions"))
    if form.kind == "preferences":
        return _preference(asked, fields, tools)
    if form.kind == "conversations":
        return _answered(asked, _answer(fields, way), tools)
    verdict = next(verdict for name in LABELS if (verdict := _verdict(fields.get(name))) is not None)
    answer = _answer(fields, way)
    if answer is None and isinstance(asked, list):  # what comes after the last question is what was judged
        last = max((index for index, message in enumerate(asked) if message["role"] == "user"), default=-1)
        return Labelled(conversation(asked, tools, last + 1), verdict)
    return Labelled(_answered(asked, answer, tools), verdict)


def _answer(fields: Fields, way: Spelling) -> Any:
    given = [name for name in way.answers if _has(fields, name)]
    if len(given) > 1 and fields[given[0]] != fields[given[1]]:
        raise DataError(f"has two answers, {' and '.join(given)}", "leave one of them out")
    return fields[given[0]] if given else None


def _answered(asked: list[Message] | str, answer: Any, tools: Sequence[Mapping[str, Any]]) -> Answered:
    """What was asked with an answer; of a conversation that was held already, None."""
    if isinstance(asked, str):
        if not isinstance(answer, str):
            raise DataError("the prompt is a text, but its completion is no string", "")
        return Completion(asked, answer)
    if answer is None:
        return conversation(asked, tools)
    return conversation([*asked, *_turns(answer, "the answer")], tools, len(asked))


def _preference(asked: list[Message] | str, fields: Fields, tools: Sequence[Mapping[str, Any]]) -> Preference:
    chosen, rejected = fields["chosen"], fields["rejected"]
    if chosen == rejected:
        raise DataError("prefers an answer to itself", "leave it out")
    if isinstance(asked, str):
        if isinstance(chosen, str) and isinstance(rejected, str):
            return Preference(Completion(asked, chosen), Completion(asked, rejected))
        asked = [{"role": "user", "content": asked}]
    ways = []
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(answer, str) and not asked and not is_transcript(answer):
            raise DataError(f"{name} is a text without what it answers", "add a field prompt")
        turns = _turns(answer, name)
        ways.append(turns if turns[: len(asked)] == asked else [*asked, *turns])
    shared = 0
    while shared < min(map(len, ways)) and ways[0][shared] == ways[1][shared]:
        shared += 1
    return Preference(*(conversation(messages, tools, shared) for messages in ways))


def _turns(answer: Any, what: str) -> list[Message]:
    """An answer as messages: a text is an assistant's."""
    if isinstance(answer, str):
        transcript = is_transcript(answer)
        return list[Message](read_transcript(answer)) if transcript else [{"role": "assistant", "content": answer}]
    return list[Message](read_messages(answer, what))


def _question(fields: Fields, text: str) -> list[Message]:
    """A question to an assistant, with what was said before: pairs of a question and an answer."""
    history = fields.get("history") or []
    if not isinstance(history, list) or not all(_is_pair(pair) for pair in history):
        raise DataError("history is no list of pairs of texts", "")
    before = [
        {"role": role, "content": said}
        for pair in history
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*_system(fields), *before, {"role": "user", "content": text}]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


def _system(fields: Fields) -> list[Message]:
    text = _text(fields, "system", "system_prompt", optional=True)
    return [{"role": "system", "content": text}] if text.strip() else []


def _text(fields: Fields, *names: str, optional: bool = False) -> str:
    name = next((name for name in names if fields.get(name) is not None), names[0])
    value = fields.get(name, "" if optional else None)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{name} is no string", "")
    return value


def _has(fields: Fields, name: str) -> bool:
    return fields.get(name) is not None


def _verdict(value: Any) -> bool | None:
    return VERDICTS.get(value) if isinstance(value, bool | int | str) else None
