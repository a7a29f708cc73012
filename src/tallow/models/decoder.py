"""The one skeleton of every causal decoder: embedding, layers, norm, logits.

It knows nothing of processes, devices, precision or caches: what attention sees comes with the context.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tallow.models.blocks.attention import Attention
from tallow.models.blocks.context import Context
from tallow.models.blocks.feed_forward import FeedForward
from tallow.models.blocks.linear import Linear, Table
from tallow.models.blocks.mixture import Mixture, Router
from tallow.models.blocks.norms import make_norm
from tallow.models.blocks.positions import Rotation, make_rotation
from tallow.models.config import DecoderConfig
from tallow.models.initialization import initialize_normal


class Embedding(Table):
    """A table of token vectors that also serves as the output matrix where the two are tied."""

    def project(self, hidden_BTD: Tensor) -> Tensor:
        """Logits, B T V."""
        return F.linear(hidden_BTD, self.weight)


class Layer(nn.Module):
    """Attention and feed-forward with their norms and residual connections."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.attention = Attention(config, index)
        self.feed_forward = Mixture(config) if config.num_experts else FeedForward(config)
        before, after = config.norm_placement != "post", config.norm_placement != "pre"
        self.attention_norm = make_norm(config, operand=True) if before else nn.Identity()
        self.attention_post_norm = make_norm(config) if after else nn.Identity()
        # a router reads what has not been rounded
        self.feed_forward_norm = make_norm(config, operand=not config.num_experts) if before else nn.Identity()
        self.feed_forward_post_norm = make_norm(config) if after else nn.Identity()
        self.parallel_residual = config.parallel_residual

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, context: Context) -> Tensor:
        attended_BTD = self.attention_post_norm(self.attention(self.attention_norm(x_BTD), rotation, context))
        if self.parallel_residual:
            return x_BTD + (attended_BTD + self._feed_forward(x_BTD, context))
        x_BTD = x_BTD + attended_BTD
        return x_BTD + self._feed_forward(x_BTD, context)

    def _feed_forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.feed_forward_post_norm(self.feed_forward(self.feed_forward_norm(x_BTD), context))


class Decoder(nn.Module):
    """A causal language model."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = (
            Table(config.max_positions, config.hidden_size) if config.positions == "learned" else None
        )
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_layers))
        self.norm = make_norm(config)
        self.lm_head = None if config.tied_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, inputs_BT: Tensor, context: Context) -> Tensor:
        """Hidden states after the last norm, B T D, of token ids (int64)."""
        x_BTD = self.begin(inputs_BT, context)
        return self.finish(self.through(x_BTD, context, range(len(self.layers))))

    def begin(self, inputs_BT: Tensor, context: Context) -> Tensor:
        """What the first layer is given, B T D."""
        x_BTD = self.embed(inputs_BT)
        if self.config.embedding_scale:
            # the factor is rounded to the embedding's dtype, as the family was trained
            x_BTD = x_BTD * x_BTD.new_full((), self.config.hidden_size**0.5)
        if self.embed_positions is not None:
            x_BTD = x_BTD + self.embed_positions(context.positions_BT)
        return x_BTD

    def through(self, x_BTD: Tensor, context: Context, layers: range) -> Tensor:
        """What these layers, which follow one another, make of what the first of them is given, B T D."""
        rotations = self._rotations(context.positions_BT)
        for index in layers:
            x_BTD = self.layers[index](x_BTD, rotations[index], context)
        return x_BTD

    def finish(self, x_BTD: Tensor) -> Tensor:
        """Hidden states, B T D, of what the last layer gives."""
        return self.norm(x_BTD)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalized log-probabilities of the next token, B T V, in the dtype of `hidden_BTD`."""
        logits_BTV = self.embed.project(hidden_BTD) if self.lm_head is None else self.lm_head(hidden_BTD)
        cap = self.config.logit_softcap
        return logits_BTV if cap is None else cap * torch.tanh(logits_BTV / cap)

    def num_parameters(self) -> int:
        """Number of weights; a tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def num_active_parameters(self) -> int:
        """Number of weights that compute a token: of a mixture only the experts that are chosen."""
        idle = self.config.num_experts - self.config.experts_per_token
        experts = sum(mixture.experts.num_parameters_each() for mixture in self.mixtures())
        return self.num_parameters() - idle * experts

    def mixtures(self) -> Iterator[Mixture]:
        """The mixtures of experts, in the order of their layers."""
        for module in self.modules():
            if isinstance(module, Mixture):
                yield module

    def moved_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Biases of routers that are trained, by name: training moves them without a gradient."""
        for name, module in self.named_modules():
            if isinstance(module, Router) and module.bias is not None and module.weight.requires_grad:
                yield f"{name}.bias", module.bias

    def take_loads(self) -> Tensor:
        """Tokens that each expert has computed in training since this was last asked: L E, int64."""
        loads = [mixture.take_loads() for mixture in self.mixtures()]
        return torch.stack(loads) if loads else torch.zeros(0, 0, dtype=torch.int64)

    def move(self, loads_LE: Tensor) -> None:
        """Move the biases of all routers, by the loads of an update in all its batches on all processes."""
        for mixture, loads_E in zip(self.mixtures(), loads_LE, strict=True):
            mixture.move_bias(loads_E)

    def _rotations(self, positions_BT: Tensor) -> list[Rotation | None]:
        """Angles for each layer; those of one kind are computed once."""
        config = self.config
        if config.positions != "rotary":
            return [None] * config.num_layers
        size, longest = config.head_size, config.max_positions
        everywhere = local = make_rotation(config.rotary, size, longest, positions_BT)
        if config.local_rotary is not None:
            local = make_rotation(config.local_rotary, size, longest, positions_BT)
        return [everywhere if config.layer_rotary(i) is config.rotary else local for i in range(config.num_layers)]


def initialize(model: Decoder, seed: int) -> None:
    """Random weights from `seed`, as decoders usually start (`models/initialization.py` has other ways)."""
    initialize_normal(model, model.config, seed)
