"""Which models can be trained."""

from __future__ import annotations

from pathlib import Path

from tallow.errors import UsageError
from tallow.models.decoder import Decoder
from tallow.models.quantization import quantized_modules
from tallow.models.store import PRODUCTS


def refuse_quantized(model: Decoder, path: Path) -> None:
    """Refuse a model whose weights are codes.

    Args:
        path: Where it came from; in a run, the hint names the model that it was made of.

    Raises:
        UsageError: The model is quantized.
    """
    if not quantized_modules(model):
        return
    run = path.parent.parent
    others = [run / product for product in PRODUCTS if (run / product).is_dir() and run / product != path]
    hint = f"name {others[0].parent}" if others else "name the model that it was made of"
    raise UsageError(f"{path} is quantized and cannot be trained", f"{hint}, and compress the result")
