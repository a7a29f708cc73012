"""What a recipe says of growth."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from tallow.errors import UsageError
from tallow.models.config import Size
from tallow.recipe import Section


class Growth(Section):
    """What a model grows to; what is None stays as it is.

    The grown model computes what the model did, and its new parts learn to differ; only `layers: stack` starts
    elsewhere.

    Args:
        family: The hub format of the grown model; None: the same, but `mixtral` with `num_experts`.
        num_layers: Layers.
        layers: What the new layers are. `identity`: each a copy of the one below it that adds nothing yet (LLaMA Pro;
            arXiv 2401.02415). `stack`: all layers once more above the others, and so on (G_stack;
            2405.15319), which does not compute the same, but learns fast.
        hidden_size: Entries of the vector that stands for a token between layers.
        num_heads: Query heads; None: in proportion to `hidden_size`.
        num_kv_heads: Heads of keys and values; None: in proportion to `num_heads`.
        intermediate_size: Inner size of the feed-forward; None: in proportion to `hidden_size`.
        num_experts: Each feed-forward becomes so many (sparse upcycling; arXiv 2212.05055).
        experts_per_token: Experts that compute a token.
    """

    family: str | None = None
    num_layers: PositiveInt | None = None
    layers: Literal["identity", "stack"] = "identity"
    hidden_size: Size | None = None
    num_heads: Size | None = None
    num_kv_heads: Size | None = None
    intermediate_size: Size | None = None
    num_experts: PositiveInt | None = None
    experts_per_token: PositiveInt = 2

    @model_validator(mode="after")
    def _something_grows(self) -> Self:
        settings = ("family", "layers", "experts_per_token")
        if all(value is None for name, value in self if name not in settings):
            raise UsageError("grow names nothing that grows", "name grow.num_layers, grow.hidden_size or another size")
        return self
