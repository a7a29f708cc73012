"""Model directories as on the Hugging Face hub: `config.json` and safetensors, in one file or sharded.

Tensors are mapped from the files, not copied; a page that is written to (training) becomes private.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from tallow.console import say
from tallow.errors import DataError, UsageError
from tallow.files import atomic_directory, fingerprint_files, read_json, write_json
from tallow.models.blocks.quantized import QuantizedEmbedding
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.encoder import Encoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.families import ENCODERS, family_of, find_encoder_family, find_family
from tallow.models.families.fields import write_control_tokens
from tallow.models.formats.mapped_tensors import MappedTensors
from tallow.models.formats.quantized import (
    quantization_config,
    quantized_names,
    quantized_tensors,
    replace_stored,
    unquantized,
)
from tallow.models.formats.tensor_files import TensorFiles, write_tensor_files
from tallow.models.skeletons import Model
from tallow.models.stored import StoredModel
from tallow.models.tagger import Tagger
from tallow.tokenizer.tokenizer import Tokenizer

CONFIG = "config.json"
GENERATION = "generation_config.json"
CONTROL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
Config = TypeVar("Config", DecoderConfig, EncoderConfig)
Skeleton = TypeVar("Skeleton", bound=Model)
AnyEncoder = TypeVar("AnyEncoder", bound=Encoder)


def read_config(directory: Path) -> DecoderConfig:
    """The shape of a decoder's directory, with the control tokens of `generation_config.json` where it has one.

    Raises:
        DataError: config.json is missing, broken, of an unsupported family, or contradicts itself.
        UsageError: It is an encoder's.
    """
    values = _read_values(directory)
    if values["model_type"] in ENCODERS:
        raise UsageError(
            f"{directory} is an encoder ({values['model_type']}): it fills in masked tokens and cannot continue a text",
            "name a causal language model",
        )
    config = _parse(directory, lambda: find_family(values["model_type"]).read_config(values))
    _warn_of_unreachable_ends(config, directory / CONFIG)
    return config


def read_encoder_config(directory: Path) -> EncoderConfig:
    """The shape of an encoder's directory.

    Raises:
        DataError: config.json is missing, broken, of an unsupported family, or contradicts itself.
        UsageError: It is a decoder's.
    """
    values = _read_values(directory)
    if values["model_type"] not in ENCODERS:
        raise UsageError(
            f"{directory} is of type {values['model_type']} and no encoder", f"encoders are: {', '.join(ENCODERS)}"
        )
    return _parse(directory, lambda: find_encoder_family(values["model_type"]).read_config(values))


def read_labels(directory: Path) -> tuple[str, ...]:
    """What the logits of a tagger stand for, as `id2label` of config.json says.

    Raises:
        DataError: config.json is missing or broken, or it is no tagger's.
    """
    given = _read_values(directory).get("id2label")
    labels = [given.get(str(number)) for number in range(len(given))] if isinstance(given, dict) else []
    named = tuple(label for label in labels if isinstance(label, str))
    if not labels or len(named) < len(labels):
        raise DataError(
            f"{directory / CONFIG} does not say what labels tokens get (id2label)", "name a token-classification model"
        )
    return named


def is_encoder(directory: Path) -> bool:
    """Whether a model directory holds an encoder, which cannot continue a text.

    Raises:
        DataError: config.json is missing or broken.
    """
    return _read_values(directory)["model_type"] in ENCODERS


def _read_values(directory: Path) -> dict[str, Any]:
    """What config.json says, which names a `model_type`."""
    path = directory / CONFIG
    values = read_json(path, "model config")
    if (directory / GENERATION).exists():
        given = read_json(directory / GENERATION, "generation config")
        values |= {key: given[key] for key in CONTROL_TOKENS if given.get(key) is not None}
    if "model_type" not in values:
        raise DataError(f"{path} names no model_type", "restore it from the model's source")
    return values | {"model_type": str(values["model_type"])}


def _parse(directory: Path, read: Callable[[], Config]) -> Config:
    """What `read` makes of config.json.

    Raises:
        DataError: It does not describe a model.
    """
    try:
        return read()
    except KeyError as error:
        problem = f"it has no {error.args[0]}"
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join((".".join(str(part) for part in first["loc"]), first["msg"])).removeprefix(": ")
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        problem = str(error)
    path = directory / CONFIG
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
        family = find_family(config.family).of_files(stored.unread)
        model = _without_memory(Decoder, config, stored, family.tensors_per_layer(config))
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        for name in quantized_names(read_json(directory / CONFIG, "model config")):
            replace_stored(model, name, stored.read)
        self._quantized = dict(quantized_tensors(model))
        maps = unquantized(family.tensors(config, shapes), {name for name, _ in model.named_parameters()})
        self._tensors = MappedTensors(stored, family, maps, shapes)
        self.model = model.to("meta", self._tensors.dtype).eval()

    def read(self, name: str) -> Tensor:
        if name in self._quantized:
            return self._stored.read(name, alone=True)
        return self._tensors.read(name)

    def load(self, dtype: torch.dtype | None = None) -> Decoder:
        """As `StoredModel` says. Where tensors are of several dtypes, all become that of the first."""
        self.model.load_state_dict({**self._quantized, **self._tensors.read_all(dtype)}, assign=True)
        if isinstance(self.model.embed, QuantizedEmbedding):
            self.model.embed.dtype = self.model.norm.weight.dtype
        return self.model

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer in the directory.

        Raises:
            DataError: There is none, or it is broken.
        """
        return Tokenizer.load(self._stored.directory)


