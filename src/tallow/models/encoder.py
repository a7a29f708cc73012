"""The skeleton of bidirectional encoders: embeddings, layers with norms after each sub-layer, masked-token logits.

As the decoder, it knows nothing of processes, devices, precision or documents: what attention sees comes with the
context.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tallow.kernels.fused import activate
from tallow.models.blocks.attention import Attention
from tallow.models.blocks.context import Context
from tallow.models.blocks.feed_forward import FeedForward
from tallow.models.blocks.linear import Linear, Table
from tallow.models.blocks.norms import make_norm
from tallow.models.config import Activation, DecoderConfig
from tallow.models.decoder import Embedding
from tallow.models.encoder_config import EncoderConfig
from tallow.models.initialization import initialize_normal


class EncoderLayer(nn.Module):
    """Attention and feed-forward; each residual sum is normalized (arXiv 1706.03762, section 3.1)."""

    def __init__(self, blocks: DecoderConfig, index: int) -> None:
        super().__init__()
        self.attention = Attention(blocks, index)
        self.attention_norm = make_norm(blocks)
        self.feed_forward = FeedForward(blocks)
        self.feed_forward_norm = make_norm(blocks)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, None, context))
        return self.feed_forward_norm(x_BTD + self.feed_forward(x_BTD, context))


class MaskedHead(nn.Module):
    """Logits of the token at each place: a layer of its own, then the token embedding, then a bias for each token."""

    def __init__(self, blocks: DecoderConfig, vocab_size: int) -> None:
        super().__init__()
        self.dense = Linear(blocks.hidden_size, blocks.hidden_size)
        self.norm = make_norm(blocks)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.activation: Activation = blocks.activation

    def forward(self, hidden_BTD: Tensor, embed: Embedding) -> Tensor:
        return embed.project(self.norm(activate(self.dense(hidden_BTD), self.activation))) + self.bias


class Encoder(nn.Module):
    """A masked language model (BERT; arXiv 1810.04805), without dropout and without next-sentence prediction.

    Args:
        config: Its shape.
        head: Whether it has logits; an encoder for embeddings has none.
    """

    def __init__(self, config: EncoderConfig, head: bool = True) -> None:
        super().__init__()
        blocks = config.for_blocks()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = Table(config.max_positions, config.hidden_size)
        self.embed_types = Table(config.num_token_types, config.hidden_size)
        self.embed_norm = make_norm(blocks)
        self.layers = nn.ModuleList(EncoderLayer(blocks, index) for index in range(config.num_layers))
        self.head = MaskedHead(blocks, config.vocab_size) if head else None

    def forward(self, inputs_BT: Tensor, context: Context, types_BT: Tensor | None = None) -> Tensor:
        """Hidden states after the last layer, B T D.

        Args:
            inputs_BT: Token ids, int64.
            context: Positions, and which tokens see which.
            types_BT: Token types, int64; None: all are of type 0.
        """
        x_BTD = self.begin(inputs_BT, context, types_BT)
        return self.finish(self.through(x_BTD, context, range(len(self.layers))))

    def begin(self, inputs_BT: Tensor, context: Context, types_BT: Tensor | None = None) -> Tensor:
        """What the first layer is given, B T D."""
        types_BT = torch.zeros_like(inputs_BT) if types_BT is None else types_BT
        x_BTD = self.embed(inputs_BT) + self.embed_types(types_BT) + self.embed_positions(context.positions_BT)
        return self.embed_norm(x_BTD)

    def through(self, x_BTD: Tensor, context: Context, layers: range) -> Tensor:
        """What these layers, which follow one another, make of what the first of them is given, B T D."""
        for index in layers:
            x_BTD = self.layers[index](x_BTD, context)
        return x_BTD

    def finish(self, x_BTD: Tensor) -> Tensor:
        """Hidden states, B T D, of what the last layer gives: as they are."""
        return x_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalized log-probabilities of the token at each place itself, B T V."""
        assert self.head is not None, "this encoder has no head"
        return self.head(hidden_BTD, self.embed)

    def num_parameters(self) -> int:
        """Number of weights; the embedding, which is the output matrix too, counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def initialize_encoder(model: Encoder, seed: int) -> None:
    """Random weights from `seed`, as encoders usually start (`models/initialization.py` has other ways)."""
    initialize_normal(model, model.config, seed)
