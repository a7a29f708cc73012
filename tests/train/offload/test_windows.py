from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, overload

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from tallow.train.offload import windows
from tallow.train.offload.mapped_file import MappedFile
from tallow.train.offload.windows import StateWindows, windows_of


class Replacing(Optimizer):
    """Remembers the last two gradients and where it is, in all the forms that a state can have."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"steps": 0})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        assert closure is None
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                assert parameter.grad is not None
                state = self.state[parameter]
                state["before"] = state.get("last")  # the tensor itself, which lies in the place of another
                state["last"] = parameter.grad.clone()
                state["nested"] = [{"turned": parameter.grad.T.contiguous().T}, (parameter.grad + 1,), group["steps"]]
        return None


def gradient(step: int, number: int) -> Tensor:
    return torch.full((60, 100), 100.0 * step + number) + torch.arange(100)


def test_each_tensor_is_in_a_place_of_its_own_with_its_values(tmp_path: Path) -> None:
    parameters = [nn.Parameter(torch.zeros(60, 100)) for _ in range(3)]
    optimizer, file = Replacing(parameters), MappedFile(tmp_path)
    state_windows = StateWindows(file, (), with_state=True)
    for step in range(4):
        for number, parameter in enumerate(parameters):
            parameter.grad = gradient(step, number)
        state_windows.run(optimizer, optimizer.step)
    assert optimizer.param_groups[0]["steps"] == 4
    assert optimizer.param_groups[0]["params"] == parameters
    addresses = set[int]()
    for number, parameter in enumerate(parameters):
        state: dict[str, Any] = optimizer.state[parameter]
        tensors = [state["before"], state["last"], state["nested"][0]["turned"], state["nested"][1][0]]
        last = gradient(3, number)
        for tensor, expected in zip(tensors, (gradient(2, number), last, last, last + 1), strict=True):
            assert torch.equal(tensor, expected)
            assert file.holds(tensor)
        assert tensors[2].stride() == (1, 60)
        assert state["nested"][2] == 4
        addresses |= {tensor.data_ptr() for tensor in tensors}
    assert len(addresses) == 12


def test_small_tensors_and_those_that_repeat_themselves_stay_in_memory(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.zeros(4))
    optimizer, file = AdamW([parameter]), MappedFile(tmp_path)
    small, repeating = torch.zeros(10), torch.zeros(1).expand(10**6)
    optimizer.state[parameter] = {"small": small, "repeating": repeating}
    StateWindows(file, (), with_state=True).settle(optimizer, [parameter])
    assert optimizer.state[parameter]["small"] is small
    assert optimizer.state[parameter]["repeating"] is repeating


def test_windows_have_all_parameters_in_their_order_and_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_BYTES", 400)
    parameters = [torch.zeros(size) for size in (10, 80, 20, 90, 500, 1, 2, 0)]
    found = list(windows_of(parameters))
    assert [[tensor.numel() for tensor in window] for window in found] == [[10, 80], [20], [90], [500], [1, 2, 0]]
    assert list(windows_of([])) == []
