"""Typed access to GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tallow.errors import DataError


class Fields:
    """Typed access to the metadata of one architecture: keys are given without its name."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata, self.prefix = metadata, f"{metadata['general.architecture']}."

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def get(self, key: str) -> Any:
        return self.metadata.get(self.prefix + key)

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A float in the shortest spelling that is the same in single precision: 1e-05, not 9.999999747e-06."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number")
        with np.errstate(over="ignore"):
            single = np.float32(value)
        if not np.isfinite(single):
            raise self._wrong(key, "a finite number")
        return float(str(single))

    def flag(self, key: str, default: bool) -> bool:
        value = self._required(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        value = self._required(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "text")
        return value

    def _required(self, key: str, default: Any) -> Any:
        value = self.metadata.get(self.prefix + key, default)
        if value is None:
            raise DataError(f"GGUF metadata lacks {self.prefix}{key}", "convert the model again")
        return value

    def _wrong(self, key: str, kind: str) -> DataError:
        value = self.metadata.get(self.prefix + key)
        return DataError(
            f"GGUF metadata {self.prefix}{key} is not {kind}: {str(value)[:40]}", "convert the model again"
        )
