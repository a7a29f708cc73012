"""Low-rank adapters (LoRA, arXiv 2106.09685) as the `peft` library stores them: `adapter_config.json` and
`adapter_model.safetensors`.

Where a family stores several of our layers as one fused matrix, the folder holds one adapter for the fused matrix.
One that is written stacks their A, and its B is block-diagonal, so that the update is the same. Of one that is read,
each of our layers gets the whole A and its own rows of B.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tallow.errors import DataError, reading
from tallow.files import atomic_directory, read_json, write_json
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.families import TensorMap, find_family
from tallow.models.formats.tensor_files import DTYPES, write_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""Settings that make an adapter compute something else than `scale · B A x`."""

MERGE_IT = "merge it into its model with the library that made it, and take the merged model"
ANOTHER_MODEL = "the adapter is for another model"
RESTORE = "restore the adapter from its source"


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to the weight of a linear layer: `scale · B A`.

    Args:
        a_RI: A, rank by inputs.
        b_OR: B, outputs by rank.
        scale: `alpha / rank`, or `alpha / sqrt(rank)` where it is rank-stabilized (arXiv 2312.03732).
    """

    a_RI: Tensor
    b_OR: Tensor
    scale: float


Adapter = Mapping[str, LowRank]
"""The names of the linear layers that it changes (ours, as `layers.0.attention.q_proj`), and how."""


def read_adapter(directory: Path, config: DecoderConfig) -> dict[str, LowRank]:
    """Read an adapter folder.

    Args:
        config: The model that it is for.

    Returns:
        The updates in the dtype in which they are stored; layers that are fused in the file share one A.

    Raises:
        DataError: The folder is broken, for another model, or not plain LoRA.
    """
    settings = read_json(directory / CONFIG, "adapter config")
    _refuse_unsupported(settings, directory)
    tensors = _read_tensors(directory)
    shapes, family = _shapes(config), find_family(config.family)
    updates: dict[str, LowRank] = {}
    for tensor_map in family.tensors(config, shapes):
        if not tensor_map.hub.endswith(".weight") or tensor_map.expert is not None:
            continue
        for spelling in family.spellings(tensor_map.hub):
            module = _module(spelling)
            a_RI = tensors.pop(f"{PREFIX}{module}.lora_A.weight", None)
            b_OR = tensors.pop(f"{PREFIX}{module}.lora_B.weight", None)
            if a_RI is None and b_OR is None:
                continue
            if a_RI is None or b_OR is None:
                raise DataError(f"adapter {directory} has only one of the two matrices of {module}", RESTORE)
            if a_RI.ndim != 2 or b_OR.ndim != 2 or not len(a_RI) == b_OR.shape[1] > 0:
                said = f"{tuple(a_RI.shape)} and {tuple(b_OR.shape)}"
                raise DataError(f"the matrices of {module} in adapter {directory} have the shapes {said}", RESTORE)
            scale = _scale(settings, module, len(a_RI), directory)
            parts = _split_rows(tensor_map, shapes, b_OR)
            fits = [(len(part), a_RI.shape[1]) for part in parts] == [shapes[name] for name in tensor_map.ours]
            if not fits:
                raise DataError(f"the update of {module} in adapter {directory} does not fit the model", ANOTHER_MODEL)
            updates |= {
                _module(name): LowRank(a_RI, part, scale) for name, part in zip(tensor_map.ours, parts, strict=True)
            }
    if tensors:
        raise DataError(f"adapter {directory} has {next(iter(tensors))}, which the model lacks", ANOTHER_MODEL)
    if not updates:
        raise DataError(f"adapter {directory} holds no matrices", RESTORE)
    return updates


def write_adapter(updates: Adapter, config: DecoderConfig, directory: Path, base_model: str) -> None:
    """Write an adapter folder; atomic.

    Args:
        updates: Those of layers that the family stores as one matrix must have the same scale.
        config: The model that they are for.
        base_model: Its name or path.

    Raises:
        CapacityError: The disk is full.
        UsageError: The place cannot be written.
    """
    shapes = _shapes(config)
    fused = {
        _module(tensor_map.hub): _fuse(tensor_map, shapes, updates)
        for tensor_map in find_family(config.family).tensors(config, shapes)
        if tensor_map.hub.endswith(".weight") and any(_module(name) in updates for name in tensor_map.ours)
    }
    tensors = {}
    for module, update in fused.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = update.a_RI
        tensors[f"{PREFIX}{module}.lora_B.weight"] = update.b_OR
    first = next(iter(fused.values()))
    rank = len(first.a_RI)
    # only what differs from r and lora_alpha is named
    different = {name: update for name, update in fused.items() if len(update.a_RI) != rank}
    with atomic_directory(directory) as temporary:
        write_tensors(tensors, temporary / WEIGHTS)
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
                "rank_pattern": {name: len(update.a_RI) for name, update in different.items()},
                "alpha_pattern": {name: update.scale * len(update.a_RI) for name, update in different.items()},
                "fan_in_fan_out": config.family == "gpt2",
                "use_rslora": False,
                "bias": "none",
            },
        )


def _refuse_unsupported(settings: Mapping[str, Any], directory: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise DataError(f"{directory} is not a plain LoRA adapter but {settings.get('peft_type')!r}", MERGE_IT)
    if settings.get("bias", "none") != "none":
        raise DataError(f"{directory} is not a plain LoRA adapter: it has biases", MERGE_IT)
    if unsupported := [name for name in UNSUPPORTED if settings.get(name)]:
        raise DataError(f"{directory} is not a plain LoRA adapter: it has {unsupported[0]}", MERGE_IT)


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    path = directory / WEIGHTS
    if not path.exists() and (directory / PICKLE).exists():
        raise DataError(
            f"{directory / PICKLE} is a pickle, which may run any code, and there is no {WEIGHTS} beside it",
            "tallow reads safetensors only; take a revision of the adapter that has them",
        )
    with reading(path, "adapter weights"):
        path.open("rb").close()
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"adapter weights {path} are broken: {error}", "copy them again") from error
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise DataError(f"tensor {name} in {path} is stored as {tensor.dtype}, which is not supported", RESTORE)
        if not tensor.isfinite().all():
            raise DataError(f"tensor {name} in {path} has values that are not finite", RESTORE)
    return tensors


def _scale(settings: Mapping[str, Any], module: str, rank: int, directory: Path) -> float:
    said = _chosen(settings, "r", "rank_pattern", module, directory)
    if said != rank:
        raise DataError(f"{directory / CONFIG} says rank {said:g} for {module}, whose matrices have {rank}", RESTORE)
    alpha = _chosen(settings, "lora_alpha", "alpha_pattern", module, directory)
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _chosen(settings: Mapping[str, Any], key: str, patterns: str, module: str, directory: Path) -> float:
    """A number of the settings: the first of the patterns that is the end of the module's name, else the usual one."""
    named = settings.get(patterns) or {}
    if not isinstance(named, dict):
        raise DataError(f"{directory / CONFIG} has no names in {patterns}", RESTORE)
    value = settings.get(key)
    for name, special in named.items():
        if not re.fullmatch(r"\^?[\w.]+", name):  # the library takes them for regular expressions
            raise DataError(f"{patterns} of {directory / CONFIG} has {name!r}, which is no module's name", MERGE_IT)
        if module == name.removeprefix("^") or module.endswith(f".{name}"):
            value = special
            break
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise DataError(f"{directory / CONFIG} has no sound {key} for {module}: {value!r}", RESTORE)
    return value


