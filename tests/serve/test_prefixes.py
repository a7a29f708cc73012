"""Where requests go, by the beginnings of their prompts."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.serve import prefixes
from tallow.serve.prefixes import MOST_BEHIND, MOST_PARTS, PART_BYTES, Prefixes, beginnings

LONG = "All of this is said before every question, so that it is worth to be kept. " * 8
BOTH = ("left", "right")


def names(user: str | None = None, **asked: Any) -> list[bytes]:
    return beginnings(user, json.dumps({"model": "m", **asked}).encode())


def in_common(first: list[bytes], second: list[bytes]) -> int:
    assert (first[0] == second[0]) or not set(first) & set(second)
    return len(set(first) & set(second))


def test_a_conversation_begins_as_the_one_before() -> None:
    turns = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": LONG},
        {"role": "user", "content": "?"},
    ]
    first, second = names(messages=turns[:1]), names(messages=turns)
    assert in_common(first, second) >= len(first) - 1
    assert len(second) > len(first)


@pytest.mark.parametrize(
    "other",
    [
        {"user": "b"},
        {"model": "n"},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"system": "Be brief."},
        {"cache_salt": "s"},
        {"prompt": "x" + LONG},
    ],
)
def test_what_shares_no_cache_shares_no_beginning(other: dict[str, Any]) -> None:
    assert in_common(names(**{"user": "a", "prompt": LONG} | other), names("a", prompt=LONG)) == 0


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode()))
def test_what_is_no_request_has_none(body: bytes) -> None:
    assert beginnings(None, body) == []


def test_long_prompts_are_followed_so_far_only() -> None:
    assert len(names(prompt="x" * (2 * MOST_PARTS * PART_BYTES))) <= MOST_PARTS + 1


def test_the_longest_beginning_wins() -> None:
    known = Prefixes()
    known.send(names(prompt=LONG), "left")
    known.send(names(prompt=LONG[:300] + "Something else. " * 9), "right")
    assert known.rank(names(prompt=LONG + "And now?"), BOTH) == ["left", "right"]
    assert known.rank(names(prompt=LONG[:300] + "Something else. " * 9 + "And?"), BOTH) == ["right", "left"]


def test_new_prompts_go_where_least_is_done() -> None:
    known, counts = Prefixes(), Counter[str]()
    for index in range(10):
        asked = names(prompt=f"{index}{LONG}")
        counts[known.rank(asked, BOTH)[0]] += 1
        known.send(asked, known.rank(asked, BOTH)[0])
        if index % 3 == 0:
            known.finish("left")
            known.send([], "left")
    assert abs(counts["left"] - counts["right"]) <= 2


def test_one_that_is_much_busier_is_spared() -> None:
    known, asked = Prefixes(), names(prompt=LONG)
    for _ in range(MOST_BEHIND):
        assert known.rank(asked, BOTH)[0] == "left"
        known.send(asked, "left")
    assert known.rank(asked, BOTH)[0] == "right"
    known.finish("left")
    assert known.rank(asked, BOTH)[0] == "left"


def test_what_a_dead_one_had_is_forgotten() -> None:
    known, asked = Prefixes(), names(prompt=LONG)
    known.send(asked, "left")
    known.send([], "right")
    known.finish("right")
    known.keep(["right"])
    known.send(asked[:1], "right")
    known.finish("right")
    assert known.rank(asked, BOTH)[0] == "right"


def test_a_new_one_gets_its_turn_only() -> None:
    known = Prefixes()
    for _ in range(20):
        known.send([], "left")
        known.finish("left")
    chosen = []
    for index in range(4):
        asked = names(prompt=f"{index}{LONG}")
        chosen.append(known.rank(asked, BOTH)[0])
        known.send(asked, chosen[-1])
        known.finish(chosen[-1])
    assert chosen == ["right", "left"] * 2


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MOST_KNOWN", 20)
    known = Prefixes()
    for index in range(10):
        known.send(names(prompt=f"{index}{LONG}"), "left")
    assert len(known._owners) == 20
    newest, oldest = names(prompt=f"9{LONG}"), names(prompt=f"0{LONG}")
    assert known._lengths(newest)["left"] > 5
    assert known._lengths(oldest)["left"] == 0
