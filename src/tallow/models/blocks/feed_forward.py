"""Position-wise feed-forward layers, gated and plain."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tallow.models.blocks.linear import Linear
from tallow.models.config import DecoderConfig


class FeedForward(nn.Module):
    """`down(act(gate(x)) · up(x))` (arXiv 2002.05202), or `down(act(up(x)))` when not gated."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.feed_forward_bias
        self.gate_proj = Linear(hidden, inner, bias=bias) if config.gated else None
        self.up_proj = Linear(hidden, inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)
        self.activation = config.activation

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(self._activate(self.up_proj(x_BTD)))
        return self.down_proj(self._activate(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "silu":
            return F.silu(x)
        return F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none")
