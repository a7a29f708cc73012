"""Adapter folders as the `peft` library has them: `adapter_config.json` and `adapter_model.safetensors`.

Where a family stores several of our layers as one fused matrix, the folder holds one adapter for the fused
matrix: its A stacks theirs, its B is block-diagonal, so that the update is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tallow.errors import DataError, reading
from tallow.files import atomic_directory, read_json, write_json
from tallow.models.decoder import Decoder
from tallow.models.families import TensorMap, find_family
from tallow.tune.lora import LoraLinear, adapters

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class _HubAdapter:
    """The adapter of one matrix of the hub's layout: A (R I), B (O R) and the scale of their product."""

    lora_a: Tensor
    lora_b: Tensor
    scale: float


def save_adapter(model: Decoder, directory: Path, base_model: str) -> None:
    """Write the adapters of a model; atomic.

    Args:
        base_model: Name or path of the model that they adapt.
    """
    found = dict(adapters(model))
    fused = {
        tensor_map.hub.removesuffix(".weight"): _fuse(model, tensor_map, found)
        for tensor_map in find_family(model.config.family).tensors(model.config)
        if tensor_map.hub.endswith(".weight") and any(_module(name) in found for name in tensor_map.ours)
    }
    tensors = {}
    for module, adapter in fused.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = adapter.lora_a.contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = adapter.lora_b.contiguous()
    first = next(iter(fused.values()))
    rank = first.lora_a.shape[0]
    with atomic_directory(directory) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        write_json(
            temporary / CONFIG,
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base_model,
                "inference_mode": True,
                "r": rank,
                "lora_alpha": first.scale * rank,
                "lora_dropout": 0.0,
                "target_modules": sorted({module.rpartition(".")[2] for module in fused}),
                # only what differs from r and lora_alpha is named
                "rank_pattern": {name: a.lora_a.shape[0] for name, a in fused.items() if a.lora_a.shape[0] != rank},
                "alpha_pattern": {
                    name: a.scale * a.lora_a.shape[0] for name, a in fused.items() if a.lora_a.shape[0] != rank
                },
                "fan_in_fan_out": model.config.family == "gpt2",
                "use_rslora": False,
                "bias": "none",
            },
        )


def load_adapter(model: Decoder, directory: Path) -> None:
    """Put the adapters of a folder onto a model.

    Raises:
        DataError: The folder is broken, is not LoRA, or is for another model.
    """
    config = read_json(directory / CONFIG, "adapter config")
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise DataError(f"{directory} is not a plain LoRA adapter", "only LoRA without DoRA and biases is supported")
    with reading(directory / WEIGHTS, "adapter weights"):
        (directory / WEIGHTS).open("rb").close()
    try:
        tensors = load_file(directory / WEIGHTS)
    except SafetensorError as error:
        raise DataError(f"{directory / WEIGHTS} is broken: {error}", "copy it again") from error
    for tensor_map in find_family(model.config.family).tensors(model.config):
        module = tensor_map.hub.removesuffix(".weight")
        lora_a = tensors.pop(f"{PREFIX}{module}.lora_A.weight", None)
        lora_b = tensors.pop(f"{PREFIX}{module}.lora_B.weight", None)
        if lora_a is None or lora_b is None:
            continue
        scale = _scale(config, module, lora_a.shape[0])
        for name, rows in zip(tensor_map.ours, _split_rows(tensor_map, model, lora_b), strict=True):
            _attach(model, _module(name), lora_a, rows, scale, directory)
    if tensors:
        raise DataError(
            f"adapter {directory} has {next(iter(tensors))}, which the model lacks", "it is for another model"
        )


def _fuse(model: Decoder, tensor_map: TensorMap, found: dict[str, LoraLinear]) -> _HubAdapter:
    present = [found[_module(name)] for name in tensor_map.ours if _module(name) in found]
    if len(tensor_map.ours) == 1:
        return _HubAdapter(present[0].lora_A.detach(), present[0].lora_B.detach(), present[0].scale)
    blocks = []
    for name in tensor_map.ours:
        adapter = found.get(_module(name))
        # a part without an adapter keeps its rows at zero
        blocks.append(torch.zeros(len(model.get_parameter(name)), 0) if adapter is None else adapter.lora_B.detach())
    rows_OR = torch.block_diag(*blocks)
    lora_b = tensor_map.join(list(rows_OR.split([len(block) for block in blocks])))
    if lora_b.shape[0] != len(rows_OR):  # the family stores its matrices transposed
        lora_b = lora_b.T
    return _HubAdapter(torch.cat([adapter.lora_A.detach() for adapter in present]), lora_b, present[0].scale)


def _split_rows(tensor_map: TensorMap, model: Decoder, lora_b: Tensor) -> list[Tensor]:
    """The rows of B that belong to each of our layers.

    Which they are is found by sending row numbers, in place of weights, through the family's own split.
    """
    if len(tensor_map.ours) == 1:
        return [lora_b]
    shapes = [model.get_parameter(name).shape for name in tensor_map.ours]
    num_rows = sum(rows for rows, _ in shapes)
    numbers = torch.arange(num_rows, dtype=torch.float64)[:, None].expand(-1, shapes[0][1])
    for stored in (numbers, numbers.T):  # the second where the family stores its matrices transposed
        try:
            parts = tensor_map.split(stored)
        except (RuntimeError, ValueError):
            continue
        if [part.shape for part in parts] == shapes and len(lora_b) == num_rows:
            return [lora_b[part[:, 0].long()] for part in parts]
    raise DataError(f"the adapter of {tensor_map.hub} does not fit the model", "it is for another model")


def _attach(model: Decoder, name: str, lora_a: Tensor, lora_b: Tensor, scale: float, directory: Path) -> None:
    parent, _, child = name.rpartition(".")
    base = getattr(model.get_submodule(parent), child)
    if not isinstance(base, nn.Linear) or base.weight.shape != (lora_b.shape[0], lora_a.shape[1]):
        raise DataError(f"adapter {directory} does not fit the layer {name}", "it is for another model")
    adapter = LoraLinear(base, lora_a.shape[0], scale)
    adapter.lora_A.data, adapter.lora_B.data = lora_a.clone(), lora_b.clone()
    setattr(model.get_submodule(parent), child, adapter)


def _scale(config: dict[str, object], module: str, rank: int) -> float:
    alpha_pattern = config.get("alpha_pattern") or {}
    alpha = alpha_pattern.get(module, config.get("lora_alpha")) if isinstance(alpha_pattern, dict) else None
    if not isinstance(alpha, int | float):
        raise DataError("adapter_config.json has no lora_alpha", "restore it from its source")
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _module(parameter: str) -> str:
    return parameter.removesuffix(".weight")
