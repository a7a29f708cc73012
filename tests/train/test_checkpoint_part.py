"""What workers write of a checkpoint, and what others, or other numbers of them, make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.toys import loop_config
from torch import Tensor, nn

from tallow.parallel import ALONE, ParallelConfig, World
from tallow.parallel.mesh import Mesh
from tallow.parallel.workers import Workers
from tallow.train.checkpoint_files import take_shares, write_shares
from tallow.train.checkpoint_part import CheckpointPart
from tallow.train.optimizer import make_optimizer
from tallow.train.outer import OuterOptimizer
from tallow.train.state_tree import Structure

RATE, MOMENTUM = 0.7, 0.9


class Worker:
    """One of several workers, without the others."""

    def __init__(self, number: int, count: int, start: float = 1.0) -> None:
        self.weight = nn.Parameter(torch.full((3, 2), start))
        parameters = {"layer.weight": self.weight}
        self.optimizer = make_optimizer(parameters, loop_config())
        self.outer = OuterOptimizer(parameters, {}, Workers(World(number, count), count), RATE, MOMENTUM)
        self.outer.momenta["layer.weight"].fill_(0.5)
        self.part = CheckpointPart(parameters, self.optimizer, Mesh(ParallelConfig(), ALONE), self.outer)

    def learn(self, steps: int) -> None:
        for _ in range(steps):
            self.weight.grad = torch.ones_like(self.weight)
            self.optimizer.step()

    def save(self, directory: Path, *, in_round: bool) -> Structure:
        tensors, structure = self.part.tensors(in_round=in_round)
        write_shares(take_shares(tensors), directory / f"part-{self.part.worker:05d}.safetensors")
        return structure

    def steps(self) -> Tensor:
        """Updates that the inner optimizer remembers."""
        return self.optimizer.state()[0]["layer.weight/step"]


@pytest.mark.parametrize("in_round", [True, False])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_workers_go_on_in_any_number(count: int, in_round: bool, tmp_path: Path) -> None:
    before = [Worker(number, 2) for number in range(2)]
    for number, worker in enumerate(before):
        worker.learn(number + 1)
    if not in_round:
        for worker in before:
            worker.outer.go_back()
    structures = {number: [worker.save(tmp_path, in_round=in_round)] for number, worker in enumerate(before)}

    start = torch.ones(3, 2)
    for number in range(count):
        worker = Worker(number, count, start=7.0)
        worker.part.load(tmp_path, structures)
        assert worker.steps() == number % 2 + 1
        expected, momentum, round_start = before[number % 2].weight, torch.full((3, 2), 0.5), start
        if in_round and count != 2:
            gradient = start - (before[0].weight + before[1].weight) / 2
            momentum = MOMENTUM * momentum + gradient
            expected = round_start = start - RATE * (gradient + MOMENTUM * momentum)
        torch.testing.assert_close(worker.weight, expected, check_stride=False, atol=1e-6, rtol=0)
        torch.testing.assert_close(worker.outer.start["layer.weight"], round_start, atol=1e-6, rtol=0)
        torch.testing.assert_close(worker.outer.momenta["layer.weight"], momentum, atol=1e-6, rtol=0)
