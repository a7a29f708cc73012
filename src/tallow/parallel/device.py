"""The device that a process trains on, and what it learns from brought there."""

from __future__ import annotations

import os

import torch

from tallow.data.batch import Packed
from tallow.engine.choices import Device, chooses_gpu
from tallow.errors import UsageError
from tallow.objectives import Example, Objective

CPU = torch.device("cpu")


def training_device(choice: Device) -> torch.device:
    """The device of this process: of several GPUs the one that `torchrun` numbers it by (`LOCAL_RANK`).

    Raises:
        UsageError: There is no GPU, or none for this process.
    """
    if not chooses_gpu(choice):
        return CPU
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise UsageError(
            f"process {number} of this machine has no GPU, for there are {count}",
            f"start torchrun with --nproc-per-node {count}, or set loop.device to cpu",
        )
    torch.cuda.set_device(number)
    torch.cuda.init()  # before that there are no statistics
    torch.cuda.reset_peak_memory_stats(number)  # a stage is not charged for what came before it in the process
    return torch.device("cuda", number)


def examples_on(device: torch.device, objective: Objective) -> Objective:
    """The objective whose examples are on a device.

    They are made where the rows are, on the CPU: so their chances are the same whatever the device, and what must be
    known of them (which places count, say) is known without waiting for it.
    """
    if device.type == "cpu":
        return objective

    def placed(packed: Packed) -> Example:
        return objective(packed).to(device)

    return placed
