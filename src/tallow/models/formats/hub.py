"""Model directories as on the Hugging Face hub: `config.json` and safetensors, in one file or sharded.

Tensors are mapped from the files, not copied; a page that is written to (training) becomes private.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tallow.errors import DataError, reading
from tallow.files import atomic_directory, read_json, write_json
from tallow.models.blocks.quantized import QuantizedEmbedding
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.families import TensorMap, find_family
from tallow.models.formats.quantized import (
    quantization_config,
    quantized_names,
    quantized_tensors,
    replace_stored,
    unquantized,
)
from tallow.tokenizer.tokenizer import Tokenizer

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"
SHARD_BYTES = 5 * 10**9


def read_config(directory: Path) -> DecoderConfig:
    """The shape of a model directory, with the control tokens of `generation_config.json` where it has one.

    Raises:
        DataError: config.json is missing, broken, of an unsupported family, or contradicts itself.
    """
    values = read_json(directory / CONFIG, "model config")
    if (directory / GENERATION).exists():
        given = read_json(directory / GENERATION, "generation config")
        values |= {key: given[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in given}
    try:
        return find_family(str(values.get("model_type"))).read_config(values)
    except (ValidationError, TypeError, ValueError, AttributeError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise DataError(f"{directory / CONFIG} does not describe a model: {problem}", "restore it") from error


def load_directory(directory: Path, dtype: torch.dtype | None = None) -> Decoder:
    """Load a model directory.

    Args:
        dtype: Convert floating-point tensors to it, one at a time; None leaves them as stored, mapped from the files.

    Raises:
        DataError: A file is missing, truncated or broken, or tensors and config.json disagree.
    """
    config = read_config(directory)
    names = quantized_names(read_json(directory / CONFIG, "model config"))
    with torch.device("meta"):
        model = Decoder(config)
    stored = _TensorFiles(directory)
    for name in names:
        replace_stored(model, name, stored.read)
    state: dict[str, Tensor] = dict(quantized_tensors(model))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for tensor_map in unquantized(find_family(config.family).tensors(config), shapes):
        for name, tensor in zip(tensor_map.ours, _split(stored.read(tensor_map.hub), tensor_map), strict=True):
            if tensor.shape != shapes[name]:
                raise DataError(
                    f"tensor {tensor_map.hub} in {directory} gives {name} the shape {tuple(tensor.shape)}, "
                    f"but config.json says {tuple(shapes[name])}",
                    "config.json and the weights are not of the same model",
                )
            state[name] = tensor if dtype is None else tensor.to(dtype)
    model.load_state_dict(state, assign=True)
    if isinstance(model.embed, QuantizedEmbedding):
        model.embed.dtype = model.norm.weight.dtype
    return model.eval()


def save_directory(model: Decoder, tokenizer: Tokenizer | None, directory: Path) -> None:
    """Write a model directory that `transformers`, vLLM and llama.cpp's converter read; atomic.

    Raises:
        CapacityError: The disk is full.
        UsageError: The place cannot be written.
    """
    with atomic_directory(directory) as temporary:
        write_json(temporary / CONFIG, hub_config(model))
        write_json(temporary / GENERATION, _control_tokens(model.config))
        _write_weights(_hub_tensors(model), temporary)
        if tokenizer is not None:
            tokenizer.save(temporary)


def hub_config(model: Decoder) -> dict[str, Any]:
    """The values of `config.json`."""
    family = find_family(model.config.family)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {
        "architectures": [family.architecture],
        "model_type": family.name,
        **family.write_config(model.config),
        **_control_tokens(model.config),
        "dtype": dtype,
        "torch_dtype": dtype,
        **quantization_config(model),
    }


def _control_tokens(config: DecoderConfig) -> dict[str, Any]:
    eos = list(config.eos_ids)
    tokens = {
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
    }
    return {key: value for key, value in tokens.items() if value is not None}


def _split(tensor: Tensor, tensor_map: TensorMap) -> tuple[Tensor, ...]:
    try:
        return tensor_map.split(tensor)
    except (RuntimeError, ValueError, IndexError) as error:
        raise DataError(
            f"tensor {tensor_map.hub} has the unexpected shape {tuple(tensor.shape)}",
            "config.json and the weights are not of the same model",
        ) from error


def _hub_tensors(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    parameters = dict(model.named_parameters())
    for tensor_map in unquantized(find_family(model.config.family).tensors(model.config), parameters):
        yield tensor_map.hub, tensor_map.join([parameters[name].detach() for name in tensor_map.ours]).contiguous()
    yield from quantized_tensors(model)


def _write_weights(tensors: Iterator[tuple[str, Tensor]], directory: Path) -> None:
    """One file, or shards of at most `SHARD_BYTES` with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    shard_bytes = total_bytes = 0
    for name, tensor in tensors:
        if shards[-1] and shard_bytes + tensor.nbytes > SHARD_BYTES:
            shards.append({})
            shard_bytes = 0
        shards[-1][name] = tensor
        shard_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], directory / WEIGHTS, metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    write_json(directory / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


class _TensorFiles:
    """The tensors of a directory, by name, from one file or from shards."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.open_files: dict[str, Any] = {}
        self.file_of: dict[str, str] = {}
        if (directory / INDEX).exists():
            weight_map = read_json(directory / INDEX, "weight index").get("weight_map")
            if not isinstance(weight_map, dict):
                raise DataError(f"{directory / INDEX} has no weight_map", "restore it from the model's source")
            for file in set(weight_map.values()):
                if Path(file).name != file:
                    raise DataError(f"{directory / INDEX} points outside of the directory: {file}", "do not trust it")
            self.file_of = weight_map
        else:
            self.file_of = dict.fromkeys(self._open(WEIGHTS).keys(), WEIGHTS)

    def read(self, name: str) -> Tensor:
        for stored in (name, name.removeprefix("model."), name.removeprefix("transformer.")):
            if stored in self.file_of:
                file = self.file_of[stored]
                try:
                    return self._open(file).get_tensor(stored)
                except SafetensorError as error:
                    raise DataError(f"{self.directory / file} lacks the tensor {stored}: {error}", "") from error
        raise DataError(
            f"{self.directory} has no tensor {name}", "config.json and the weights are not of the same model"
        )

    def _open(self, file: str) -> Any:
        if file not in self.open_files:
            path = self.directory / file
            with reading(path, "weights file"):
                path.open("rb").close()
            try:
                self.open_files[file] = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise DataError(
                    f"weights file {path} is broken or truncated: {error}", "copy or download it again"
                ) from error
        return self.open_files[file]
