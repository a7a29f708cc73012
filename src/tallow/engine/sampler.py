"""Choosing the next token from logits."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tallow.engine.penalties import make_penalties

if TYPE_CHECKING:
    from tallow.engine.grammar import Constraint
    from tallow.engine.request import SamplingParams

FIRST_CANDIDATES = 256
"""A nucleus is first sought among so many tokens: sorting a whole vocabulary takes longer than a decoding step."""


class Sampler:
    """Chooses the tokens of one request.

    Its random numbers come from a counter-based generator (Philox; Salmon et al., SC 2011) keyed by the seed, with the
    token's index in the answer as counter: the same seed gives the same answer whatever else is in the
    batch, and also when a request is taken up again from the middle.

    Args:
        params: Temperature, filters, penalties and seed.
        prompt_ids: The tokens that penalties count as seen from the start.
        stop_ids: Tokens that end the answer.
        constraint: Holds the answer to a structure.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        stop_ids: Collection[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.seed = secrets.randbits(64) if params.seed is None else params.seed
        self._penalties = make_penalties(params, prompt_ids, stop_ids)
        if constraint is not None:  # last, so that nothing makes possible again what it forbids
            self._penalties.append(lambda logits, _ids: constraint.mask_logits(logits))

    @property
    def is_greedy(self) -> bool:
        """Whether it always takes the token with the greatest logit as it comes."""
        return self.params.temperature == 0.0 and not self._penalties

    def choose(self, logits_V: Tensor, ids: Sequence[int]) -> int:
        """The token that follows `ids`, the answer so far.

        Args:
            logits_V: Finite fp32 logits.

        Raises:
            UsageError: The structure that the answer is held to leaves no token.
        """
        for penalty in self._penalties:
            logits_V = penalty(logits_V, ids)
        if self.params.temperature == 0.0:
            return int(logits_V.argmax())
        return _draw(*candidates(logits_V, self.params), uniform(self.seed, len(ids)))


def candidates(logits_V: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """What temperature and filters leave of the distribution.

    Returns:
        Probabilities of the candidates (C, summing to one) and their ids; None for the ids: all tokens, in order.
    """
    # the largest becomes 0 first, so that a tiny temperature cannot overflow
    probs = ((logits_V - logits_V.max()) / params.temperature).softmax(-1)
    ids = None
    if 0 < params.top_k < len(probs):
        probs, ids = probs.topk(params.top_k)
        probs = probs / probs.sum()
    if params.top_p < 1.0:
        probs, places = _nucleus(probs, params.top_p)
        ids = places if ids is None else ids[places]
    if params.min_p > 0.0:
        places = (probs >= params.min_p * probs.max()).nonzero().squeeze(1)
        probs, ids = probs[places], places if ids is None else ids[places]
    if params.typical_p < 1.0:
        probs = probs / probs.sum()
        places = _typical(probs, params.typical_p)
        probs, ids = probs[places], places if ids is None else ids[places]
    return probs / probs.sum(), ids


def uniform(seed: int, index: int) -> float:
    """The `index`-th random number in [0, 1) of a seed."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=index)).random())


def _nucleus(probs_V: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest likeliest entries whose sum reaches `top_p`, in descending order, and their places."""
    count = min(FIRST_CANDIDATES, len(probs_V))
    while True:
        probs_C, places_C = probs_V.topk(count)
        before_C = probs_C.cumsum(0) - probs_C
        if count == len(probs_V) or float(before_C[-1]) >= top_p:
            kept = max(1, int((before_C < top_p).sum()))
            return probs_C[:kept], places_C[:kept]
        count = min(16 * count, len(probs_V))


def _typical(probs_C: Tensor, typical_p: float) -> Tensor:
    """Places of the entries whose surprise is nearest to the entropy, the fewest whose sum reaches `typical_p`."""
    surprise_C = -probs_C.log()
    entropy = torch.where(probs_C > 0, probs_C * surprise_C, 0.0).sum()
    order_C = (surprise_C - entropy).abs().argsort(stable=True)
    before_C = probs_C[order_C].cumsum(0) - probs_C[order_C]
    return order_C[: max(1, int((before_C < typical_p).sum()))]


def _draw(probs_C: Tensor, ids_C: Tensor | None, number: float) -> int:
    """Invert the distribution function at a number in [0, 1)."""
    summed_C = probs_C.double().cumsum(0)
    threshold = number * float(summed_C[-1])
    place = min(int(torch.searchsorted(summed_C, threshold, right=True)), len(probs_C) - 1)
    return place if ids_C is None else int(ids_C[place])
