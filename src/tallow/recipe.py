"""The recipe language: typed sections, YAML files, and `--set section.key=value`.

A recipe is one YAML file with a section for each stage. Every section is a `Section`: a frozen
pydantic model that refuses unknown keys. The sections themselves live beside the stage that they
configure; this file only knows the language. Precedence: defaults < file < `--set`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tallow.errors import UsageError


class Section(BaseModel):
    """One typed, immutable part of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    incidental: ClassVar[frozenset[str]] = frozenset()
    """Settings that change how a result comes about, but not the result."""

    finishing: ClassVar[frozenset[str]] = frozenset()
    """Settings that change the result only when its work is done, so that interrupted work can go on with others."""

    def result_settings(self) -> dict[str, Any]:
        """The settings that the result depends on, as JSON values."""
        values = self.model_dump(mode="json", exclude=set(self.incidental))
        for name, part in self:
            if name in values and isinstance(part, Section):
                values[name] = part.result_settings()
            elif name in values and isinstance(part, tuple):
                values[name] = [
                    each.result_settings() if isinstance(each, Section) else value
                    for each, value in zip(part, values[name], strict=True)
                ]
        return values

    def found_inputs(self) -> Mapping[str, Path]:
        """Files that the result depends on though no setting names them, by the setting that would."""
        return {}

    def check_inputs(self) -> None:
        """Refuse files that cannot be what a setting takes them for, before they are hashed, which may take long.

        Raises:
            DataError: One cannot.
        """

    def work_settings(self) -> dict[str, Any]:
        """Those of them that what is done before the end depends on."""
        return {name: value for name, value in self.result_settings().items() if name not in self.finishing}


LINE_BREAKS_BEYOND_ASCII = "\x85\u2028\u2029"

SectionType = TypeVar("SectionType", bound=Section)


def load_recipe(path: Path | str) -> dict[str, Any]:
    """Read a YAML recipe into plain values.

    Raises:
        UsageError: The file is missing, is not UTF-8, is not YAML, or is not a mapping of sections.
    """
    path = Path(path)
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError as error:
        raise UsageError(f"recipe {path} does not exist", "recipes/ holds ready ones") from error
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}", "name a YAML file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path} is not UTF-8 text", "save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise UsageError(f"recipe {path} is not valid YAML{where}: {problem}", "fix that line") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(
            f"recipe {path} must be a mapping from section names to settings",
            "see recipes/quickstart.yaml",
        )
    return values


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""Those of libyaml, which are ten times as fast; PyYAML may have been built without it."""


class _Loader(_SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", key_node.start_mark)
            if isinstance(key, str):
                keys.add(key)
        return super().construct_mapping(node, deep)


def apply_overrides(
    values: Mapping[str, Any],
    overrides: Sequence[str],
    form: str = "section.key=value",
    example: str = "pretrain.loop.steps=100",
) -> dict[str, Any]:
    """Lay `section.key=value` settings over recipe values; a value is read as YAML.

    Args:
        values: By section, or whatever else is named before the first dot.
        overrides: The settings.
        form, example: What an error says of how a setting is written.

    Raises:
        UsageError: An override has no `=`, an empty key, or runs through something not a mapping.
    """
    result = _copy(values)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = dotted.strip().split(".")
        if not equals or not all(keys):
            raise UsageError(f"--set {override} is not of the form {form}", f"e.g. --set {example}")
        try:
            value = yaml.load(text, Loader=_SafeLoader) if text else ""
        except yaml.YAMLError as error:
            raise UsageError(f"--set {override}: the value is not valid YAML", "quote it") from error
        place = result
        for key in keys[:-1]:
            if place.get(key) is None:  # a part that was left out as a whole
                place[key] = {}
            place = place[key]
            if not isinstance(place, dict):
                raise UsageError(f"--set {override}: {key} holds a value, not a section", "set it directly")
        place[keys[-1]] = value
    return result


def parse_section(kind: type[SectionType], values: Mapping[str, Any] | None, name: str) -> SectionType:
    """Check the values of one section.

    Raises:
        UsageError: A key is unknown or a value does not fit; the first few problems are named.
    """
    try:
        return kind.model_validate(values or {})
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for problem in error.errors():
            place, complaint = _describe(kind, name, problem, values or {})
            problems.setdefault(place, []).append(complaint)
        # of a setting that may be one of several kinds, each kind complains
        said = [place + ", or ".join(complaints) for place, complaints in problems.items()]
        raise UsageError("; ".join(said[:3]), "correct it in the recipe, or by --set") from error


def replace_settings(section: SectionType, settings: Mapping[str, Any]) -> SectionType:
    """A section with other values of some settings, named from it on (`loop.precision`)."""
    values = section.model_dump(mode="json")
    for setting, value in settings.items():
        *parents, name = setting.split(".")
        place = values
        for key in parents:
            place[key] = place[key] or {}  # a part that was left out as a whole
            place = place[key]
        place[name] = value
    return type(section).model_validate(values)


def dump_recipe(values: Mapping[str, Any]) -> str:
    """Recipe values as YAML text, in the given order."""
    text = yaml.dump(dict(values), Dumper=_SafeDumper, sort_keys=False, allow_unicode=True)
    if any(character in text for character in LINE_BREAKS_BEYOND_ASCII):
        # PyYAML writes these as they are, but reads them as line breaks
        return yaml.dump(dict(values), Dumper=_SafeDumper, sort_keys=False)
    return text


def _describe(kind: type[Section], name: str, problem: Any, values: Mapping[str, Any]) -> tuple[str, str]:
    """The setting that a problem is with, and the complaint."""
    parts, value = [name], values
    for part in problem["loc"]:
        if not isinstance(value, Mapping | list | tuple):
            break  # what follows is pydantic's name of a kind of value
        parts.append(str(part))
        if isinstance(value, Mapping):
            value = value.get(part, value)
        elif isinstance(part, int) and part < len(value):
            value = value[part]
    place = ".".join(parts)
    if problem["type"] == "extra_forbidden":
        known = _known(kind, problem["loc"][:-1])
        near = "".join(f"perhaps {name}; " for name in get_close_matches(parts[-1], known, 1))
        return f"unknown setting {place}", f" ({near}known: {', '.join(known)})" if known else ""
    if problem["type"] == "missing":
        return f"setting {place}", " is required"
    return f"setting {place}: ", f"{problem['msg'][:1].lower()}{problem['msg'][1:]}"


def _known(kind: type[Section], place: Sequence[str | int]) -> list[str]:
    """The settings of the section that is at a place of another; none, if it is not one kind of section."""
    for part in place:
        field = kind.model_fields.get(str(part))
        sections = [] if field is None else [*_sections(field.annotation)]
        if len(sections) != 1:
            return []
        [kind] = sections
    return sorted(kind.model_fields)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The kinds of section that a type, such as `X | None`, has."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    elif not isinstance(annotation, type):
        for part in get_args(annotation):
            yield from _sections(part)


def _copy(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _copy(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_copy(value) for value in values]
    return values
