"""Talking with a model in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console

from tallow.console import say
from tallow.engine.generation import Generation, Stream
from tallow.engine.language_model import LanguageModel
from tallow.engine.request import SamplingParams
from tallow.errors import DataError, TallowError, UsageError
from tallow.files import write_json

HELP = """\
/help          this list
/reset         forget the conversation
/system TEXT   set the system message; without a text: remove it
/save FILE     write the conversation to a JSON file
/quit          end (also Ctrl-D, or Ctrl-C twice); Ctrl-C stops an answer"""
WORD_ENDS = re.compile(r"(?<=\s)|(?<=[\u3000-\u9fff])")  # Chinese and Japanese lines may break behind any character
CONTROL_CHARACTERS = dict.fromkeys([code for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"])


class Conversation:
    """The messages so far, kept short enough for the model.

    Args:
        model: Who answers.
        params: How its tokens are chosen.
        system: The system message, if any.
        adapter: The loaded adapter with which it answers, if any.
    """

    def __init__(
        self, model: LanguageModel, params: SamplingParams, system: str | None = None, adapter: str | None = None
    ) -> None:
        self.model = model
        self.params = params
        self.system = system
        self.adapter = adapter
        self.turns: list[tuple[str, str]] = []

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """The conversation, and a question at its end."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self.turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        return messages if question is None else [*messages, {"role": "user", "content": question}]

    def ask(self, question: str) -> Stream:
        """Begin an answer; the oldest turns are dropped if there would be too little room for it."""
        room = min(self.params.max_new_tokens, self.model.context_length // 4)
        dropped = 0
        while self.turns and len(self.model.encode_chat(self.messages(question))) + room > self.model.context_length:
            del self.turns[0]
            dropped += 1
        if dropped:
            what = "the oldest turn was" if dropped == 1 else f"the {dropped} oldest turns were"
            say(f"{what} dropped: the conversation no longer fits into {self.model.context_length} tokens")
        return self.model.stream_chat(self.messages(question), self.params, adapter=self.adapter)

    def command(self, line: str) -> bool:
        """Obey a line if it is a command, other than /quit.

        Raises:
            UsageError: It begins as a command, but there is none of that name, or it cannot be done.
        """
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match name:
            case "/help":
                say(HELP)
            case "/reset":
                self.turns.clear()
                say("forgotten")
            case "/system":
                self.system = rest or None
                say("system message set" if rest else "system message removed")
            case "/save":
                self._save(rest)
            case _ if line.startswith("/"):
                raise UsageError(
                    f"there is no command {name}", "/help lists them; a space before it makes it a question"
                )
            case _:
                return False
        return True

    def _save(self, file: str) -> None:
        if not file:
            raise UsageError("/save needs a file name", "/save chat.json")
        path = Path(file).expanduser()
        if not path.parent.is_dir():
            raise UsageError(f"there is no directory {path.parent}", "make it first, or choose another place")
        write_json(path, {"messages": self.messages()})
        say(f"saved to {file}")


def chat(model: LanguageModel, params: SamplingParams, system: str | None = None, adapter: str | None = None) -> None:
    """Converse until the user has had enough: on a terminal with streaming and commands, else line by line.

    Where standard input or output is not a terminal, each line of input is a question and each line of output
    its answer, and nothing else is written there.

    Raises:
        UsageError: The model has no chat template, or a line of piped input is a command that cannot be obeyed.
        DataError: A line of piped input is not UTF-8.
    """
    if model.tokenizer.chat_template is None:
        raise UsageError(
            f"{model.path} has no chat template, so it cannot chat", "tune it on conversations, or use tallow generate"
        )
    conversation = Conversation(model, params, system, adapter)
    if sys.stdin.isatty() and sys.stdout.isatty():
        _talk(conversation, Console(highlight=False))
    else:
        _answer_lines(conversation, sys.stdin.buffer)


def _talk(conversation: Conversation, console: Console) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  (gives input() a history and line editing, where the platform has it)
    _print(console, f"{conversation.model.path}: /help lists the commands", "dim")
    interrupted = False  # and nothing entered since
    while True:
        try:
            line = input("\n› ")
            interrupted = False
            if line.strip() == "/quit":
                return
            if line.strip() and not conversation.command(line):
                _show_answer(conversation, line, console)
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            if interrupted:
                console.print()
                return
            interrupted = True
            say("\nCtrl-C again or Ctrl-D quits")
        except TallowError as error:
            _print(console, error.message, "red")
            _print(console, error.hint, "dim")


def _show_answer(conversation: Conversation, question: str, console: Console) -> None:
    """Stream an answer; what has come of one that the user stops stays in the conversation."""
    stream = conversation.ask(question)
    words = _Words(console.width)
    try:
        for piece in stream:
            _print(console, words.push(piece.translate(CONTROL_CHARACTERS)), end="")
    except KeyboardInterrupt:
        stream.close()
        raise
    finally:
        _print(console, words.flush(), end="")
        answer = stream.result()
        conversation.turns.append((question, answer.text))
        _print(console, f"\n{_summary(answer)}", "dim")


class _Words:
    """Breaks lines of streamed text between words: the last word is held back until it is whole.

    Args:
        width: Columns of the terminal.
    """

    def __init__(self, width: int) -> None:
        self._width, self._column, self._word = width, 0, ""

    def push(self, piece: str) -> str:
        """What can be shown now."""
        *words, self._word = WORD_ENDS.split(self._word + piece)
        shown = "".join(map(self._place, words))
        return shown + self.flush() if cell_len(self._word) > self._width else shown

    def flush(self) -> str:
        """The rest."""
        word, self._word = self._word, ""
        return self._place(word)

    def _place(self, word: str) -> str:
        """A word and the space behind it, on the next line if this one has no room for it."""
        text = word.rstrip()
        space = word[len(text) :]
        wraps = bool(text) and self._column + cell_len(text) > self._width and self._column > 0
        self._column = (0 if wraps else self._column) + cell_len(text)
        if self._column > self._width:  # a word longer than a line, which the terminal breaks
            self._column %= self._width
        if space == "\n":
            self._column = 0
        elif self._column + len(space.expandtabs()) > self._width:
            space, self._column = "", self._width
        else:
            self._column += len(space.expandtabs())
        return ("\n" if wraps else "") + text + space


def _print(console: Console, text: str, style: str = "", end: str = "\n") -> None:
    """Print as it stands: no markup, no wrapping."""
    console.print(text, style=style, end=end, markup=False, emoji=False, soft_wrap=True)


def _summary(answer: Generation) -> str:
    ends = {"stop": "", "length": ", cut at the limit", "abort": ", stopped"}
    # the first token belongs to the prefill
    speed = f", {(len(answer.ids) - 1) / answer.decode_s:.0f} tokens/s" if len(answer.ids) > 1 else ""
    return f"{len(answer.ids)} tokens{speed}{ends[answer.finish_reason]}"


def _answer_lines(conversation: Conversation, lines: Iterable[bytes]) -> None:
    for number, raw in enumerate(lines, start=1):
        try:
            line = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"line {number} of standard input is not UTF-8 text", "convert it to UTF-8") from error
        if line.strip() == "/quit":
            return
        if not line.strip() or conversation.command(line):
            continue
        answer = conversation.ask(line).result()
        conversation.turns.append((line, answer.text))
        print(" ".join(answer.text.splitlines()), flush=True)
