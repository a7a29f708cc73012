"""How a setting names a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from tallow.errors import TallowError
from tallow.models.store import resolve


def _locate(value: object) -> object:
    """Where a model is; what is nowhere stays as it is, and is refused where it is looked for."""
    try:
        return str(resolve(value)) if isinstance(value, str | Path) else value  # from JSON only texts become paths
    except TallowError:
        return value


ModelPath = Annotated[Path, BeforeValidator(_locate)]
"""A path, or a name in the local store, which becomes the path of what is stored there: that is hashed as an input."""
