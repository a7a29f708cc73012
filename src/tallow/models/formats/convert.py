"""From one model format to another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch

from tallow.console import say
from tallow.errors import DataError, UsageError
from tallow.files import directory_size
from tallow.models.decoder import Decoder
from tallow.models.formats import Precision, has_tokenizer, load_model, load_tokenizer, save_gguf, save_model
from tallow.models.quantization import dequantize_modules, num_weights, quantized_bits
from tallow.models.store import resolve
from tallow.tokenizer.tokenizer import Tokenizer

_DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
MODEL_FILES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".md"})
"""How the names of files in a model directory end."""

_PRECISIONS: dict[torch.dtype, Precision] = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def convert(
    model: str | Path, to: Literal["safetensors", "gguf"], out: Path, precision: Precision | Literal["auto"] = "auto"
) -> dict[str, Any]:
    """Write a model in another format.

    Args:
        model: Anything that `store.resolve` understands.
        out: A directory for safetensors, a file for GGUF.
        precision: `auto` keeps what the weights are stored as (those of a quantized GGUF file become float32).
            Any other is what is written: quantized weights are unpacked.

    Returns:
        `path`, `format`, `precision`, `parameters` (how many) and `bytes` (of what was written).

    Raises:
        DataError: There is no such model, or it is broken.
        UsageError: The format cannot hold this precision or this model, or `out` is no place for it.
        CapacityError: The disk is full.
    """
    source = resolve(model)
    if to == "safetensors" and precision in ("q8_0", "q4_0"):
        raise UsageError(f"safetensors cannot hold {precision}", "quantize with `tallow compress`, or use --to gguf")
    out = Path(os.path.abspath(out))
    check_place(to, out)
    dtype = _DTYPES.get(precision) if to == "safetensors" else None
    decoder = load_model(source, dtype=dtype)
    if dtype is not None:
        dequantize_modules(decoder, dtype)
    tokenizer = _tokenizer(source)
    if precision == "auto":
        precision = _stored_precision(decoder)
    if to == "gguf":
        save_gguf(decoder, tokenizer, out, precision)
    else:
        save_model(decoder, tokenizer, out)
    return {
        "path": str(out),
        "format": to,
        "precision": precision,
        "parameters": num_weights(decoder),
        "bytes": directory_size(out),
    }


def check_place(to: Literal["safetensors", "gguf"], out: Path) -> None:
    """Refuse to write over anything but a model."""
    if to == "gguf" and out.is_dir():
        raise UsageError(f"{out} is a directory", "name a file for GGUF, such as model.gguf")
    if to == "safetensors" and out.is_file():
        raise UsageError(f"{out} is a file", "name a directory for safetensors")
    if to == "gguf" and out.exists() and out.suffix != ".gguf":
        raise UsageError(f"{out} is there already and is no .gguf file", "name another file, or remove that one")
    if to == "safetensors" and out.exists():
        foreign = [path.name for path in out.iterdir() if path.is_dir() or path.suffix not in MODEL_FILES]
        if foreign or (any(out.iterdir()) and not (out / "config.json").exists()):
            what = f"holds {foreign[0]}" if foreign else "holds files and no config.json"
            raise UsageError(f"{out} {what}, so it is no model to be replaced", "name a new directory")


def _tokenizer(source: Path) -> Tokenizer | None:
    if has_tokenizer(source):
        return load_tokenizer(source)
    say(f"{source} has no tokenizer; writing the model alone")
    return None


def _stored_precision(model: Decoder) -> Precision:
    """The GGUF precision nearest to how a model's matrices are stored."""
    bits = quantized_bits(model)
    if bits is not None:
        return "q4_0" if bits == 4 else "q8_0"
    dtype = next(model.parameters()).dtype
    if dtype not in _PRECISIONS:
        raise DataError(f"weights of {dtype} cannot be converted as they are", "name a --precision")
    return _PRECISIONS[dtype]
