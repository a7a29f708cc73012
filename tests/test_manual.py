"""The manual says what is true of the code."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import typer
from pydantic import Field, PositiveInt
from tests.engine.conftest import make_model, make_tokenizer, tiny
from tests.engine.lora import random_adapter
from typer.core import TyperGroup

from tallow.cli import app
from tallow.data.instructions.samples import Completion, Conversation
from tallow.data.instructions.spellings import read_sample, recognise
from tallow.engine.language_model import load
from tallow.engine.request import SamplingParams
from tallow.engine.structure import Structure
from tallow.models.formats import save_model
from tallow.models.formats.adapters import write_adapter
from tallow.recipe import Section
from tallow.train.config import Beta
from tallow.tune.examples import encode_answered

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "docs/install.md", "docs/models.md", "docs/use.md", "docs/plan.md", "docs/serving.md"]
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def code(language: str) -> list[str]:
    """The blocks of code in this language."""
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    return [text for page in pages for written, text in CODE.findall(page) if written == language]


COMMANDS = [line for text in code("") for line in text.splitlines() if re.match(r"(\.venv/bin/)?tallow ", line)]
SCRIPTS = [
    text for text in code("python") if "run_recipe" not in text
]  # recipes take minutes, and have tests of their own


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


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one(line: str) -> None:
    _, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        command = command.commands[arguments.pop(0)]
    command.make_context(line, arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the runs of which the manual speaks, as far as their models go."""
    directory = tmp_path_factory.mktemp("manual")
    model, tokenizer = make_model(tiny()), make_tokenizer()
    for run in ("quickstart", "mine/pretrain"):
        save_model(model, tokenizer, directory / "runs" / run)
    adapter = directory / "runs" / "mine" / "tune" / "adapter"
    write_adapter(random_adapter(model.config, 0), model.config, adapter, "runs/mine/pretrain")
    return directory


@pytest.mark.parametrize(
    "structure",
    [Structure(json_schema=text) for text in code("json")] + [Structure(grammar=text) for text in code("lark")],
    ids=["person.json", "sums.lark"],
)
def test_every_form_can_be_taken(runs: Path, structure: Structure) -> None:
    params = SamplingParams(max_new_tokens=10, structure=structure)
    assert load(runs / "runs" / "quickstart").generate("12 + 30 = ", params).ids


def test_every_record_can_be_learned() -> None:
    tokenizer = make_tokenizer()
    records = [json.loads(line) for text in code("jsonl") for line in text.splitlines()]
    samples = [read_sample(record, recognise(record)) for record in records]
    assert samples
    for sample in samples:
        assert isinstance(sample, Conversation | Completion)
        assert any(encode_answered(sample, tokenizer).learned)


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_every_script_runs(runs: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.chdir(runs)
    exec(script, {})
