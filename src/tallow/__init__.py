"""tallow: raw text to a served, aligned, compressed language model on hardware that you already have."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallow.engine.beam_search import BeamParams as BeamParams
    from tallow.engine.language_model import LanguageModel as LanguageModel
    from tallow.engine.language_model import load as load
    from tallow.engine.request import SamplingParams as SamplingParams
    from tallow.engine.structure import Structure as Structure
    from tallow.run import StageRun as StageRun
    from tallow.stages import Recipe as Recipe
    from tallow.stages import run_recipe as run_recipe
    from tallow.stages import run_stage as run_stage

__version__ = "0.1.0"

# imported when they are first asked for, so that `import tallow` does not wait for torch
_HOMES = {
    "BeamParams": "tallow.engine.beam_search",
    "LanguageModel": "tallow.engine.language_model",
    "Recipe": "tallow.stages",
    "SamplingParams": "tallow.engine.request",
    "StageRun": "tallow.run",
    "Structure": "tallow.engine.structure",
    "load": "tallow.engine.language_model",
    "run_recipe": "tallow.stages",
    "run_stage": "tallow.stages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tallow' has no attribute {name!r}")
    from tallow.startup import uncollected

    with uncollected():
        return getattr(import_module(_HOMES[name]), name)
