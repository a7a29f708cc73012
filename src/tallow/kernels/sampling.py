"""Drawing tokens from logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tallow.kernels.cpu.sampling import choose_tokens as choose_tokens_on_cpu
from tallow.kernels.dispatch import prefers_fast


class Draw(NamedTuple):
    """How one token is drawn, as `SamplingParams` has it.

    Args:
        temperature: Logits are divided by it; 0 takes the likeliest token, the first of several.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the fewest likeliest tokens whose share of the probability reaches it.
        min_p: Keep tokens at least this share as likely as the likeliest.
        typical_p: Keep the fewest tokens whose surprise is nearest to the expected one and whose share reaches it.
        seed: 64 bits.
        token_index: Of the token in the answer, 32 bits.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    seed: int
    token_index: int


def choose_tokens(rows: Sequence[npt.NDArray[np.float32]], draws: Sequence[Draw]) -> list[int]:
    """Draw a token from each row of logits.

    Of the tokens that temperature and filters leave, with weights w, that one is taken which comes first in a race of
    exponential variates: the i with the least −log(1 − v_i) / w_i, the v_i being random in (0, 1). It is i with the
    probability w_i / Σw (to 2⁻³¹, the resolution of v). The v of all tokens follow from seed and index, so a seed has
    its answer whatever else is computed with it. And two models that draw with the same seed and index choose the same
    token about as often as their distributions agree: what a draft proposes is what its target will choose itself, so
    speculation need only compare the two, and leaves the answer of a seed as it is (drafter-invariant speculative
    decoding, arXiv 2408.07978). `sampling_reference` defines it to the bit.

    Args:
        rows: V logits each, fp32; −∞ for a token that must not come.
        draws: One for each row.

    Returns:
        Tokens; −1 where the logits are no distribution: one of them is NaN or ∞, or all are −∞.
    """
    if prefers_fast():
        chosen = choose_tokens_on_cpu(rows, draws)
        if chosen is not None:
            return chosen
    from tallow.kernels.sampling_reference import choose_token  # imports torch

    return [choose_token(logits_V, draw) for logits_V, draw in zip(rows, draws, strict=True)]
