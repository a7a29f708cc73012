"""Settings of what training keeps elsewhere than in its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from tallow.recipe import Section


class OffloadConfig(Section):
    """What training keeps elsewhere (arXiv 2101.06840, 2104.07857). On one device what is learned stays the same to the
    bit.

    Args:
        state: Where the optimizer's state is: with the weights (`none`); in the memory of the CPU (`cpu`), where the
            update of weights that are on a GPU is then computed; or in a file of which that memory has a few tensors
            at a time, while the next are read ahead (`disk`).
        parameters: Where the weights of the layers are: with the model (`none`); in the memory of the CPU, with their
            gradients and all updates, while a GPU has copies of about two layers at a time (`cpu`; on a CPU it does
            nothing); or in that file, while the memory of the CPU, on which they must be, has about three (`disk`).
        directory: Where the file is; None: in the run's directory. It has no name there, so that it is gone when the
            process is, however that ends; checkpoints hold what a run goes on from.
    """

    state: Literal["none", "cpu", "disk"] = "none"
    parameters: Literal["none", "cpu", "disk"] = "none"
    directory: Path | None = None

    def state_is_with(self, device: torch.device) -> bool:
        """Whether the state of what is trained on a device is in that device's memory."""
        return self.state != "disk" and (device.type == "cpu" or "cpu" not in (self.state, self.parameters))

    @property
    def to_disk(self) -> bool:
        """Whether anything goes to disk."""
        return "disk" in (self.state, self.parameters)
