"""Quantized weights in a model, by module replacement: which modules, how, and back again.

The rule. Every linear layer is quantized with the same bits and groups. The token embedding and the output matrix
(one table in most small models, and then the most sensitive weights of all) have bits of their own: by default 6
beside 4, and 8 beside 8. Norms, biases and learned positions stay as they are. Groups run along a row; where the
row's length is no multiple of the group size, the largest smaller group that fits is taken (576 inputs in groups of
128: groups of 64), and a row that has not even groups of 32 leaves its module as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tallow.errors import UsageError
from tallow.kernels.quantized import QuantizedWeight, dequantize, quantize_groups
from tallow.models.blocks.linear import Linear
from tallow.models.blocks.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedModule
from tallow.models.decoder import Decoder, Embedding

SMALLEST_GROUP = 32
TABLE_BITS = {4: 6, 8: 8}
"""Bits of the token embedding and the output matrix that go with those of the linear layers."""
TableBits = int | Literal["auto"] | None


@dataclass(frozen=True)
class Target:
    """A linear layer or embedding of a model, by name, and how its weight is to be stored."""

    name: str
    bits: int
    group_size: int


def quantization_targets(
    model: Decoder,
    bits: int,
    group_size: int,
    *,
    embedding_bits: TableBits = "auto",
    skip: Sequence[str] = (),
) -> list[Target]:
    """All modules that can be quantized, in the model's order.

    Args:
        bits: 4, 6 or 8, of the linear layers.
        group_size: Inputs that share a scale: a multiple of 32. A row that it does not divide gets a smaller one.
        embedding_bits: 4, 6 or 8, of the token embedding and the output matrix; None leaves them as they are, `auto`
            takes those of `TABLE_BITS`.
        skip: Names of modules to leave as they are, with all below them (`lm_head`, `layers.0`).

    Raises:
        UsageError: The model has experts, is quantized already, or `skip` names no module of it.
    """
    if model.config.num_experts:
        raise UsageError("models with experts cannot be quantized", "use bf16")
    if quantized_modules(model):
        raise UsageError("the model is quantized already", "start from the model that it was made of")
    names = dict(model.named_modules())
    if unknown := [name for name in skip if name not in names]:
        raise UsageError(f"the model has no module {unknown[0]} to skip", f"e.g. {', '.join(list(names)[1:4])}")
    targets = []
    for name, module in names.items():
        if not isinstance(module, nn.Linear | Embedding) or any(f"{name}.".startswith(f"{part}.") for part in skip):
            continue
        module_bits = _module_bits(name, module, bits, embedding_bits)
        group = math.gcd(module.weight.shape[1], group_size)
        if module_bits is not None and group % SMALLEST_GROUP == 0:
            targets.append(Target(name, module_bits, group))
    return targets


def quantize_modules(
    model: Decoder,
    bits: int,
    group_size: int,
    *,
    embedding_bits: TableBits = "auto",
    skip: Sequence[str] = (),
) -> Decoder:
    """Round the weights of a model to the nearest codes, in place, one module after the other.

    The arguments and errors are those of `quantization_targets` and of `kernels.quantize_groups`.
    """
    for target in quantization_targets(model, bits, group_size, embedding_bits=embedding_bits, skip=skip):
        weight = plain_weight(model, target.name)
        replace_weight(model, target.name, quantize_groups(weight, target.bits, target.group_size))
    return model


def requantize_modules(model: Decoder, bits: int, group_size: int, *, embedding_bits: TableBits = "auto") -> Decoder:
    """Round the weights of a quantized model anew, in place, one module after the other.

    Modules that are not quantized stay so, and those that have the bits already keep their codes. What the first
    rounding has lost does not come back.
    """
    for name, module in quantized_modules(model).items():
        module_bits = _module_bits(name, module, bits, embedding_bits)
        if module_bits not in (None, module.weight.bits):
            group = math.gcd(module.weight.in_features, group_size)
            replace_weight(model, name, quantize_groups(dequantize(module.weight), module_bits, group))
    return model


def dequantize_modules(model: Decoder, dtype: torch.dtype) -> Decoder:
    """Put plain modules, with the weights that the codes stand for, in the place of all quantized ones; in place."""
    for name, module in quantized_modules(model).items():
        weight_OI = nn.Parameter(dequantize(module.weight, dtype))
        with torch.device("meta"):  # without memory for the weight that is replaced at once
            if isinstance(module, QuantizedEmbedding):
                plain = Embedding(module.num_embeddings, module.embedding_dim)
            else:
                assert isinstance(module, QuantizedLinear)
                plain = Linear(module.in_features, module.out_features, bias=False)
                plain.register_parameter("bias", module.bias)
        plain.weight = weight_OI
        model.set_submodule(name, plain.train(module.training))
    return model


def plain_weight(model: Decoder, name: str) -> Tensor:
    """The weight of a linear layer or embedding that is not quantized, O × I."""
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear | nn.Embedding)
    return module.weight.detach()


def replace_weight(model: Decoder, name: str, weight: QuantizedWeight) -> None:
    """Put a quantized module in the place of a linear layer or embedding; its old weight is let go."""
    module = model.get_submodule(name)
    if isinstance(module, Embedding | QuantizedEmbedding):
        dtype = module.dtype if isinstance(module, QuantizedEmbedding) else module.weight.dtype
        replacement = QuantizedEmbedding(weight, dtype)
    else:
        assert isinstance(module, nn.Linear | QuantizedLinear)
        replacement = QuantizedLinear(weight, module.bias)
    model.set_submodule(name, replacement.train(module.training))


def quantized_modules(model: Decoder) -> dict[str, QuantizedModule]:
    """The quantized modules of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedModule)}


def quantized_bits(model: Decoder) -> int | None:
    """The bits of most quantized modules of a model; None if it has none."""
    bits = Counter(module.weight.bits for module in quantized_modules(model).values())
    return bits.most_common(1)[0][0] if bits else None


def dequantized_state(model: Decoder) -> Mapping[str, Tensor]:
    """The parameters of a model under the names of an unquantized one, each quantized weight unpacked when asked for.

    An unpacked weight is float32. Rounding it again in the same bits (8 or 6) and groups gives the codes that it
    came from.
    """
    return _DequantizedState(model)


def model_bytes(model: Decoder) -> int:
    """Bytes of all weights, as they are stored; a tied embedding counts once."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def num_weights(model: Decoder) -> int:
    """Number of weights, quantized ones included; a tied embedding counts once."""
    quantized = (module.weight for module in quantized_modules(model).values())
    return model.num_parameters() + sum(weight.out_features * weight.in_features for weight in quantized)


def _module_bits(name: str, module: nn.Module, bits: int, embedding_bits: TableBits) -> int | None:
    """What the weight of a module is to be stored in; None leaves it as it is."""
    if not isinstance(module, Embedding | QuantizedEmbedding) and name != "lm_head":
        return bits
    return TABLE_BITS.get(bits, bits) if embedding_bits == "auto" else embedding_bits


class _DequantizedState(Mapping[str, Tensor]):
    def __init__(self, model: Decoder) -> None:
        self.parameters = dict(model.named_parameters())
        self.quantized = {f"{name}.weight": module for name, module in quantized_modules(model).items()}

    def __getitem__(self, name: str) -> Tensor:
        if name in self.quantized:
            return dequantize(self.quantized[name].weight, torch.float32)
        return self.parameters[name].detach()

    def __iter__(self) -> Iterator[str]:
        yield from self.parameters
        yield from self.quantized

    def __len__(self) -> int:
        return len(self.parameters) + len(self.quantized)
