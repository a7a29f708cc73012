from __future__ import annotations

import pytest
import torch
from torch import nn

from tallow.train.offload import layer_weights
from tallow.train.offload.layer_weights import LayerWeights


class Noting:
    """A source that notes what it is told, by the layers' numbers."""

    def __init__(self) -> None:
        self.layers = list[nn.Module]()
        self.told = list[str]()

    def adopt(self, layer: nn.Module) -> None:
        self.layers.append(layer)

    def want(self, layer: nn.Module) -> None:
        self.told.append(f"+{self.layers.index(layer)}")

    def drop(self, layer: nn.Module) -> None:
        self.told.append(f"-{self.layers.index(layer)}")


def run(layers: nn.Sequential) -> list[str]:
    source = Noting()
    LayerWeights(list(layers), source)
    layers(torch.ones(1, 2)).sum().backward()
    return source.told


FORWARD = ["-0", "-1", "-2", "-3", "+1", "-0", "+2", "-1", "+3", "-2"]


def test_the_next_layer_is_wanted_and_the_one_before_dropped() -> None:
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    assert run(layers) == [*FORWARD, "+2", "-3", "+1", "-2", "+0", "-1"]


def test_what_gathers_a_layer_ahead_is_wanted_two_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_weights, "FSDPModule", nn.Linear)
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    assert run(layers) == [*FORWARD, "+1", "-3", "+0", "-2", "-1"]


def test_of_one_layer_nothing_is_kept_from_pass_to_pass() -> None:
    assert run(nn.Sequential(nn.Linear(2, 2))) == ["-0"]
