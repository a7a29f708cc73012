"""The manual says what is true of the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_recipe_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "make_recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == module.make_page(), "run python scripts/make_recipe_reference.py"
    assert "|  |" not in page, "a setting without a description"
