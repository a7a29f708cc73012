"""Choosing the next token from logits."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tallow.engine.penalties import make_penalties
from tallow.engine.runner import Floats
from tallow.kernels.sampling import Draw, choose_tokens

if TYPE_CHECKING:
    from tallow.engine.grammar import Constraint
    from tallow.engine.request import SamplingParams


class Sampler:
    """Chooses the tokens of one request.

    Its random numbers follow from the seed and the token's index in the answer (see `choose_tokens`): the same seed
    gives the same answer whatever else is in the batch, and also when a request is taken up again from the middle.

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
    def is_plain(self) -> bool:
        """Whether its draws are from the logits as they come."""
        return not self._penalties

    @property
    def is_greedy(self) -> bool:
        """Whether it always takes the token with the greatest logit as it comes."""
        return self.params.temperature == 0.0 and not self._penalties

    def choose(self, logits_V: Floats, ids: Sequence[int]) -> int:
        """The token that follows `ids`, the answer so far; −1 if penalties and biases leave none.

        Args:
            logits_V: Finite, fp32.

        Raises:
            UsageError: The structure that the answer is held to leaves no token.
        """
        row_V, draw = self.prepare(logits_V, ids)
        return choose_tokens([row_V], [draw])[0]

    def prepare(self, logits_V: Floats, ids: Sequence[int]) -> tuple[Floats, Draw]:
        """What the token after `ids` is drawn from, and how.

        Raises:
            UsageError: The structure that the answer is held to leaves no token.
        """
        return self._penalized(logits_V, ids), self.draw(len(ids))

    def draw(self, token_index: int) -> Draw:
        """How the token at this index of the answer is drawn."""
        params = self.params
        return Draw(
            params.temperature, params.top_k, params.top_p, params.min_p, params.typical_p, self.seed, token_index
        )

    def _penalized(self, logits_V: Floats, ids: Sequence[int]) -> Floats:
        if not self._penalties:
            return logits_V
        logits_V = logits_V.copy()
        ids_N = np.array(ids, dtype=np.int64)
        for penalty in self._penalties:
            penalty(logits_V, ids_N)
        return logits_V
