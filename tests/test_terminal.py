"""Talking in the terminal: streaming, commands, interruption, pipes, and a conversation that outgrows the context."""

from __future__ import annotations

import builtins
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from tallow import terminal
from tallow.engine.generation import Generation, Stream
from tallow.engine.language_model import LanguageModel
from tallow.engine.request import SamplingParams
from tallow.errors import DataError, UsageError

PARAMS = SamplingParams(max_new_tokens=10)
CTRL_C = "<Ctrl-C>"


class Answer(Stream):
    """Pieces from a script; `CTRL_C` among them is the user's."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self.pieces, self.text, self.closed = list(pieces), "", False

    def __next__(self) -> str:
        if self.closed or not self.pieces:
            raise StopIteration
        piece = self.pieces.pop(0)
        if piece == CTRL_C:
            raise KeyboardInterrupt
        self.text += piece
        return piece

    def close(self) -> None:
        self.closed = True

    def result(self) -> Generation:
        for _ in self:
            pass
        reason = "abort" if self.closed else "stop"
        return Generation([1], [2] * 11, self.text, reason, [0.0] * 11, prefill_s=0.1, decode_s=0.5)


class Scripted(LanguageModel):
    """A model that gives prepared answers; each character of a message is a token."""

    def __init__(self, *answers: Sequence[str], template: str | None = "a template") -> None:
        self.path = Path("scripted")
        self.answers = list(answers)
        self.asked: list[list[Any]] = []
        self.tokenizer: Any = type("ScriptedTokenizer", (), {"chat_template": template})()

    @property
    def context_length(self) -> int:
        return 40

    def encode_chat(self, messages: Sequence[Any]) -> list[int]:
        return [ord(character) for message in messages for character in message["content"]]

    def stream_chat(
        self, messages: Sequence[Any], params: SamplingParams = PARAMS, *, adapter: str | None = None
    ) -> Stream:
        assert params is PARAMS
        assert adapter is None
        self.asked.append(list(messages))
        return Answer(self.answers.pop(0))


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    """Talk on a terminal; returns what was shown on standard output and standard error."""

    def run(model: LanguageModel, *lines: str, system: str | None = None) -> tuple[str, str]:
        typed: Iterator[str] = iter(lines)

        def read(_prompt: str) -> str:
            line = next(typed, None)
            if line is None:
                raise EOFError
            if line == CTRL_C:
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr(builtins, "input", read)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        terminal.chat(model, PARAMS, system)
        assert next(typed, None) is None, "the conversation ended early"
        out, err = capsys.readouterr()
        return out, err

    return run


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    def run(model: LanguageModel, text: bytes) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
        terminal.chat(model, PARAMS)
        out, err = capsys.readouterr()
        return out, err

    return run


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_turns_build_a_conversation(talk: Callable[..., tuple[str, str]]) -> None:
    model = Scripted(["He", "llo"], ["Fine."])
    out, _ = talk(model, "hi", "", "how?", system="be")
    assert "Hello" in out
    assert "11 tokens, 20 tokens/s" in out
    assert model.asked[1] == [
        message("system", "be"),
        message("user", "hi"),
        message("assistant", "Hello"),
        message("user", "how?"),
    ]


def test_commands(talk: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    model = Scripted(["A"], ["B"], ["C"])
    file = tmp_path / "chat.json"
    out, err = talk(
        model, "/help", "a", "/system be", "b", f"/save {file}", "/reset", "/system", "c", "/save", "/what", "/quit"
    )
    assert "/reset" in err
    assert model.asked[1][0] == message("system", "be")
    assert model.asked[2] == [message("user", "c")]
    assert json.loads(file.read_text())["messages"] == [
        message("system", "be"),
        message("user", "a"),
        message("assistant", "A"),
        message("user", "b"),
        message("assistant", "B"),
    ]
    assert "needs a file name" in out
    assert "no command /what" in out
    out, _ = talk(Scripted(), f"/save {tmp_path / 'nowhere' / 'chat.json'}")
    assert "there is no directory" in out
    assert not (tmp_path / "nowhere").exists()


def test_ctrl_c_stops_the_answer_and_twice_the_program(talk: Callable[..., tuple[str, str]]) -> None:
    model = Scripted(["par", CTRL_C, "tial"], ["whole"])
    out, _ = talk(model, "a", "b")
    assert "par" in out
    assert "tial" not in out
    assert model.asked[1][1] == message("assistant", "par")
    talk(Scripted(["par", CTRL_C]), "a", CTRL_C)
    _, err = talk(Scripted(["x"]), CTRL_C, "a", CTRL_C, CTRL_C)
    assert "Ctrl-C again" in err


def test_the_oldest_turns_are_dropped_when_the_context_is_full(talk: Callable[..., tuple[str, str]]) -> None:
    """40 tokens, of which 10 stay free for the answer."""
    model = Scripted(["b" * 9], ["d" * 9], ["f"])
    _, err = talk(model, "a" * 3, "c" * 3, "e" * 12, system="s")
    assert "the oldest turn was dropped" in err
    assert model.asked[2] == [
        message("system", "s"),
        message("user", "ccc"),
        message("assistant", "d" * 9),
        message("user", "e" * 12),
    ]


def test_an_error_ends_the_turn_not_the_conversation(
    talk: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Scripted(["fine"])
    good = model.stream_chat

    def refuse_long(messages: Sequence[Any], params: SamplingParams = PARAMS, *, adapter: str | None = None) -> Stream:
        if len(messages[-1]["content"]) > 20:
            raise UsageError("too long [a]", "shorten")
        return good(messages, params, adapter=adapter)

    monkeypatch.setattr(model, "stream_chat", refuse_long)
    out, _ = talk(model, "x" * 30, "y")
    assert "too long [a]" in out
    assert model.asked == [[message("user", "y")]]


def test_control_characters_do_not_reach_the_terminal(talk: Callable[..., tuple[str, str]]) -> None:
    out, _ = talk(Scripted(["a\x1b[2Jb\x07", "[red]c\n\td"]), "x")
    assert "a[2Jb[red]c\n" in out


def test_pipes_get_one_line_an_answer_and_nothing_else(pipe: Callable[..., tuple[str, str]]) -> None:
    model = Scripted(["one\ntwo"], ["three"])
    out, err = pipe(model, "première\n\n/reset\nsecond".encode())
    assert out == "one two\nthree\n"
    assert err == "forgotten\n"
    assert model.asked == [[message("user", "première")], [message("user", "second")]]


def test_a_piped_line_that_is_no_command_is_refused_unless_it_begins_with_a_space(
    pipe: Callable[..., tuple[str, str]],
) -> None:
    model = Scripted(["one"])
    with pytest.raises(UsageError, match="no command /bogus"):
        pipe(model, b"/bogus x\n")
    pipe(model, b" /bogus x\n")
    assert model.asked == [[message("user", " /bogus x")]]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        (["my ho", "me is", " my castle"], "my home is\nmy castle"),
        (["ten letter", "s"], "ten \nletters"),
        (["a  b\n\n", "  c\td e"], "a  b\n\n  c\nd e"),
        (["abcdefghij", " klm"], "abcdefghij\nklm"),
        (["abcdefghijklmn op"], "abcdefghijklmn op"),
        (["我们说话", "的时候"], "我们说话的\n时候"),
        (["x"], "x"),
        ([], ""),
    ],
)
def test_lines_break_between_words(pieces: list[str], shown: str) -> None:
    words = terminal._Words(width=10)
    assert "".join([*map(words.push, pieces), words.flush()]) == shown


@given(st.text("ab \n\t我", max_size=60), st.integers(2, 12))
def test_wrapped_lines_fit_and_lose_nothing_but_spaces(text: str, width: int) -> None:
    words = terminal._Words(width)
    shown = "".join([*map(words.push, text), words.flush()])
    assert "".join(shown.split()) == "".join(text.split())
    for line in shown.split("\n"):
        longest = max(map(cell_len, re.findall(r"[ab]*我?", line)))
        assert cell_len(line.expandtabs()) <= width or longest > width


def test_what_is_streamed_is_not_held_back_for_long() -> None:
    words = terminal._Words(width=10)
    assert words.push("one tw") == "one "
    assert words.push("我") == "tw我"
    assert words.push("x" * 11) == "\n" + "x" * 11


def test_a_piped_line_that_is_not_text(pipe: Callable[..., tuple[str, str]]) -> None:
    with pytest.raises(DataError, match="line 2"):
        pipe(Scripted(["one"]), b"a\n\xff\n")


def test_a_model_without_a_chat_template() -> None:
    with pytest.raises(UsageError, match="no chat template"):
        terminal.chat(Scripted(template=None), PARAMS)
