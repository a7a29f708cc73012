"""Reading and writing models: hub directories and GGUF files."""

from __future__ import annotations

from pathlib import Path

import torch

from tallow.errors import DataError, UsageError
from tallow.models.decoder import Decoder
from tallow.models.encoder import Encoder
from tallow.models.formats.gguf import GGUFModel, Precision, has_gguf_tokenizer, load_gguf_tokenizer, save_gguf
from tallow.models.formats.hub import HubModel, load_encoder_directory, load_tagger_directory, save_directory
from tallow.models.skeletons import Model
from tallow.models.tagger import Tagger
from tallow.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Precision",
    "has_tokenizer",
    "load_encoder",
    "load_model",
    "load_tagger",
    "load_tokenizer",
    "open_model",
    "save_gguf",
    "save_model",
]


def open_model(path: Path) -> HubModel | GGUFModel:
    """Open a decoder's hub directory or .gguf file, to read its weights one at a time.

    Raises:
        DataError: There is no model at `path`, or it is broken or of a kind that is not supported.
        UsageError: It is an encoder.
    """
    return GGUFModel(path) if _is_gguf(path) else HubModel(path)


def load_model(path: Path, *, dtype: torch.dtype | None = None) -> Decoder:
    """Load a decoder from a hub directory or a .gguf file, its tensors mapped from the file where that can be.

    Args:
        dtype: Of all weights; None leaves them as stored (quantized GGUF tensors become float32).

    Raises:
        DataError: There is no model at `path`, or it is broken or of a kind that is not supported.
        UsageError: The dtype is not a floating-point one, or the model is an encoder.
    """
    _check_dtype(dtype)
    return open_model(path).load(dtype)


def load_encoder(path: Path, *, dtype: torch.dtype | None = None, head: bool = True) -> Encoder:
    """Load an encoder from a hub directory, its tensors mapped from the file where that can be.

    Args:
        dtype: Of all weights; None leaves them as stored.
        head: Whether it is to give logits; otherwise only hidden states, whether the files have more or not.

    Raises:
        DataError: There is no model at `path`, or it is broken or of a kind that is not supported.
        UsageError: The dtype is not a floating-point one, or the model is no encoder.
    """
    _check_dtype(dtype)
    _require_directory(path)
    return load_encoder_directory(path, dtype, head=head)


def load_tagger(path: Path, *, dtype: torch.dtype | None = None) -> Tagger:
    """Load an encoder that labels tokens from a hub directory, its tensors mapped from the file where that can be.

    Args:
        dtype: Of all weights; None leaves them as stored.

    Raises:
        DataError: There is no model at `path`, it labels no tokens, or it is broken or of a kind that is not supported.
        UsageError: The dtype is not a floating-point one, or the model is no encoder.
    """
    _check_dtype(dtype)
    _require_directory(path)
    return load_tagger_directory(path, dtype)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer of a hub directory or a .gguf file.

    Raises:
        DataError: There is none at `path`, or it is broken or of a kind that is not supported.
    """
    return load_gguf_tokenizer(path) if _is_gguf(path) else Tokenizer.load(path)


def save_model(model: Model, tokenizer: Tokenizer | None, directory: Path) -> None:
    """Write a hub directory; atomic.

    Raises:
        CapacityError: The disk is full.
        UsageError: The place cannot be written, or the model's family cannot express its architecture.
    """
    save_directory(model, tokenizer, directory)


def has_tokenizer(path: Path) -> bool:
    """Whether the model at `path` brings a tokenizer.

    Raises:
        DataError: There is no model at `path`, or it is a broken GGUF file.
    """
    return has_gguf_tokenizer(path) if _is_gguf(path) else (path / "tokenizer.json").exists()


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype is not None and not dtype.is_floating_point:
        raise UsageError(f"a model cannot be loaded as {dtype}", "use torch.float32, torch.bfloat16 or torch.float16")


def _require_directory(path: Path) -> None:
    if _is_gguf(path):
        raise UsageError(f"{path} is a file, but encoders are directories", "name a directory with config.json")


def _is_gguf(path: Path) -> bool:
    """Whether a model is a GGUF file; a directory is a hub directory.

    Raises:
        DataError: There is nothing at `path`.
    """
    if not path.exists():
        raise DataError(f"model {path} does not exist", "check the path, or bring a model with `tallow pull NAME`")
    return not path.is_dir()
