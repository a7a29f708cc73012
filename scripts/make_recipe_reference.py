"""Write docs/recipe.md: every setting of every stage, from the settings' own types, defaults and descriptions.

Usage: python scripts/make_recipe_reference.py [--check]
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tallow.recipe import Section
from tallow.stages import STAGES, RunSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"
HEAD = """\
# Recipes

A recipe is a YAML file with one section for each stage. `tallow run RECIPE.yaml` does the stages in the order
below; a stage's inputs come from the stages before it unless the recipe names others. Precedence: defaults < file
< `--set section.key=value` (the value is read as YAML). An unknown key is an error. The resolved settings of each
stage are kept in its directory as `recipe.yaml`.

*This page is made by `scripts/make_recipe_reference.py`.*
"""


def main() -> None:
    text = make_page()
    if "--check" in sys.argv:
        if PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/recipe.md is not up to date: run python scripts/make_recipe_reference.py")
    else:
        PAGE.write_text(text, encoding="utf-8")


def make_page() -> str:
    """The whole page as Markdown."""
    shown: set[type[Section]] = set()
    parts = [HEAD, "## The run as a whole\n", table(RunSettings, "")]
    for name, stage in STAGES.items():
        config, function = stage.load()
        summary = (inspect.getdoc(function) or "").split("\n\n")[0]
        parts += [f"## {name}\n", f"{summary}\n", table(config, f"{name}.")]
        for prefix, section in nested(config, f"{name}."):
            if section in shown:
                parts.append(f"`{prefix}*`: as above, see {section.__name__}.\n")
            else:
                shown.add(section)
                parts += [f"### {prefix}* ({section.__name__})\n", table(section, prefix)]
    return "\n".join(parts)


def table(section: type[Section], prefix: str) -> str:
    """The settings of one section, without those of the sections in it."""
    descriptions = describe(section)
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        if not section_types(field.annotation):
            cells = (
                f"`{prefix}{name}`",
                f"`{type_name(field.annotation)}`",
                default(field),
                descriptions.get(name, ""),
            )
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def nested(section: type[Section], prefix: str) -> list[tuple[str, type[Section]]]:
    """Sections within a section, with the prefix of their settings, outer ones first."""
    found = []
    for name, field in section.model_fields.items():
        for inner in section_types(field.annotation):
            found += [(f"{prefix}{name}.", inner), *nested(inner, f"{prefix}{name}.")]
    return found


def section_types(annotation: object) -> list[type[Section]]:
    """The sections that a type names, alone or as an alternative."""
    candidates = typing.get_args(annotation) or (annotation,)
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, Section)]


def describe(section: type[Section]) -> dict[str, str]:
    """The descriptions in the Args (or Attributes) of a section's docstring and of those it inherits from."""
    result: dict[str, str] = {}
    for kind in reversed([kind for kind in section.__mro__ if issubclass(kind, Section)]):
        _, _, listed = (inspect.getdoc(kind) or "").partition("Args:\n")
        listed = listed or (inspect.getdoc(kind) or "").partition("Attributes:\n")[2]
        for entry in re.split(r"\n(?=    \w)", listed.split("\n\n")[0].rstrip()):
            names, colon, text = entry.strip().partition(":")
            if colon:
                result |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
    return result


def type_name(annotation: object) -> str:
    """A type as one writes it."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    text = str(annotation).replace("typing.", "").replace("pathlib.", "").replace("NoneType", "None")
    return re.sub(r"Annotated\[(\w+), [^\]]*\]", r"\1", text)


def default(field: FieldInfo) -> str:
    """A default as YAML, or what else holds."""
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "`null`"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(map(str, field.default))}]`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    main()
