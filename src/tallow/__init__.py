"""tallow: raw text to a served, aligned, compressed language model on hardware that you already have."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallow.engine.language_model import LanguageModel as LanguageModel
    from tallow.engine.language_model import load as load
    from tallow.engine.request import SamplingParams as SamplingParams

__version__ = "0.1.0"

# imported when they are first asked for, so that `import tallow` does not wait for torch
_HOMES = {
    "LanguageModel": "tallow.engine.language_model",
    "SamplingParams": "tallow.engine.request",
    "load": "tallow.engine.language_model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tallow' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
