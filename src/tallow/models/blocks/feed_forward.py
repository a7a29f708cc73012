"""Position-wise feed-forward layers, gated and plain."""

from __future__ import annotations

from torch import Tensor, nn

from tallow.kernels import fused
from tallow.models.blocks.context import Context
from tallow.models.blocks.linear import Linear
from tallow.models.config import Activation, DecoderConfig


class FeedForward(nn.Module):
    """`down(act(gate(x)) · up(x))` (arXiv 2002.05202), or `down(act(up(x)))` when not gated."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.feed_forward_bias
        self.gate_proj = Linear(hidden, inner, bias=bias) if config.gated else None
        self.up_proj = Linear(hidden, inner, bias=bias)
        self.down_proj = Linear(inner, hidden, bias=bias)
        self.activation: Activation = config.activation

    def forward(self, x_BTD: Tensor, _context: Context) -> Tensor:
        if self.gate_proj is None:
            return self.down_proj(fused.activate(self.up_proj(x_BTD), self.activation))
        x_BTD = fused.operand(x_BTD)
        return fused.gated((self.gate_proj(x_BTD), self.up_proj(x_BTD)), self.activation, self.down_proj)
