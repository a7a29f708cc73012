"""Normalization over the last dimension."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tallow.kernels.fused import rms_norm
from tallow.models.config import DecoderConfig


class RMSNorm(nn.Module):
    """`x / rms(x) · weight` (arXiv 1910.07467); with `offset`, `· (1 + weight)` as Gemma stores it."""

    def __init__(self, size: int, eps: float, offset: bool = False) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.zeros(size) if offset else torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        if not self.offset:
            return rms_norm(x, self.weight, self.eps)
        # these round once, after the multiplication
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer normalization (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float, bias: bool) -> None:
        super().__init__(size, eps=eps, bias=bias)


def make_norm(config: DecoderConfig, size: int | None = None) -> RMSNorm | LayerNorm:
    """The norm that `config` names, over `size` (default: the hidden size)."""
    size = size or config.hidden_size
    if config.norm == "rms":
        return RMSNorm(size, config.norm_eps, config.norm_offset)
    return LayerNorm(size, config.norm_eps, config.norm_bias)
