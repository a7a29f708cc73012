"""More tokens: rows of the embedding and of the output matrix for tokens that a tokenizer has got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from tallow.errors import UsageError
from tallow.models.decoder import Decoder
from tallow.models.skeletons import with_weights
from tallow.recipe import parse_section

NewRows = Literal["mean", "edges", "average", "random"]
"""How a new token's rows begin: as the mean of those of its pieces; as the last piece's where it is read and the first
one's where it is predicted; as the mean of all tokens; or drawn at random around that."""


def extend_vocabulary(
    model: Decoder, pieces: Mapping[int, Sequence[int]], new_rows: NewRows = "mean", seed: int = 0
) -> Decoder:
    """The model with a row for each new token; all other weights are those of `model`.

    The mean of pieces is from "Fast Vocabulary Transfer" (Gee et al., 2022, arXiv 2402.09977), that of all tokens from
    Hewitt's "Initializing new word embeddings for pretrained language models" (2021), as are random rows, here with
    the diagonal of the covariance.

    Args:
        model: Not quantized.
        pieces: Old tokens of each new one, by its id. Rows up to the highest id that no token had before (padding) are
            taken as they come.
        new_rows: How the new rows begin.
        seed: Names what is drawn.

    Raises:
        UsageError: `edges` needs an output matrix of its own, and the model has none.
    """
    if new_rows == "edges" and model.lm_head is None:
        raise UsageError(
            "embedding and output matrix of this model are one, so a new row cannot be both the last piece's and the "
            "first one's",
            "choose mean",
        )
    rows = max(model.config.vocab_size, max(pieces, default=-1) + 1)
    config = parse_section(type(model.config), {**model.config.model_dump(), "vocab_size": rows}, "model")
    generator = torch.Generator().manual_seed(seed)
    state = dict(model.state_dict())
    for name, edge in (("embed.weight", -1), ("lm_head.weight", 0)):
        if name in state:
            state[name] = _extended(state[name], rows, pieces, new_rows, edge, generator)
    larger = with_weights(config, state)
    assert isinstance(larger, Decoder)
    return larger.eval()


def _extended(
    old_VD: Tensor,
    rows: int,
    pieces: Mapping[int, Sequence[int]],
    new_rows: NewRows,
    edge: int,
    generator: torch.Generator,
) -> Tensor:
    first = min(pieces, default=len(old_VD))
    known_VD = old_VD[:first].float()
    new_VD = old_VD.new_zeros((rows, old_VD.shape[1]))
    new_VD[: len(old_VD)] = old_VD
    for id, parts in sorted(pieces.items()):
        if new_rows == "mean":
            row = known_VD[list(parts)].mean(0)
        elif new_rows == "edges":
            row = known_VD[parts[edge]]
        else:
            row = known_VD.mean(0)
            if new_rows == "random":
                row = torch.normal(row, known_VD.std(0), generator=generator)
        new_VD[id] = row.to(old_VD.dtype)
    return new_VD
