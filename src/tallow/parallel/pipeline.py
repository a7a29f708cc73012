"""Pipelines by torch.distributed.pipelining: processes that share the layers, busy with several micro-batches at once.

Activations go from stage to stage and their gradients back, in the order of a schedule: all forward passes first
(GPipe, arXiv 1811.06965), each backward pass as soon as it can be done (1F1B, 2104.04473, section 2.2), this with two
stages a process (interleaved, there, section 2.3), or with the gradients of weights computed where a process would wait
(zero bubble, ZB-H1 of 2401.10241).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    ScheduleInterleavedZeroBubble,
)

from tallow.data.batch import Packed, collate
from tallow.models.skeletons import Layered
from tallow.objectives import Example, Objective
from tallow.parallel.config import ParallelConfig
from tallow.parallel.mesh import Mesh
from tallow.parallel.stages import Stage, activation, divide, keep

SINGLE = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
LOOPED = {"interleaved": ScheduleInterleaved1F1B, "zero_bubble": ScheduleInterleavedZeroBubble}
STAGES_EACH = 2
"""Stages of each process where a schedule goes round several times."""


class Pipeline:
    """This process's stages of a model, of which nothing else is left in its memory.

    Args:
        model: The whole model, cut in place.
        mesh: Who has the other stages.

    Raises:
        UsageError: There are too few layers.
    """

    def __init__(self, model: Layered, config: ParallelConfig, mesh: Mesh) -> None:
        assert isinstance(model, nn.Module)
        self.schedule, self.mesh, self.pipeline = config.schedule, mesh, mesh.pipeline
        self.is_looped = config.schedule in LOOPED
        shares = divide(model, self.pipeline.size * (STAGES_EACH if self.is_looped else 1))
        self.num_stages = len(shares)
        self._owners = {
            name: next(stage for stage, share in enumerate(shares) if share.has(name)) % self.pipeline.size
            for name in model.state_dict()
        }
        self._activation = activation(model)
        own = range(self.pipeline.rank, self.num_stages, self.pipeline.size)
        keep(model, [shares[stage] for stage in own])
        self._work = _Work(len(own))
        self.stages = {stage: Stage(model, shares[stage], self._work) for stage in own}
        names = [name for name, _ in model.named_parameters()]
        self.twins = [name for name in names if shares[0].has(name) and shares[-1].has(name)]
        """Parameters that first and last stage both have, on the processes of these."""
        self._prepared: tuple[tuple[int, ...], PipelineScheduleSingle | PipelineScheduleMulti] | None = None
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._scale = 1.0

    @property
    def own_s(self) -> float:
        """Seconds of this process's last forward passes."""
        return self._work.own_s

    def backpropagate(
        self, micro_batches: Sequence[Packed], objective: Objective, *, drawn_targets: bool, scale: float
    ) -> tuple[float, int]:
        """Add the gradients of the loss of these rows, times `scale`.

        Returns:
            The summed loss and the number of targets, on the process of the last stage; nothing elsewhere.
        """
        rows, largest = self.mesh.data.max(
            sum(len(packed.tokens_BT) for packed in micro_batches),
            max((len(packed.tokens_BT) for packed in micro_batches), default=0),
        )
        number = number_of_micro_batches(int(rows), int(largest), self.pipeline.size, in_rounds=self.is_looped)
        parts = cut_evenly(micro_batches, number, math.ceil(max(1, rows) / number))
        self._work.begin(parts, objective, drawn_targets)
        self._scale = scale
        numbers, losses = torch.arange(number), list[Tensor]()
        schedule = self._prepare(number, self._work.shape)
        inputs = (numbers,) if 0 in self.stages else ()
        schedule.step(*inputs, target=numbers, losses=losses, return_outputs=False, number=numbers)
        return sum(loss.item() for loss in losses) / scale, self._work.targets if losses else 0

    def score(self, packed: Packed, objective: Objective) -> tuple[float, int]:
        """The loss of a micro-batch and the number of its targets, as `backpropagate` does, without gradients.

        A process that has sent on what it computed is free for the next micro-batch.
        """
        for work, _ in self._sent:
            work.wait()
        self._sent = []
        self._work.begin([packed], objective, drawn_targets=False)
        x, number, group = self._activation, torch.zeros(1, dtype=torch.int64), self.pipeline.group
        with torch.no_grad():
            for index, stage in self.stages.items():
                if not stage.is_first:
                    x = self._activation.new_empty(*self._work.shape, self._activation.shape[-1])
                    dist.recv(x, group=group, group_src=(index - 1) % self.pipeline.size)
                x = stage(x, number)
                if not stage.is_last:
                    work = dist.isend(x, group=group, group_dst=(index + 1) % self.pipeline.size)
                    assert work is not None
                    self._sent.append((work, x))
        return (x.item(), self._work.targets) if self.num_stages - 1 in self.stages else (0.0, 0)

    def bring(self, name: str, value: Tensor | None, like: Tensor) -> Tensor | None:
        """On a pipeline's first process a parameter or buffer; all of the pipeline must call it.

        Args:
            value: It, where this process has it.
            like: Something of its shape and dtype.
        """
        owner = self._owners[name]
        if owner == self.pipeline.rank and owner:
            assert value is not None
            dist.send(value.contiguous(), group=self.pipeline.group, group_dst=0)
        elif owner and self.pipeline.rank == 0:
            value = torch.empty(like.shape, dtype=like.dtype, device=self._activation.device)
            dist.recv(value, group=self.pipeline.group, group_src=owner)
        return value if self.pipeline.rank == 0 else None

    def _prepare(self, number: int, shape: tuple[int, ...]) -> PipelineScheduleSingle | PipelineScheduleMulti:
        """The schedule of so many micro-batches of B T places; it keeps memory for what it receives."""
        if self._prepared is None or self._prepared[0] != (number, *shape):
            self._prepared = None
            self._prepared = (number, *shape), self._make(number, shape)
        return self._prepared[1]

    def _make(self, number: int, shape: tuple[int, ...]) -> PipelineScheduleSingle | PipelineScheduleMulti:
        between = torch.empty(
            *shape, self._activation.shape[-1], dtype=self._activation.dtype, device="meta", requires_grad=True
        )
        loss = torch.empty((), dtype=torch.float64, device="meta", requires_grad=True)
        stages = [
            _Stage(
                stage,
                index,
                self.num_stages,
                self._activation.device,
                input_args=torch.empty(1, dtype=torch.int64, device="meta") if stage.is_first else between,
                output_args=loss if stage.is_last else between,
                group=self.pipeline.group,
            )
            for index, stage in self.stages.items()
        ]
        if self.is_looped:
            return LOOPED[self.schedule](stages, number, self._loss, scale_grads=False)
        return SINGLE[self.schedule](stages[0], number, self._loss, scale_grads=False)

    def _loss(self, output: Tensor, _target: Tensor) -> Tensor:
        """The last stage's output is the loss already."""
        return output * self._scale


