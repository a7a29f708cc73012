"""Shape of a bidirectional encoder."""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveFloat, model_validator

from tallow.models.config import MAX_LAYERS, Activation, DecoderConfig, Size
from tallow.recipe import Section


class EncoderConfig(Section):
    """Shape of an encoder as BERT has it (arXiv 1810.04805); the defaults are a small one.

    Args:
        family: The hub format that it is saved as (`bert`).
        vocab_size: Rows of the embedding; a recipe may leave 0, meaning "as the tokenizer says".
        hidden_size: Entries of the vector that stands for a token between layers; a multiple of `num_heads`.
        num_layers: Layers, each an attention and a feed-forward.
        num_heads: Attention heads.
        intermediate_size: Inner size of the feed-forward.
        max_positions: Rows of the table of positions: the longest sequence, in tokens.
        num_token_types: Rows of the table of token types, which tell the texts of a pair apart.
        norm_eps: Added to the variance before the root.
        activation: Of the feed-forward and of the output layer.
        pad_id: The token that fills up rows of a batch, if there is one.
    """

    family: str = "bert"
    vocab_size: int = Field(default=0, ge=0, lt=2**31)
    hidden_size: Size = 256
    num_layers: int = Field(default=6, gt=0, le=MAX_LAYERS)
    num_heads: Size = 4
    intermediate_size: Size = 1024
    max_positions: Size = 512
    num_token_types: Size = 2
    norm_eps: PositiveFloat = 1e-12
    activation: Activation = "gelu"
    pad_id: int | None = None

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        return self

    def for_blocks(self) -> DecoderConfig:
        """The same shape under the names by which blocks know it, with those choices that BERT has made."""
        return DecoderConfig(
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_heads,
            intermediate_size=self.intermediate_size,
            max_positions=self.max_positions,
            norm="layer",
            norm_eps=self.norm_eps,
            norm_bias=True,
            qkv_bias=True,
            attention_output_bias=True,
            feed_forward_bias=True,
            gated=False,
            activation=self.activation,
            positions="learned",
        )
