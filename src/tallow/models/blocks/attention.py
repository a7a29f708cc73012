"""Multi-head, grouped-query and multi-query self-attention."""

from __future__ import annotations

from torch import Tensor, nn

from tallow.kernels.fused import operand
from tallow.models.blocks.context import AttentionSpec, Context
from tallow.models.blocks.linear import Linear
from tallow.models.blocks.norms import make_norm
from tallow.models.blocks.positions import Rotation, rotate
from tallow.models.config import DecoderConfig


class Attention(nn.Module):
    """Self-attention of one layer (arXiv 1706.03762; grouped keys and values: 2305.13245)."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_size = config.num_heads, config.num_kv_heads, config.head_size
        query_size, kv_size = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        self.q_proj = Linear(config.hidden_size, query_size, bias=config.qkv_bias)
        self.k_proj = Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.v_proj = Linear(config.hidden_size, kv_size, bias=config.qkv_bias)
        self.o_proj = Linear(query_size, config.hidden_size, bias=config.attention_output_bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.q_norm = make_norm(config, self.head_size if per_head else query_size)
            self.k_norm = make_norm(config, self.head_size if per_head else kv_size)
        self.spec = AttentionSpec(
            layer=layer,
            scale=config.attention_scale or self.head_size**-0.5,
            window=config.layer_window(layer),
            softcap=config.attention_softcap,
        )

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, context: Context) -> Tensor:
        x_BTD = operand(x_BTD)
        q, k, v_BKTd = self.q_proj(x_BTD), self.k_proj(x_BTD), self._heads(self.v_proj(x_BTD))
        if self.qk_norm == "hidden":
            q, k = self.q_norm(q), self.k_norm(k)
        q_BHTd, k_BKTd = self._heads(q), self._heads(k)
        if self.qk_norm == "head":
            q_BHTd, k_BKTd = self.q_norm(q_BHTd), self.k_norm(k_BKTd)
        if rotation is not None:
            q_BHTd, k_BKTd = rotate(q_BHTd, rotation), rotate(k_BKTd, rotation)
        out_BHTd = context.attend(self.spec, q_BHTd, k_BKTd, v_BKTd)
        return self.o_proj(out_BHTd.transpose(1, 2).flatten(2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
