"""Attention over rows that processes share, by exchanging heads for places (DeepSpeed-Ulysses; arXiv 2309.14509).

Each process has all heads of its places; it gives each other process some of the heads and gets the other places of its
own heads, attends to whole rows with those, and gets all heads of its places back.
"""

from __future__ import annotations

from math import lcm

import torch
from torch import Tensor
from torch.nn import functional as F

from tallow.models.blocks.context import AttentionSpec
from tallow.parallel.exchange import exchange
from tallow.parallel.places import SharedContext


class AllToAllContext(SharedContext):
    """A share of the places of rows; one of the heads while it attends, which the processes' number must divide.

    Key-value heads are repeated where that number does not divide them.
    """

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        copies = lcm(k_BKTd.shape[1], self.world.size) // k_BKTd.shape[1]
        if copies > 1:
            k_BKTd, v_BKTd = (x.repeat_interleave(copies, dim=1) for x in (k_BKTd, v_BKTd))
        # in one message; autocast leaves some of the three wider than attention reads them
        parts = [x.to(v_BKTd.dtype).unflatten(1, (self.world.size, -1)) for x in (q_BHTd, k_BKTd, v_BKTd)]
        rows_BhTd = self._whole_rows(torch.cat(parts, dim=2))
        q_BhTd, k_BkTd, v_BkTd = rows_BhTd.split([part.shape[2] for part in parts], dim=1)
        return self._all_heads(self.whole.attend(spec, q_BhTd, k_BkTd, v_BkTd))

    def _whole_rows(self, x_BPhTd: Tensor) -> Tensor:
        """All places of this process's heads, B h T d, from those of each process P at the places of this one."""
        by_source = exchange(x_BPhTd.transpose(0, 1), self.world)
        return by_source.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, : self.cut.length]

    def _all_heads(self, x_BhTd: Tensor) -> Tensor:
        """All heads at this process's places, B H T d, from its own heads at all places."""
        x_BhPTd = F.pad(x_BhTd, (0, 0, 0, self.cut.filling)).unflatten(2, (self.world.size, -1))
        by_source = exchange(x_BhPTd.permute(2, 0, 1, 3, 4), self.world)
        return by_source.transpose(0, 1).flatten(1, 2)
