"""Write docs/recipe.md: every setting of every stage, from the settings' own types, defaults and descriptions.

Usage: python scripts/make_recipe_reference.py [--check]
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import annotated_types
import yaml
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tallow.recipe import Section
from tallow.serve.server import serve
from tallow.serve.settings import ServeSettings
from tallow.stages import STAGES, RunSettings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"
HEAD = """\
# Recipes

A recipe is a YAML file with one section for each stage. `tallow run RECIPE.yaml` does the stages in the order
below; a stage's inputs come from the stages before it unless the recipe names others. Precedence: defaults < file
< `--set section.key=value` (the value is read as YAML). An unknown key is an error. The resolved settings of each
stage are kept in its directory as `recipe.yaml`, those of a whole run in the run's directory as `resolved.yaml`.

*This page is made by `scripts/make_recipe_reference.py`.*
"""


# a bound on sizes that no model reaches; to name it would only distract
LARGEST_SIZE = 2**31
WORDS = {int: "int", float: "float", bool: "bool", str: "text", Path: "path", type(None): "`null`", Any: "anything"}


class Setting(NamedTuple):
    """A setting, or a group of them, as its section declares it."""

    name: str
    annotation: Any
    constraints: Sequence[Any]
    default: Any


def main() -> None:
    text = make_page()
    if "--check" in sys.argv:
        if PAGE.read_text(encoding="utf-8") != text:
            sys.exit("docs/recipe.md is not up to date: run python scripts/make_recipe_reference.py")
    else:
        PAGE.write_text(text, encoding="utf-8")


def make_page() -> str:
    """The whole page as Markdown."""
    shown: set[type] = set()
    parts = [HEAD, "## The run as a whole\n", table(RunSettings, None, "")]
    serving: tuple[type[Section], Callable[..., Any]] = (ServeSettings, serve)
    sections = {name: stage.load() for name, stage in STAGES.items()} | {"serve": serving}
    for name, (config, function) in sections.items():
        summary = (inspect.getdoc(function) or "").split("\n\n")[0]
        parts += [f"## {name}\n", f"{as_markdown(summary)}\n", table(config, None, f"{name}.")]
        for prefix, group, default in inner_groups(config, None, f"{name}."):
            if group not in shown:
                shown.add(group)
                rows = table(group, default, prefix)
                if rows:  # else there are only groups within it
                    parts += [f"### {prefix}* ({group.__name__})\n", *about_choice(group), rows]
            elif (line := f"`{prefix}*`: as above, see {group.__name__}.\n").split(" see")[0] not in parts[-1]:
                parts.append(line)
    return "\n".join(parts)


def table(group: type, defaults: object, prefix: str) -> str:
    """The settings of one group, without those of the groups in it; nothing if it has no others."""
    meanings = describe(group)
    head = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    rows: list[str] = []
    for setting in settings(group, defaults):
        if not groups_in(setting.annotation):
            value = describe_type(setting.annotation, setting.constraints)
            cells = (f"`{prefix}{setting.name}`", value, as_yaml(setting.default), meanings.get(setting.name, ""))
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([*head, *rows]) + "\n" if rows else ""


def about_choice(group: type) -> list[str]:
    """What a group is, if it is one of several that a recipe chooses from by name."""
    name = group.model_fields.get("name") if issubclass(group, Section) else None
    if name is None or get_origin(name.annotation) is not Literal:
        return []
    text = (inspect.getdoc(group) or "").split("Args:\n")[0]
    names = ", ".join(f"`{value}`" for value in get_args(name.annotation)[1:])
    named = f"`name: {get_args(name.annotation)[0]}`" + (f", {names}" if names else "")
    return [f"With {named}. {as_markdown(text)}\n"]


def inner_groups(group: type, defaults: object, prefix: str) -> Iterator[tuple[str, type, object]]:
    """Groups within a group, with the prefix of their settings and what holds their defaults, outer ones first."""
    for setting in settings(group, defaults):
        for inner in groups_in(setting.annotation):
            default = setting.default if isinstance(setting.default, inner) else None
            place = f"{prefix}{setting.name}." + ("NAME." if get_origin(setting.annotation) is dict else "")
            yield place, inner, default
            yield from inner_groups(inner, default, place)


def settings(group: type, defaults: object) -> Iterator[Setting]:
    """The settings of a section or of a dataclass, with the values in `defaults` if that is one of these."""
    if issubclass(group, Section):
        for name, field in group.model_fields.items():
            default = field.default if field.default_factory is None else field.get_default(call_default_factory=True)
            yield Setting(name, field.annotation, field.metadata, getattr(defaults, name, default))
    else:
        hints = get_type_hints(group)
        for field in dataclasses.fields(group):
            yield Setting(field.name, hints[field.name], (), getattr(defaults, field.name, field.default))


def groups_in(annotation: object) -> list[type]:
    """The sections and dataclasses that a type names, as alternatives to each other or to null."""
    groups: list[type] = []
    for kind in get_args(annotation) or (annotation,):
        if get_origin(kind) is Annotated:
            groups += groups_in(get_args(kind)[0])
        elif isinstance(kind, type) and (issubclass(kind, Section) or dataclasses.is_dataclass(kind)):
            groups.append(kind)
    return groups


def describe(group: type) -> dict[str, str]:
    """The meanings in the Args of a group's docstring and of those it inherits from."""
    result: dict[str, str] = {}
    for kind in reversed(group.__mro__[:-1]):
        _, *listed = re.split(r"(?:Args|Attributes):\n", inspect.getdoc(kind) or "", maxsplit=1)
        for entry in re.split(r"\n(?=    \w)", "".join(listed).split("\n\n")[0].rstrip()):
            name, colon, text = entry.strip().partition(":")
            if colon:
                result[name] = as_markdown(text)
    return result


