"""Normalization over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tallow.kernels.fused import operand_dtype, rms_norm
from tallow.models.config import DecoderConfig


class RMSNorm(nn.Module):
    """`x / rms(x) · weight` (arXiv 1910.07467); with `offset`, `· (1 + weight)` as Gemma stores it.

    Args:
        operand: Only matrix products read the result, so it may be rounded as they round it.
    """

    def __init__(self, size: int, eps: float, offset: bool = False, operand: bool = False) -> None:
        super().__init__()
        self.eps, self.offset, self.operand = eps, offset, operand
        self.weight = nn.Parameter(torch.zeros(size) if offset else torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if not self.offset:
            return rms_norm(x, self.weight, self.eps, operand_dtype(x) if self.operand else None)
        # these round once, after the multiplication
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalization (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float, bias: bool) -> None:
        super().__init__(size, eps=eps, bias=bias)


def make_norm(config: DecoderConfig, size: int | None = None, operand: bool = False) -> RMSNorm | LayerNorm:
    """The norm that `config` names, over `size` (default: the hidden size); `operand` as of `RMSNorm`."""
    size = size or config.hidden_size
    if config.norm == "rms":
        return RMSNorm(size, config.norm_eps, config.norm_offset, operand)
    return LayerNorm(size, config.norm_eps, config.norm_bias)
