"""Settings of how training is spread over processes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tallow.errors import UsageError
from tallow.recipe import Section

Schedule = Literal["gpipe", "1f1b", "interleaved", "zero_bubble"]


class ParallelConfig(Section):
    """How a model and its batches are spread over the processes that `torchrun` has started.

    The processes are divided by `tensor`, `context` and `pipeline`; what is left shares the rows of each batch (data
    parallelism). No setting but `compress` and `local_steps` changes what is learned, but for rounding.

    Args:
        zero: What those that share the rows divide among them: nothing (0), the optimizer's state (1), gradients too
            (2), weights too (3) (arXiv 1910.02054). With 1 gradients are exchanged once an update, with 2 and 3 after
            each micro-batch; with 3 weights come when their layer needs them. In a pipeline that, too, is once an
            update, for all weights of a stage.
        replicas: With `zero`: so many groups of processes each hold everything, and divide it among themselves alone
            (hybrid sharding; arXiv 2304.11277, section 3.2.2).
        tensor: Processes that share each matrix product (arXiv 1909.08053), and the places of the sequence between
            them (2205.05198).
        context: Processes that share each sequence.
        attention: How these see each other's tokens: by exchanging heads for places (`all_to_all`; 2309.14509), or
            keys and values in a ring (`ring`; 2310.01889).
        pipeline: Processes that share the layers. Micro-batches are cut smaller where there are fewer than processes;
            with several times as many, the processes wait less for each other.
        schedule: In which order these take the micro-batches forward and backward: `gpipe` (1811.06965), `1f1b`
            (2104.04473, section 2.2), `interleaved` (there, section 2.3) or `zero_bubble` (2401.10241). With the last
            two a process has two stages, so there must be twice as many layers as processes.
        expert: Processes that share the experts of each layer, among those that share rows and sequences (2006.16668).
        compress: How gradients go between those that share the rows, for slow links: as they are (`none`), or each
            matrix as the product of two thin ones (`powersgd`; 1905.13727), what is left out being added the next time.
            Without `zero` and `pipeline` only.
        compress_rank: Inner size of the thin matrices.
        local_steps: With more than one, each replica (with `zero` as many as `replicas` says, else each process or
            group that has rows of its own) makes so many updates by itself; then the mean of what they changed is the
            gradient of one outer update by SGD with Nesterov's momentum, from which all go on (DiLoCo, 2311.08105).
        outer_learning_rate: Of that update.
        outer_momentum: Likewise.
        outer_precision: In which the changes travel; `bf16` is half as much (2501.18512 finds even 4 bits enough).
        timeout_s: Seconds that a process waits for the others before it gives them up; more than the slowest step,
            validation or checkpoint takes.
    """

    incidental = frozenset(
        (
            "zero",
            "replicas",
            "tensor",
            "context",
            "attention",
            "pipeline",
            "schedule",
            "expert",
            "timeout_s",
        )
    )

    zero: Literal[0, 1, 2, 3] = 0
    replicas: PositiveInt = 1
    tensor: PositiveInt = 1
    context: PositiveInt = 1
    attention: Literal["all_to_all", "ring"] = "all_to_all"
    pipeline: PositiveInt = 1
    schedule: Schedule = "1f1b"
    expert: PositiveInt = 1
    compress: Literal["none", "powersgd"] = "none"
    compress_rank: PositiveInt = 4
    local_steps: PositiveInt = 1
    outer_learning_rate: PositiveFloat = 0.7
    outer_momentum: float = Field(default=0.9, ge=0, lt=1)
    outer_precision: Literal["fp32", "bf16"] = "fp32"
    timeout_s: PositiveFloat = 1800.0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.compress != "none" and (self.zero or self.pipeline > 1 or self.expert > 1):
            raise UsageError(
                f"loop.parallel.compress {self.compress} needs whole gradients; zero, pipeline and expert divide them",
                "leave one of them out",
            )
        if self.local_steps > 1 and self.compress != "none":
            raise UsageError(
                f"loop.parallel.compress {self.compress} is of gradients that replicas exchange at each update, which "
                f"they do not with local_steps {self.local_steps}",
                "leave one of them out",
            )
        if self.local_steps > 1 and self.expert > 1 and not self.zero:
            raise UsageError(
                "loop.parallel.expert shares experts between processes that would be replicas of their own with "
                f"local_steps {self.local_steps}",
                "set loop.parallel.zero and replicas, which say what a replica is",
            )
        return self
