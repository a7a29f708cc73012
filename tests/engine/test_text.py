"""Text is cut before stop strings wherever they fall into tokens, and no part of one is ever shown."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.engine.text import OutputText
from tallow.tokenizer.tokenizer import StreamDecoder, Tokenizer


def feed(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...]) -> tuple[list[str], str | None]:
    """What is shown after each token and at the end, and which stop string ended it."""
    output, shown = OutputText(StreamDecoder(tokenizer), stop), []
    for id in ids:
        stopped = output.push(id)
        shown.append(output.text)
        if stopped:
            output.finish()
            assert output.text == shown[-1]
            return shown, output.stopped_by
    output.finish()
    return [*shown, output.text], output.stopped_by


class Pieces(StreamDecoder):
    """Token i is the i-th piece of a text."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[str]) -> None:
        super().__init__(tokenizer)
        self.pieces = pieces

    def push(self, id: int) -> str:
        return self.pieces[id]


def cut_by_characters(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition: read on until a stop string is complete; of those that end there the longest counts."""
    for end in range(1, len(text) + 1):
        complete = [string for string in stop if text[:end].endswith(string)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(text=st.text("aab,é\n", max_size=30), stop=st.lists(st.text("aab,é", min_size=1, max_size=4), max_size=3))
def test_text_equals_the_definition(tokenizer: Tokenizer, text: str, stop: list[str]) -> None:
    ids = tokenizer.encode(text)
    shown, stopped = feed(tokenizer, ids, tuple(stop))
    assert (shown[-1], stopped) == cut_by_characters(text, tuple(stop))
    for earlier, later in pairwise(shown):
        assert later.startswith(earlier)
    for piece in shown:
        assert not any(string in piece for string in stop)


@given(
    pieces=st.lists(st.text("aab,", max_size=6), max_size=10),
    stop=st.lists(st.text("aab,", min_size=1, max_size=5), max_size=3),
)
def test_it_does_not_matter_how_text_falls_into_tokens(
    tokenizer: Tokenizer, pieces: list[str], stop: list[str]
) -> None:
    output, stopped = OutputText(Pieces(tokenizer, pieces), stop), False
    for index in range(len(pieces)):
        stopped = stopped or output.push(index)
    output.finish()
    assert (output.text, output.stopped_by) == cut_by_characters("".join(pieces), tuple(stop))
    assert stopped == (output.stopped_by is not None)


def test_the_start_of_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    shown, stopped = feed(tokenizer, tokenizer.encode("a##b###c"), ("###",))
    assert shown == ["a", "a", "a", "a##b", "a##b", "a##b", "a##b"]
    assert stopped == "###"


def test_what_was_held_back_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    shown, stopped = feed(tokenizer, tokenizer.encode("ab##"), ("###",))
    assert shown[-2:] == ["ab", "ab##"]
    assert not stopped


def test_half_a_character_is_not_shown(tokenizer: Tokenizer) -> None:
    shown, _ = feed(tokenizer, tokenizer.encode("é!"), ())
    assert shown == ["", "é", "é!", "é!"]


def test_a_character_cut_by_the_end_becomes_a_replacement(tokenizer: Tokenizer) -> None:
    shown, _ = feed(tokenizer, tokenizer.encode("é")[:1], ())
    assert shown == ["", "\ufffd"]


@pytest.mark.parametrize("stop", [(), ("<|im_end|>",)])
def test_control_tokens_are_no_text(tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
    ids = [*tokenizer.encode("a"), *tokenizer.encode("<|im_end|>", parse_special=True), *tokenizer.encode("b")]
    shown, stopped = feed(tokenizer, ids, stop)
    assert shown[-1] == "ab"
    assert not stopped
