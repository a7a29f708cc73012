"""How far an update moves the weights, from a sample of them: a copy of all would double their memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tallow.parallel.shares import own_share

# neighbours are taken together, for each place far from the others is a wait for memory
RUNS, RUN = 128, 64
SAMPLE = RUNS * RUN


class WeightChange:
    """Remembers some weights as they are now.

    Args:
        parameters: What is trained. Of each that has more than `SAMPLE` weights so many are taken, evenly spread.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._before = [_sample(parameter) for parameter in self._parameters]

    def squares(self) -> tuple[float, float]:
        """Sum of squares of the change since then, and of the weights then, as the sample has it; of this process's."""
        squares: dict[torch.device, list[Tensor]] = defaultdict(list)
        for parameter, before in zip(self._parameters, self._before, strict=True):
            share = before.numel() / max(1, own_share(parameter).numel())
            if share:
                both = torch.stack([(_sample(parameter) - before).square().sum(), before.square().sum()])
                squares[both.device].append(both.double() / share)
        # at once, since it waits for a GPU
        sums = [(0.0, 0.0), *(torch.stack(found).sum(0).tolist() for found in squares.values())]
        return sum(change for change, _ in sums), sum(weights for _, weights in sums)


def _sample(parameter: nn.Parameter) -> Tensor:
    values = own_share(parameter.detach()).flatten()
    if values.numel() <= SAMPLE:
        return values.float().clone()
    number = values.numel() // RUN
    # one less than the sizes, so that the distance is not a multiple of a row's length
    places = torch.arange(RUNS, device=values.device) * (number - 1) // (RUNS - 1)
    return values[: number * RUN].view(number, RUN)[places].float()
