"""The factor on the loss that keeps small gradients from vanishing in fp16 (arXiv 1710.03740, section 3.2)."""

from __future__ import annotations

from tallow.recipe import Section

LARGEST = 2.0**24
GROW_AFTER = 1000


class LossScale(Section):
    """The factor, and for how many updates it has done.

    Args:
        factor: A power of two, so that it rounds nothing.
        updates: Since it last changed.
    """

    factor: float = 2.0**16
    updates: int = 0

    def smaller(self) -> LossScale:
        """After gradients that were too large for fp16."""
        return LossScale(factor=max(1.0, self.factor / 2))

    def after_update(self) -> LossScale:
        """After gradients that were not; in the long run a larger factor is tried again."""
        if self.updates + 1 < GROW_AFTER:
            return LossScale(factor=self.factor, updates=self.updates + 1)
        return LossScale(factor=min(LARGEST, self.factor * 2))
