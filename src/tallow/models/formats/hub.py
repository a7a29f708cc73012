"""Model directories as on the Hugging Face hub: `config.json` and safetensors, in one file or sharded.

Tensors are mapped from the files, not copied; a page that is written to (training) becomes private.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from tallow.console import say
from tallow.errors import DataError
from tallow.files import atomic_directory, fingerprint_files, read_json, write_json
from tallow.models.blocks.quantized import QuantizedEmbedding
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.families import Family, TensorMap, find_family
from tallow.models.families.family import AS_IS
from tallow.models.families.fields import write_control_tokens
from tallow.models.formats.quantized import (
    quantization_config,
    quantized_names,
    quantized_tensors,
    replace_stored,
    unquantized,
)
from tallow.models.formats.tensor_files import TensorFiles, write_tensor_files
from tallow.models.stored import StoredModel
from tallow.tokenizer.tokenizer import Tokenizer

CONFIG = "config.json"
GENERATION = "generation_config.json"
CONTROL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_config(directory: Path) -> DecoderConfig:
    """The shape of a model directory, with the control tokens of `generation_config.json` where it has one.

    Raises:
        DataError: config.json is missing, broken, of an unsupported family, or contradicts itself.
    """
    path = directory / CONFIG
    values = read_json(path, "model config")
    if (directory / GENERATION).exists():
        given = read_json(directory / GENERATION, "generation config")
        values |= {key: given[key] for key in CONTROL_TOKENS if given.get(key) is not None}
    if "model_type" not in values:
        raise DataError(f"{path} names no model_type", "restore it from the model's source")
    try:
        config = find_family(str(values["model_type"])).read_config(values)
        _warn_of_unreachable_ends(config, path)
        return config
    except KeyError as error:
        problem = f"it has no {error.args[0]}"
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join((".".join(str(part) for part in first["loc"]), first["msg"])).removeprefix(": ")
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        problem = str(error)
    raise DataError(f"{path} does not describe a model: {problem}", "restore it from the model's source")


class HubModel(StoredModel):
    """A model directory.

    Raises:
        DataError: A file is missing, truncated or broken, or tensors and config.json disagree.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self.files = directory, fingerprint_files(directory)
        config = read_config(directory)
        self._stored = stored = TensorFiles(directory)
        self._family = family = find_family(config.family).of_files(stored.unread)
        model = _without_memory(config, stored, family.tensors_per_layer(config))
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        tensor_maps = family.tensors(config, self._shapes)
        for name in quantized_names(read_json(directory / CONFIG, "model config")):
            replace_stored(model, name, stored.read)
        self._quantized = dict(quantized_tensors(model))
        self._maps = list(unquantized(tensor_maps, {name for name, _ in model.named_parameters()}))
        self._maps_of: dict[str, list[TensorMap]] = {}
        for tensor_map in self._maps:
            for name in tensor_map.ours:
                self._maps_of.setdefault(name, []).append(tensor_map)
        self._dtype = stored.read_weight(family.spellings(self._maps[0].hub)).dtype
        for tensor_map in self._maps:
            stored.find(family.spellings(tensor_map.hub))
        _refuse_unexplained(stored, family)
        self.model = model.to("meta", self._dtype).eval()

    def read(self, name: str) -> Tensor:
        if name in self._quantized:
            return self._stored.read(name, alone=True)
        state: dict[str, Tensor] = {}
        for tensor_map in self._maps_of[name]:
            tensor = self._stored.read_weight(self._family.spellings(tensor_map.hub), self._dtype, alone=True)
            part = _split(tensor, tensor_map, self._shapes)[tensor_map.ours.index(name)]
            self._put(state, name, part, tensor_map.expert)
        return state[name]

    def load(self, dtype: torch.dtype | None = None) -> Decoder:
        """As `StoredModel` says. Where tensors are of several dtypes, all become that of the first."""
        state = dict(self._quantized)
        for tensor_map in self._maps:
            spellings, copied = self._family.spellings(tensor_map.hub), tensor_map.layout is not AS_IS
            copied = copied or tensor_map.expert is not None
            tensor = self._stored.read_weight(spellings, dtype or self._dtype, alone=copied)
            for name, part in zip(tensor_map.ours, _split(tensor, tensor_map, self._shapes), strict=True):
                # contiguous, as fused optimizers take it to be without a check
                self._put(state, name, part.contiguous(), tensor_map.expert)
        self.model.load_state_dict(state, assign=True)
        if isinstance(self.model.embed, QuantizedEmbedding):
            self.model.embed.dtype = self.model.norm.weight.dtype
        return self.model

    def _put(self, state: dict[str, Tensor], name: str, part: Tensor, expert: int | None) -> None:
        """Put a parameter, or an expert's part of it, into a state."""
        if expert is None:
            state[name] = part
            return
        if name not in state:
            state[name] = part.new_empty(self._shapes[name])
        state[name][expert] = part

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer in the directory.

        Raises:
            DataError: There is none, or it is broken.
        """
        return Tokenizer.load(self._stored.directory)


def load_directory(directory: Path, dtype: torch.dtype | None = None) -> Decoder:
    """Load a model directory; arguments and errors as `HubModel` has them."""
    return HubModel(directory).load(dtype)


def save_directory(model: Decoder, tokenizer: Tokenizer | None, directory: Path) -> None:
    """Write a model directory that `transformers`, vLLM and llama.cpp's converter read; atomic.

    Raises:
        CapacityError: The disk is full.
        UsageError: The place cannot be written, or the model's family cannot express its architecture.
    """
    config = hub_config(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensor_maps = unquantized(find_family(model.config.family).tensors(model.config), parameters)
    plain = {tensor_map.hub: tensor_map for tensor_map in tensor_maps}
    quantized = dict(quantized_tensors(model))
    sizes = {hub: sum(it.part(parameters[name]).nbytes for name in it.ours) for hub, it in plain.items()}
    sizes |= {name: tensor.nbytes for name, tensor in quantized.items()}

    def tensor(name: str) -> Tensor:
        return plain[name].join([parameters[ours] for ours in plain[name].ours]) if name in plain else quantized[name]

    with atomic_directory(directory) as temporary:
        write_json(temporary / CONFIG, config)
        write_json(temporary / GENERATION, write_control_tokens(model.config))
        write_tensor_files(sizes, tensor, temporary)
        if tokenizer is not None:
            tokenizer.save(temporary)


def hub_config(model: Decoder) -> dict[str, Any]:
    """The values of `config.json`.

    Raises:
        UsageError: The model's family cannot express its architecture.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {
        **find_family(model.config.family).hub_config(model.config),
        **write_control_tokens(model.config),
        "dtype": dtype,
        "torch_dtype": dtype,
        **quantization_config(model),
    }