def load_directory(directory: Path, dtype: torch.dtype | None = None) -> Decoder:
    """Load a model directory; arguments and errors as `HubModel` has them."""
    return HubModel(directory).load(dtype)


def load_encoder_directory(directory: Path, dtype: torch.dtype | None = None, *, head: bool = True) -> Encoder:
    """Load an encoder's directory, its tensors mapped from the file where that can be.

    Args:
        dtype: Of all weights; None: that of the first.
        head: Whether it is to give logits; otherwise only hidden states, whether the files have more or not.

    Raises:
        DataError: A file is missing, truncated or broken, or tensors and config.json disagree.
        UsageError: It is a decoder.
    """
    return _load_encoder(directory, dtype, partial(Encoder, head=head))


def load_tagger_directory(directory: Path, dtype: torch.dtype | None = None) -> Tagger:
    """Load the directory of an encoder that labels tokens, its tensors mapped from the file where that can be.

    Args:
        dtype: Of all weights; None: that of the first.

    Raises:
        DataError: A file is missing, truncated or broken, or tensors and config.json disagree.
        UsageError: It is a decoder.
    """
    return _load_encoder(directory, dtype, partial(Tagger, labels=read_labels(directory)))


def _load_encoder(
    directory: Path, dtype: torch.dtype | None, skeleton: Callable[[EncoderConfig], AnyEncoder]
) -> AnyEncoder:
    config = read_encoder_config(directory)
    family = find_encoder_family(config.family)
    if quantized_names(read_json(directory / CONFIG, "model config")):
        raise DataError(f"{directory} is a quantized encoder, which is not supported", "take the unquantized model")
    stored = TensorFiles(directory)
    model = _without_memory(skeleton, config, stored)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    tensors = MappedTensors(stored, family, family.tensors(config, shapes), shapes)
    model.load_state_dict(tensors.read_all(dtype), assign=True)
    return model.eval()


def save_directory(model: Model, tokenizer: Tokenizer | None, directory: Path) -> None:
    """Write a model directory that `transformers` and, of decoders, vLLM and llama.cpp's converter read; atomic.

    Raises:
        CapacityError: The disk is full.
        UsageError: The place cannot be written, or the model's family cannot express its architecture.
    """
    config = hub_config(model)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    named = parameters if isinstance(model, Encoder) else None  # encoders have several heads, or none
    tensor_maps = unquantized(family_of(model.config).tensors(model.config, named), parameters)
    plain = {tensor_map.hub: tensor_map for tensor_map in tensor_maps}
    quantized = dict(quantized_tensors(model)) if isinstance(model, Decoder) else {}
    sizes = {hub: sum(it.part(parameters[name]).nbytes for name in it.ours) for hub, it in plain.items()}
    sizes |= {name: tensor.nbytes for name, tensor in quantized.items()}

    def tensor(name: str) -> Tensor:
        return plain[name].join([parameters[ours] for ours in plain[name].ours]) if name in plain else quantized[name]

    with atomic_directory(directory) as temporary:
        write_json(temporary / CONFIG, config)
        if isinstance(model, Decoder):
            write_json(temporary / GENERATION, write_control_tokens(model.config))
        write_tensor_files(sizes, tensor, temporary)
        if tokenizer is not None:
            tokenizer.save(temporary)


def hub_config(model: Model) -> dict[str, Any]:
    """The values of `config.json`.

    Raises:
        UsageError: The model's family cannot express its architecture.
    """
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    values = {**family_of(model.config).hub_config(model.config), "dtype": dtype, "torch_dtype": dtype}
    if isinstance(model, Tagger):
        labels = {str(number): label for number, label in enumerate(model.labels)}
        ids = {label: number for number, label in enumerate(model.labels)}
        tagger = find_encoder_family(model.config.family).tagger
        return {**values, "architectures": [tagger], "id2label": labels, "label2id": ids}
    if isinstance(model, Encoder):
        return values
    return {**values, **write_control_tokens(model.config), **quantization_config(model)}


def _warn_of_unreachable_ends(config: DecoderConfig, path: Path) -> None:
    """Say so where a text cannot end as the file has it; models without training are saved like that."""
    for token in config.eos_ids:
        if not 0 <= token < config.vocab_size:
            say(f"{path}: eos_token_id {token} is not in the vocabulary of {config.vocab_size:,}, so it ends no text")


def _without_memory(
    skeleton: Callable[[Config], Skeleton], config: Config, stored: TensorFiles, tensors_per_layer: int = 1
) -> Skeleton:
    """The model on the meta device, once the files can be those of one so large."""
    if config.num_layers * tensors_per_layer > len(stored):
        experts = isinstance(config, DecoderConfig) and config.num_experts
        what = f"{config.num_layers} layers" + (f" of {experts} experts" if experts else "")
        raise DataError(
            f"{stored.directory / CONFIG} says {what}, but there are only {len(stored)} tensors",
            "config.json and the weights are not of the same model",
        )
    try:
        with torch.device("meta"):
            return skeleton(config)
    except RuntimeError as error:
        raise DataError(
            f"{stored.directory / CONFIG} describes matrices too large to exist", "restore it from the model's source"
        ) from error
