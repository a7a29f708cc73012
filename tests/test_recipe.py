"""The recipe language: precedence, unknown keys, and errors that say where."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PositiveFloat, PositiveInt

from tallow.errors import UsageError
from tallow.recipe import Section, apply_overrides, dump_recipe, load_recipe, parse_section


class Inner(Section):
    rate: float = 0.1


class Outer(Section):
    steps: int = 10
    inner: Inner = Inner()


def test_precedence_is_defaults_then_file_then_set(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("outer:\n  steps: 20\n  inner: {rate: 0.2}\n")
    values = apply_overrides(load_recipe(path), ["outer.inner.rate=0.3"])
    assert parse_section(Outer, values["outer"], "outer") == Outer(steps=20, inner=Inner(rate=0.3))


def test_override_values_are_yaml() -> None:
    values = apply_overrides({}, ["a.number=1e-3", "a.list=[1, 2]", "a.flag=true", "a.text=x=y", "a.empty="])
    assert values == {"a": {"number": "1e-3", "list": [1, 2], "flag": True, "text": "x=y", "empty": ""}}


def test_what_was_left_out_as_a_whole_can_be_set_in_part() -> None:
    assert apply_overrides({"a": {"b": None}}, ["a.b.c=1", "a.b.d=2"]) == {"a": {"b": {"c": 1, "d": 2}}}


def test_overrides_leave_the_given_values_alone() -> None:
    values = {"a": {"b": [1]}}
    apply_overrides(values, ["a.c=2"])["a"]["b"].append(2)
    assert values == {"a": {"b": [1]}}


@pytest.mark.parametrize("override", ["steps", "=1", "a..b=1", ".a=1", "a.b.c=1"])
def test_malformed_overrides_are_refused(override: str) -> None:
    with pytest.raises(UsageError):
        apply_overrides({"a": {"b": 1}}, [override])


def test_unknown_and_unfit_settings_are_named() -> None:
    with pytest.raises(UsageError, match=r"unknown setting pretrain\.stepz"):
        parse_section(Outer, {"stepz": 1}, "pretrain")
    with pytest.raises(UsageError, match=r"setting pretrain\.inner\.rate"):
        parse_section(Outer, {"inner": {"rate": "fast"}}, "pretrain")
    with pytest.raises(UsageError, match=r"unknown setting pretrain\.inner\.raet \(perhaps rate; known: .*rate"):
        parse_section(Outer, {"inner": {"raet": 1}}, "pretrain")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- a\n- b\n",
        b"a: [1, 2\n",
        b"\xff\xfe\x00garbage",
        b"1: x\n",
        b"a: !!python/object/apply:os.system [ls]\n",
    ],
)
def test_broken_recipe_files_are_usage_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"r\.yaml"):
        load_recipe(path)


def test_a_section_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for text in ("prepare: {a: 1}\nencode: {}\nprepare: {b: 2}\n", "loop: {steps: 1, steps: 2}\n"):
        (tmp_path / "twice.yaml").write_text(text)
        with pytest.raises(UsageError, match="is there twice"):
            load_recipe(tmp_path / "twice.yaml")


def test_missing_recipe_and_directory_are_usage_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(UsageError):
            load_recipe(path)


def test_incidental_settings_are_no_part_of_a_sections_identity() -> None:
    class Loop(Section):
        incidental = frozenset(("log_every",))
        log_every: int = 10
        rate: float = 0.1

    class Stage(Section):
        loop: Loop = Loop()

    assert Stage(loop=Loop(log_every=1)).result_settings() == Stage().result_settings() == {"loop": {"rate": 0.1}}
    assert Stage(loop=Loop(rate=0.2)).result_settings() != Stage().result_settings()


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.dictionaries(st.text(min_size=1), st.recursive(scalars, st.lists, max_leaves=5), min_size=1)


@given(values)
def test_a_dumped_recipe_reads_back(tmp_path_factory: pytest.TempPathFactory, recipe: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("recipe") / "r.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


class Varied(Section):
    amount: PositiveFloat | Literal["auto"] | None = None
    size: str | PositiveInt | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"amount": float("inf")}, "setting s.amount: input should be a finite number, or input should be 'auto'"),
        ({"size": -5}, "setting s.size: input should be a valid string, or input should be greater than 0"),
    ],
)
def test_what_is_allowed_is_said_of_a_setting_of_several_kinds(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_section(Varied, values, "s")
    assert caught.value.message == message
