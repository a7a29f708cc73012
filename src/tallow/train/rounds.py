"""When the workers of a run come together, and what they do then.

Where updates are not local there is one worker, and each step is a round of its own.
"""

from __future__ import annotations

import math

import torch

from tallow.parallel import Layout
from tallow.train.config import LoopConfig
from tallow.train.outer import OuterOptimizer
from tallow.train.update import Update, Updater


class Rounds:
    """The rounds of a run: the last step of one is a multiple of `local_steps`, or that of the run.

    Between workers there may be a slow link. So they agree on nothing but when they `meet`, which each knows without
    asking the others: at the end of a round, and where a checkpoint is due by its step.

    Args:
        layout: Of the model that is trained.
        updater: What trains it.
        config: Settings of the loop.
        steps: Of the run.
    """

    def __init__(self, layout: Layout, updater: Updater, config: LoopConfig, steps: int) -> None:
        parallel = config.parallel
        self.workers, self.local_steps = layout.workers, parallel.local_steps
        self.steps, self.save_every = steps, config.save_every
        self.optimizer = updater.optimizer
        self.outer = (
            OuterOptimizer(
                updater.parameters,
                updater.moved,
                layout.workers,
                parallel.outer_learning_rate,
                parallel.outer_momentum,
                torch.bfloat16 if parallel.outer_precision == "bf16" else torch.float32,
            )
            if parallel.local_steps > 1
            else None
        )
        self._tokens = 0

    def ends(self, step: int) -> bool:
        """Whether a round ends with a step."""
        return step % self.local_steps == 0 or step == self.steps

    def meet(self, step: int) -> bool:
        """Whether the workers come together after a step."""
        return self.workers.count == 1 or self.ends(step) or step % self.save_every == 0

    def due(self, step: int, every: int) -> bool:
        """Whether with a step a round ends in which a multiple of `every` came by."""
        begun = (step - 1) // self.local_steps * self.local_steps
        return step == self.steps or (self.ends(step) and step // every > begun // every)

    def count(self, step: int, update: Update) -> Update:
        """What the workers' updates have found: their mean, and the tokens of all since they last met.

        Where they do not meet, it is what this worker's has found, and no tokens are counted yet.
        """
        if self.workers.count == 1:
            return update
        self._tokens += update.tokens
        if not self.meet(step):
            return Update(update.loss, update.gradient_norm, 0)
        found = [update.loss, update.gradient_norm]
        finite = [math.isfinite(value) for value in found]
        values = [value if math.isfinite(value) else 0.0 for value in found]
        tokens, *sums = self.workers.peers.sum(self._tokens, *values, *finite)
        self._tokens = 0
        loss, norm = (total / number if number else math.nan for total, number in zip(sums[:2], sums[2:], strict=True))
        return Update(loss, norm, int(tokens))

    def end(self, step: int) -> None:
        """End a round, if one ends with this step: all workers go on from the same weights."""
        if self.outer is not None and self.ends(step):
            self.outer.step()
            self.optimizer.take_weights()
