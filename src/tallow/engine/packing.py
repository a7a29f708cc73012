"""Weights in the layout in which the processor multiplies them fastest.

For few rows, oneDNN's product with a bf16 weight that lies row after row takes 1.5 to 2 times as long as with one in
its own blocked layout. So a model that is loaded to generate keeps its bf16 weights in that layout as well. They then
take the memory of fp32, unless they are mapped from a file, whose pages the system may drop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tallow.models.blocks.linear import Linear
from tallow.models.decoder import Decoder, Embedding

ROWS = 64
"""The number of rows that the layout is chosen for; it serves any number."""


def pack_weights(model: Decoder) -> Decoder:
    """Pack the bf16 weights of a model's matrix products, in place, where its processor has them; returns it.

    The parameters stay what they are; while gradients are asked for, or once a weight has been changed, the
    products are those of the plain layers.
    """
    if not torch.backends.mkldnn.is_available():
        return model
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and _fits(module.weight):
            model.set_submodule(name, PackedLinear(module))
    if model.lm_head is None and isinstance(model.embed, Embedding) and _fits(model.embed.weight):
        model.embed = PackedEmbedding(model.embed)
    return model


class PackedWeight:
    """A copy of a weight, O × I, in oneDNN's layout."""

    def __init__(self, weight_OI: Tensor) -> None:
        self._source_OI = weight_OI.detach()
        self._version = weight_OI._version
        self._blocks = torch.ops.mkldnn._reorder_linear_weight(self._source_OI, ROWS)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Copies of a module go without: oneDNN's memory cannot be copied."""

    def stands_for(self, weight_OI: Tensor) -> bool:
        """Whether a product may use this copy: no gradients, and the weight is still what was packed."""
        return (
            not torch.is_grad_enabled()
            and weight_OI.data_ptr() == self._source_OI.data_ptr()
            and weight_OI._version == self._version
        )

    def product(self, x_BTI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_BTI, self._blocks, bias_O, "none", [], "")


class PackedLinear(Linear):
    """A linear layer with the parameters of `plain`."""

    def __init__(self, plain: Linear) -> None:
        with torch.device("meta"):
            super().__init__(plain.in_features, plain.out_features, bias=plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        self._packed: PackedWeight | None = PackedWeight(plain.weight)

    def forward(self, input: Tensor) -> Tensor:
        packed = self._packed
        if packed is not None and packed.stands_for(self.weight):
            return packed.product(input, self.bias)
        return super().forward(input)


class PackedEmbedding(Embedding):
    """A table of token vectors with the parameters of `plain`, packed for its use as the output matrix."""

    def __init__(self, plain: Embedding) -> None:
        with torch.device("meta"):
            super().__init__(plain.num_embeddings, plain.embedding_dim)
        self.weight = plain.weight
        self._packed: PackedWeight | None = PackedWeight(plain.weight)

    def project(self, hidden_BTD: Tensor) -> Tensor:
        packed = self._packed
        if packed is not None and packed.stands_for(self.weight):
            return packed.product(hidden_BTD)
        return super().project(hidden_BTD)


def _fits(weight: Tensor) -> bool:
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