class _Stage(PipelineStage):
    """Begins to sum a stage's gradients while others are still computed."""

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        self._begin_sums(last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        self._begin_sums(last_backward)

    def _begin_sums(self, is_complete: bool) -> None:
        assert isinstance(self.submod, Stage)
        for begin in self.submod.begin_sums if is_complete else ():
            begin()


class _Work:
    """What the stages of a process work on: micro-batches by number, each made into an example once."""

    def __init__(self, num_stages: int) -> None:
        self.num_stages = num_stages

    def begin(self, parts: Sequence[Packed], objective: Objective, drawn_targets: bool) -> None:
        """Take up other micro-batches, all of one shape."""
        self.parts, self.objective, self.drawn_targets = parts, objective, drawn_targets
        self.targets, self.own_s, self.seen = 0, 0.0, Counter[int]()
        self.examples = {0: objective(parts[0])}
        self.shape = tuple(self.examples[0].inputs_BT.shape)

    def example(self, number: int) -> Example:
        """A micro-batch for the next of the stages; after the last one it is forgotten."""
        example = self.examples.pop(number, None) or self.objective(self.parts[number])
        self.seen[number] += 1
        if self.seen[number] < self.num_stages:
            self.examples[number] = example
        else:
            self.targets += int(example.loss_mask_BT.sum())
        return example


def number_of_micro_batches(rows: int, largest: int, stages: int, *, in_rounds: bool) -> int:
    """Into how many micro-batches rows are cut: none larger than `largest`, and enough for all processes to be busy.

    Args:
        stages: Processes of the pipeline.
        in_rounds: It must be a multiple of that.
    """
    number = max(stages, math.ceil(rows / max(1, largest)))
    return math.ceil(number / stages) * stages if in_rounds else number


def cut_evenly(micro_batches: Sequence[Packed], number: int, size: int) -> list[Packed]:
    """The same rows as so many micro-batches of `size` rows each; what is missing is padding."""
    whole = collate(micro_batches or [Packed.empty()])
    missing = number * size - len(whole.tokens_BT)
    padding = whole.rows(slice(1)).without_targets()
    whole = collate([whole, *[padding] * missing])
    return [whole.rows(slice(start, start + size)) for start in range(0, number * size, size)]
