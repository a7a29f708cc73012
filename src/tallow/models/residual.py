"""The ends of the branches that layers add to the residual stream, for who wants a branch to add nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig

WRITERS = ("o_proj.weight", "down_proj.weight")
"""Ends of the names of matrices whose result goes to the residual stream."""


def silence(parameters: Iterable[tuple[str, Tensor]], config: DecoderConfig | EncoderConfig) -> None:
    """Set those of the named parameters that end a branch such that it adds nothing; all others stay.

    They are the matrices that write to the residual stream. Where a norm stands between matrix and stream it is the
    norm's gain instead: a norm's derivative at 0 is enormous.
    """
    ends, value = [name.removesuffix(".weight") for name in WRITERS], 0.0
    if isinstance(config, DecoderConfig) and config.norm_placement != "pre":
        ends, value = ["attention_post_norm", "feed_forward_post_norm"], -1.0 if config.norm_offset else 0.0
    with torch.no_grad():
        for name, parameter in parameters:
            module, _, kind = name.rpartition(".")
            if module.endswith(tuple(ends)):
                parameter.fill_(value if kind == "weight" else 0.0)
