"""What a stage works at, so that finished work can be told from other work, and interrupted work gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tallow.files import hash_value
from tallow.recipe import Section


def fingerprint_stage(stage: str, config: Section, inputs: Mapping[str, str]) -> str:
    """Identity of a piece of work: the stage, its settings, and the content of its inputs.

    Args:
        stage: The stage's name.
        config: The resolved settings; the fields named in `inputs` count by content, not by path.
        inputs: Content hash of each input, by the name of its setting (`models.tune` for an entry of `models`).
    """
    settings = _without_inputs(config.result_settings(), inputs)
    return hash_value({"stage": stage, "settings": settings, "inputs": dict(inputs)})


@dataclass(frozen=True)
class Work:
    """What makes interrupted work the same work.

    Args:
        stage: The stage's name.
        settings: Those that it depends on, without its inputs.
        inputs: Content hash of each input.
    """

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str]

    @classmethod
    def of(cls, stage: str, config: Section, inputs: Mapping[str, str]) -> Work:
        """The work of a stage."""
        settings = _without_inputs(config.work_settings(), inputs)
        # as JSON has them, since they are compared with what was read
        return cls(stage, json.loads(json.dumps(settings)), dict(inputs))

    @property
    def fingerprint(self) -> str:
        """Its identity."""
        return hash_value(asdict(self))

    def differences(self, begun: Mapping[str, Any]) -> list[str]:
        """In words, how it differs from work that was begun, as far as that is known."""
        settings, inputs = begun.get("settings"), begun.get("inputs")
        if not isinstance(settings, dict) or not isinstance(inputs, dict):
            return []
        old, new = _flat(settings), _flat(self.settings)
        found = [
            f"{self.stage}.{name} ({_as_text(old.get(name))} → {_as_text(new.get(name))})"
            for name in {**old, **new}
            if old.get(name) != new.get(name)
        ]
        contents = {name: None for name in {**inputs, **self.inputs} if inputs.get(name) != self.inputs.get(name)}
        return found + [f"the content of {self.stage}.{name}" for name in contents]


def _without_inputs(settings: Mapping[str, Any], inputs: Mapping[str, str]) -> dict[str, Any]:
    by_content = {name.partition(".")[0] for name in inputs}
    return {key: value for key, value in settings.items() if key not in by_content}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
