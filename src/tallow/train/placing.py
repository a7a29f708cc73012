"""A model brought to where it is trained."""

from __future__ import annotations

from tallow.models.skeletons import Layered
from tallow.parallel import Layout, World
from tallow.parallel.device import training_device
from tallow.train.config import LoopConfig
from tallow.train.float8 import use_float8


def lay_out(model: Layered, config: LoopConfig, world: World) -> Layout:
    """The model on the device, and over the processes, that the settings name, in place; its linear layers may be
    others.

    Raises:
        UsageError: There is no such device, it has no such precision, or processes or model cannot be divided like
            that.
    """
    device = training_device(config.device)
    if config.precision == "float8":
        use_float8(model, device, config.parallel.tensor)
    on_host = config.offload.parameters == "cpu" and device.type != "cpu"
    return Layout(model, config.parallel, world, device, layers_on_host=on_host)
