"""The optimizers that a recipe can name."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from tallow.train.optimizers.adafactor import AdafactorMethod
from tallow.train.optimizers.adam_mini import AdamMiniMethod
from tallow.train.optimizers.adamw import AdamWMethod
from tallow.train.optimizers.adamw8bit import AdamW8bitMethod
from tallow.train.optimizers.galore import GaLoreMethod
from tallow.train.optimizers.lion import LionMethod
from tallow.train.optimizers.lomo import AdaLomoMethod, LomoMethod
from tallow.train.optimizers.muon import MuonMethod
from tallow.train.optimizers.schedule_free import ScheduleFreeMethod
from tallow.train.optimizers.shampoo import ShampooMethod
from tallow.train.optimizers.soap import SoapMethod
from tallow.train.optimizers.sophia import SophiaMethod


def _by_name(value: object) -> object:
    """The name alone stands for an optimizer with its own defaults."""
    return {"name": value} if isinstance(value, str) else value


AnyMethod = Annotated[
    AdamWMethod
    | AdafactorMethod
    | AdaLomoMethod
    | AdamMiniMethod
    | AdamW8bitMethod
    | GaLoreMethod
    | LionMethod
    | LomoMethod
    | MuonMethod
    | ScheduleFreeMethod
    | ShampooMethod
    | SoapMethod
    | SophiaMethod,
    Field(discriminator="name"),
    BeforeValidator(_by_name),
]
