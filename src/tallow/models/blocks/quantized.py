"""Linear layers and embeddings with quantized weights; they stand in for the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from tallow.kernels.quantized import QuantizedWeight, dequantize, quantized_linear


class QuantizedModule(nn.Module):
    """A module around a quantized weight.

    The weight's codes and scales are buffers: they are stored and change devices with the module. Casting the
    module to a floating-point type leaves them as they are, for the scales are float16 by definition.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scales", weight.scales)
        self._weight = weight

    @property
    def weight(self) -> QuantizedWeight:
        """The codes and scales as one; kept, as it is asked for with every token, until they are exchanged."""
        weight = self._weight
        if weight.codes is not self.codes or weight.scales is not self.scales:
            weight = self._weight = QuantizedWeight(self.codes, self.scales, weight.bits, weight.group_size)
        return weight

    def extra_repr(self) -> str:
        weight = self._weight
        return f"{weight.in_features} → {weight.out_features}, {weight.bits} bits, groups of {weight.group_size}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != scales.dtype:
            self.scales = scales.to(self.scales.device)
        self._weight = QuantizedWeight(self.codes, self.scales, self._weight.bits, self._weight.group_size)
        return self


class QuantizedLinear(QuantizedModule):
    """A linear layer whose weight, O × I, is quantized; inputs, bias and outputs are floating point."""

    def __init__(self, weight: QuantizedWeight, bias_O: nn.Parameter | None = None) -> None:
        super().__init__(weight)
        self.bias = bias_O
        self.in_features, self.out_features = weight.in_features, weight.out_features

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.weight, self.bias)


class QuantizedEmbedding(QuantizedModule):
    """A quantized table of token vectors, V × D, that also serves as the output matrix where the two are tied.

    Args:
        weight: V outputs by D inputs.
        dtype: Of the vectors that a lookup gives; casting the module changes it.
    """

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight)
        self.dtype = dtype
        self.num_embeddings, self.embedding_dim = weight.out_features, weight.in_features

    def forward(self, ids: Tensor) -> Tensor:
        """Token vectors, the shape of `ids` and D; only the rows that are looked up are unpacked."""
        weight, rows = self.weight, ids.flatten()
        chosen = QuantizedWeight(
            weight.codes.index_select(0, rows), weight.scales.index_select(0, rows), weight.bits, weight.group_size
        )
        return dequantize(chosen, self.dtype).view(*ids.shape, self.embedding_dim)

    def project(self, hidden_BTD: Tensor) -> Tensor:
        """Logits, B T V."""
        return quantized_linear(hidden_BTD, self.weight)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.codes.device)).dtype
        return super()._apply(fn, recurse)
