"""A model brought to where it is trained."""

from __future__ import annotations

from tallow.models.skeletons import Layered
from tallow.parallel import Layout, World
from tallow.parallel.device import training_device
from tallow.train.config import LoopConfig


def lay_out(model: Layered, config: LoopConfig, world: World) -> Layout:
    """The model on the device, and over the processes, that the settings name; it is changed in place.

    Raises:
        UsageError: There is no such device, or processes or model cannot be divided like that.
    """
    return Layout(model, config.parallel, world, training_device(config.device))