def _fuse(tensor_map: TensorMap, shapes: Mapping[str, tuple[int, ...]], updates: Adapter) -> LowRank:
    present = [updates[_module(name)] for name in tensor_map.ours if _module(name) in updates]
    if len(tensor_map.ours) == 1:
        return present[0]
    blocks = []
    for name in tensor_map.ours:
        update = updates.get(_module(name))
        # a part without an update keeps its rows at zero
        blocks.append(torch.zeros(shapes[name][0], 0) if update is None else update.b_OR)
    rows_OR = torch.block_diag(*blocks)
    b_OR = tensor_map.join(list(rows_OR.split([len(block) for block in blocks])))
    if b_OR.shape[0] != len(rows_OR):  # the family stores its matrices transposed
        b_OR = b_OR.T
    return LowRank(torch.cat([update.a_RI for update in present]), b_OR, present[0].scale)


def _split_rows(tensor_map: TensorMap, shapes: Mapping[str, tuple[int, ...]], b_OR: Tensor) -> list[Tensor]:
    """The rows of B that belong to each of our layers; none if there are not as many as these have.

    Which they are is found by sending row numbers, in place of weights, through the family's own split.
    """
    if len(tensor_map.ours) == 1:
        return [b_OR]
    ours = [shapes[name] for name in tensor_map.ours]
    num_rows = sum(rows for rows, _ in ours)
    numbers = torch.arange(num_rows, dtype=torch.float64)[:, None].expand(-1, ours[0][1])
    for stored in (numbers, numbers.T):  # the second where the family stores its matrices transposed
        try:
            parts = tensor_map.split(stored)
        except (RuntimeError, ValueError):
            continue
        if [tuple(part.shape) for part in parts] == ours and len(b_OR) == num_rows:
            return [b_OR[part[:, 0].long()] for part in parts]
    return []


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Of the model's parameters, by name."""
    with torch.device("meta"):
        return {name: tuple(parameter.shape) for name, parameter in Decoder(config).named_parameters()}


def _module(parameter: str) -> str:
    return parameter.removesuffix(".weight")