def as_markdown(text: str) -> str:
    """A docstring's text for a table of a recipe's settings: one line, YAML's words, no bars that end a cell."""
    text = re.sub(r"(?<!`)\bNone\b", "`null`", " ".join(text.split()))
    return re.sub(r"`([^`]*\|[^`]*)`", lambda code: f"<code>{html.escape(code[1]).replace('|', '&#124;')}</code>", text)


def describe_type(annotation: Any, constraints: Sequence[Any] = ()) -> str:
    """What values a type admits, in words."""
    values = kinds(annotation, constraints)
    if len(values) == 1:
        return values[0]
    comma = "," if any(value.startswith("list") for value in values) else ""  # "or" is not part of the list
    return f"{', '.join(values[:-1])}{comma} or {values[-1]}"


def kinds(annotation: Any, constraints: Sequence[Any] = ()) -> list[str]:
    """The alternatives of a type, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = [part for note in arguments[1:] for part in (note.metadata if isinstance(note, FieldInfo) else [note])]
        return kinds(arguments[0], inner)
    if origin in (Union, types.UnionType):
        return [kind for argument in arguments for kind in kinds(argument, constraints)]
    if origin is Literal:
        return [f"`{value}`" for value in arguments]
    if origin is tuple:
        filled = any(isinstance(part, annotated_types.MinLen) for part in constraints)
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} × "
        return [f"list of {number}{describe_type(arguments[0])}" + (", not empty" if filled else "")]
    if origin in (dict, Mapping):
        return ["mapping of " + " to ".join(describe_type(argument) for argument in arguments)]
    return [WORDS[annotation] + (bounds(annotation, constraints) if annotation in (int, float) else "")]


def bounds(kind: type, constraints: Sequence[Any]) -> str:
    """Limits of a number, such as ` ≥ 1` or ` in (0, 1]`."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits = {sign: getattr(part, sign) for part in constraints for sign in signs if hasattr(part, sign)}
    if limits.get("lt") == LARGEST_SIZE:
        del limits["lt"]
    if kind is int and "gt" in limits:
        limits["ge"] = limits.pop("gt") + 1
    if len(limits) < 2:
        return "".join(f" {signs[sign]} {limit:g}" for sign, limit in limits.items())
    low, high = (next(limits[sign] for sign in pair if sign in limits) for pair in (("ge", "gt"), ("le", "lt")))
    if kind is int:
        return f" from {low:,} to {high if 'le' in limits else high - 1:,}"
    return f" in {'[' if 'ge' in limits else '('}{low:g}, {high:g}{']' if 'le' in limits else ')'}"


def as_yaml(default: Any) -> str:
    """A default as a recipe would have it."""
    if default is PydanticUndefined:
        return "required"
    value = list(default) if isinstance(default, tuple) else default
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    return f"`{text}`"


if __name__ == "__main__":
    main()
