"""The manual says what is true of the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import Field, PositiveInt

from tallow.recipe import Section
from tallow.train.config import Beta

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "make_recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recipe_reference_is_up_to_date(reference: ModuleType) -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == reference.make_page(), "run python scripts/make_recipe_reference.py"
    assert "|  |" not in page, "a setting without a description"


class Inner(Section):
    """Settings inside of settings.

    Args:
        depth: How far,
            and no farther; None: as far as it goes, `a|b`.
    """

    depth: PositiveInt | None = 3


class Outer(Section):
    inner: Inner = Inner(depth=5)


@pytest.mark.parametrize(
    ("annotation", "field", "words"),
    [
        (int, Field(gt=0), "int ≥ 1"),
        (int, Field(ge=1, le=10_000), "int from 1 to 10,000"),
        (int, Field(gt=0, lt=2**31), "int ≥ 1"),
        (float, Field(gt=0, le=1), "float in (0, 1]"),
        (float, Field(lt=2.5), "float < 2.5"),
        (PositiveInt | None, Field(), "int ≥ 1 or `null`"),
        (int | None, Field(ge=0), "int ≥ 0 or `null`"),
        (Literal["auto", "fp32"], Field(), "`auto` or `fp32`"),
        (Literal[4, 8] | None, Field(), "`4`, `8` or `null`"),
        (tuple[Beta, Beta], Field(), "list of 2 × float in [0, 1)"),
        (tuple[Path | str, ...], Field(min_length=1), "list of path or text, not empty"),
        (tuple[bool, ...] | None, Field(), "list of bool, or `null`"),
        (dict[str, Path], Field(), "mapping of text to path"),
    ],
)
def test_types_are_told_as_one_writes_them(reference: ModuleType, annotation: Any, field: Any, words: str) -> None:
    assert reference.describe_type(annotation, field.metadata) == words


def test_defaults_are_those_of_the_stage_and_nothing_breaks_a_table(reference: ModuleType) -> None:
    [(prefix, group, default)] = reference.inner_groups(Outer, None, "stage.")
    assert reference.table(group, default, prefix).splitlines()[2] == (
        "| `stage.inner.depth` | int ≥ 1 or `null` | `5` "
        "| How far, and no farther; `null`: as far as it goes, <code>a&#124;b</code>. |"
    )