def _warn_of_unreachable_ends(config: DecoderConfig, path: Path) -> None:
    """Say so where a text cannot end as the file has it; models without training are saved like that."""
    for token in config.eos_ids:
        if not 0 <= token < config.vocab_size:
            say(f"{path}: eos_token_id {token} is not in the vocabulary of {config.vocab_size:,}, so it ends no text")


def _without_memory(config: DecoderConfig, stored: TensorFiles, tensors_per_layer: int) -> Decoder:
    """The decoder on the meta device, once the files can be those of one so large."""
    if config.num_layers * tensors_per_layer > len(stored):
        what = f"{config.num_layers} layers" + (f" of {config.num_experts} experts" if config.num_experts else "")
        raise DataError(
            f"{stored.directory / CONFIG} says {what}, but there are only {len(stored)} tensors",
            "config.json and the weights are not of the same model",
        )
    try:
        with torch.device("meta"):
            return Decoder(config)
    except RuntimeError as error:
        raise DataError(
            f"{stored.directory / CONFIG} describes matrices too large to exist", "restore it from the model's source"
        ) from error


def _split(tensor: Tensor, tensor_map: TensorMap, shapes: Mapping[str, torch.Size]) -> tuple[Tensor, ...]:
    """Our parameters in a stored tensor, once they are of these shapes."""
    wanted = [shapes[name] if tensor_map.expert is None else shapes[name][1:] for name in tensor_map.ours]
    try:
        parts = tensor_map.split(tensor)
    except (RuntimeError, ValueError, IndexError):
        parts = ()
    if [part.shape for part in parts] != wanted:
        text = ", ".join(f"{name} {tuple(shape)}" for name, shape in zip(tensor_map.ours, wanted, strict=True))
        raise DataError(
            f"tensor {tensor_map.hub} has the shape {tuple(tensor.shape)}, but config.json asks it to hold {text}",
            "config.json and the weights are not of the same model",
        )
    return parts


def _refuse_unexplained(stored: TensorFiles, family: Family) -> None:
    """A weight of a layer that nothing has read would silently be left out of the computation."""
    layers = tuple(f"{spelling}." for spelling in family.spellings(family.outside["layers"]))
    for name in sorted(stored.unread):
        if name.startswith(layers) and not name.endswith(family.ignored):
            raise DataError(
                f"{stored.directory} holds the tensor {name}, which a {family.name} model of this config.json lacks",
                "config.json and the weights are not of the same model",
            )
