"""Adapter folders: those of a model that is tuned are written, and others put onto a model."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from tallow.errors import DataError
from tallow.models.decoder import Decoder
from tallow.models.formats.adapters import LowRank, read_adapter, write_adapter
from tallow.tune.lora import LoraLinear, adapters


def save_adapter(model: Decoder, directory: Path, base_model: str) -> None:
    """Write the adapters of a model; atomic.

    Args:
        base_model: Name or path of the model that they adapt.
    """
    updates = {
        name: LowRank(adapter.lora_A.detach(), adapter.lora_B.detach(), adapter.scale)
        for name, adapter in adapters(model)
    }
    write_adapter(updates, model.config, directory, base_model)


def load_adapter(model: Decoder, directory: Path) -> None:
    """Put the adapters of a folder onto a model.

    Raises:
        DataError: The folder is broken, is not plain LoRA, or is for another model; or a layer is quantized.
    """
    for name, update in read_adapter(directory, model.config).items():
        parent, _, child = name.rpartition(".")
        base = getattr(model.get_submodule(parent), child)
        if not isinstance(base, nn.Linear):
            raise DataError(f"adapter {directory} does not fit the layer {name}", "the model must not be quantized")
        adapter = LoraLinear(base, len(update.a_RI), update.scale)
        adapter.lora_A.data, adapter.lora_B.data = update.a_RI.clone(), update.b_OR.clone()
        setattr(model.get_submodule(parent), child, adapter)
