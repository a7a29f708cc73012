from __future__ import annotations

import torch
from torch import nn

from tallow.train.config import LoopConfig
from tallow.train.optimizer import average_and_clip, make_optimizer


def test_is_adamw_with_decay_of_matrices_only() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = {
        "matrix": nn.Parameter(torch.randn(3, 4, generator=generator)),
        "norm": nn.Parameter(torch.randn(4, generator=generator)),
    }
    expected = {name: parameter.detach().double() for name, parameter in parameters.items()}
    moments = {name: [torch.zeros_like(value), torch.zeros_like(value)] for name, value in expected.items()}
    optimizer = make_optimizer(parameters, LoopConfig(weight_decay=0.3, betas=(0.8, 0.9), epsilon=1e-6))
    for step in range(1, 6):
        rate = 0.01 * step
        optimizer.set_learning_rate(rate)
        for name, parameter in parameters.items():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient
            first, second = moments[name]
            first += 0.2 * (gradient.double() - first)
            second += 0.1 * (gradient.double() ** 2 - second)
            if name == "matrix":
                expected[name] *= 1 - rate * 0.3
            expected[name] -= rate * first / (1 - 0.8**step) / ((second / (1 - 0.9**step)).sqrt() + 1e-6)
        optimizer.step()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach().double(), expected[name], atol=1e-6, rtol=1e-6)


def gradients(*values: list[float] | None) -> list[nn.Parameter]:
    parameters = []
    for value in values:
        parameter = nn.Parameter(torch.zeros(len(value or [0.0])))
        parameter.grad = None if value is None else torch.tensor(value)
        parameters.append(parameter)
    return parameters


def test_gradients_are_averaged_then_clipped_together() -> None:
    parameters = gradients([6.0], None, [0.0, 8.0])  # over 2 tokens: 3 and 4, norm 5
    average_and_clip(parameters, 2, 5.0, max_norm=1.0)
    assert parameters[0].grad is not None
    assert parameters[2].grad is not None
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6]))
    torch.testing.assert_close(parameters[2].grad, torch.tensor([0.0, 0.8]))


def test_small_gradients_are_only_averaged() -> None:
    parameters = gradients([6.0], [8.0])
    average_and_clip(parameters, 2, 5.0, max_norm=100.0)
    assert [parameter.grad for parameter in parameters] == [torch.tensor([3.0]), torch.tensor([4.0])]


def test_a_gradient_of_zero_stays_zero() -> None:
    parameters = gradients([0.0, 0.0])
    average_and_clip(parameters, 3, 0.0, max_norm=1.0)
    torch.testing.assert_close(parameters[0].grad, torch.zeros(2))
