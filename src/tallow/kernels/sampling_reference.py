"""The definition of how tokens are drawn from logits: temperature, filters, and an exponential race."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallow.kernels.sampling import Draw

LEAST_TEMPERATURE = 1e-30
"""Lower ones but 0 count as this: the differences of logits over them must be numbers."""

LEAST_LOG_WEIGHT = -87.3
"""Tokens that are less likely than the likeliest by more than this power of e cannot come: fp32 ends there."""

WORD = 0xFFFFFFFF


def choose_token(row_V: npt.NDArray[np.float32], draw: Draw) -> int:
    """As `choose_tokens`, for one row."""
    logits_V = torch.from_numpy(row_V)
    if not bool(logits_V.max().isfinite()):
        return -1
    if draw.temperature == 0.0:
        return int(logits_V.argmax())
    probs_C, ids_C = candidates(logits_V, draw)
    return int(ids_C[(variates(draw.seed, draw.token_index, ids_C) / probs_C).argmin()])


def candidates(logits_V: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
    """What temperature and filters leave of a distribution: the definition of the filters.

    They work in the order top-k, top-p, min-p, typical, each on what the one before it left. Of tokens with the same
    logit the one with the lower id counts as the likelier.

    Returns:
        Probabilities of the candidates (C, fp64, summing to one, falling) and their ids.
    """
    logits_C, ids_C = logits_V.sort(descending=True, stable=True)
    # the greatest becomes 0 first, so that a tiny temperature cannot overflow
    logs_C = (logits_C - logits_C[0]).double() / max(draw.temperature, LEAST_TEMPERATURE)
    count = len(logs_C)
    if draw.top_k > 0:
        count = min(count, draw.top_k)
    if draw.top_p < 1.0:
        count = _count_reaching(logs_C[:count].exp(), draw.top_p)
    weights_C = logs_C[:count].exp()
    kept_C = ((weights_C >= draw.min_p) & (logs_C[:count] >= LEAST_LOG_WEIGHT)).nonzero()[:, 0]
    if draw.typical_p < 1.0:
        probs_C = weights_C[kept_C] / weights_C[kept_C].sum()
        # a token's surprise is −log p: its distance from the mean one does not depend on the sum of weights
        distances_C = (logs_C[kept_C] - (probs_C * logs_C[kept_C]).sum()).abs()
        order_C = distances_C.argsort(stable=True)
        kept_C = kept_C[order_C[: _count_reaching(probs_C[order_C], draw.typical_p)].sort().values]
    return weights_C[kept_C] / weights_C[kept_C].sum(), ids_C[kept_C]


def variates(seed: int, token_index: int, ids_C: Tensor) -> Tensor:
    """An exponential variate for each of some tokens (C, fp64) at an index of the answer.

    Word i mod 4 of Philox at the counter (token_index, i / 4, 0, 0) gives token i's; its high 31 bits are v · 2³¹ − ½,
    and the variate is −log(1 − v).
    """
    zeros_C = torch.zeros_like(ids_C)
    words_4C = philox(torch.stack([zeros_C + token_index, ids_C // 4, zeros_C, zeros_C]), seed)
    words_C = words_4C.gather(0, (ids_C % 4)[None])[0]
    return -torch.log1p(-((words_C >> 1).double() + 0.5) / 2**31)


def philox(counters_4N: Tensor, seed: int) -> Tensor:
    """Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the seed as its key.

    Args:
        counters_4N: Words of 32 bits in int64.

    Returns:
        4 N words of the same kind.
    """
    c0_N, c1_N, c2_N, c3_N = counters_4N
    key0, key1 = seed & WORD, seed >> 32
    for _ in range(10):
        # the products wrap, their bits are right
        first_N, second_N = c0_N * 0xD2511F53, c2_N * 0xCD9E8D57
        c0_N, c1_N = (second_N >> 32 & WORD) ^ c1_N ^ key0, second_N & WORD
        c2_N, c3_N = (first_N >> 32 & WORD) ^ c3_N ^ key1, first_N & WORD
        key0, key1 = key0 + 0x9E3779B9 & WORD, key1 + 0xBB67AE85 & WORD
    return torch.stack([c0_N, c1_N, c2_N, c3_N])


def _count_reaching(weights_C: Tensor, share: float) -> int:
    """How many of the first have together this share of the sum of all; at least one."""
    summed_C = weights_C.cumsum(0)
    return max(1, int((summed_C - weights_C < share * summed_C[-1]).sum()))
