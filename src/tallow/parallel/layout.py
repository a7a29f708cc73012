"""A model spread over processes: it learns what it would learn on one.

Each kind of parallelism is a file of its own that changes the model from outside, and knows nothing of the others; here
they are applied one after the other, always in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tallow.data.batch import Packed
from tallow.models.skeletons import Balancing, Layered
from tallow.objectives import Objective
from tallow.parallel.compressed_sum import CompressedSum
from tallow.parallel.config import ParallelConfig
from tallow.parallel.context import refuse_indivisible, share_places
from tallow.parallel.device import CPU, examples_on
from tallow.parallel.experts import SharedExperts, share_experts
from tallow.parallel.gradient_sum import GradientSum
from tallow.parallel.learner import Learner
from tallow.parallel.mesh import Mesh
from tallow.parallel.recompute import Recompute, recompute
from tallow.parallel.shares import own_gradient, squared_norm, whole_tensor
from tallow.parallel.stages import Stage
from tallow.parallel.tensor import spread
from tallow.parallel.workers import make_workers
from tallow.parallel.world import ALONE, Position, World
from tallow.parallel.zero import shard, sharding_mesh

if TYPE_CHECKING:
    from tallow.parallel.pipeline import Pipeline

PLAIN = ParallelConfig()
Autocast = Callable[[], AbstractContextManager[Any]]


class Layout:
    """A model spread over the processes of a world, in place; alone, it stays as it is.

    Where updates are local (`local_steps`), each worker has a layout of its own: what is said here of all processes is
    of those of this worker (`world`), unless they are called everyone.

    Args:
        model: The whole model; the main process's weights count.
        config: How.
        world: Everyone.
        device: Where this process computes, to which the model goes; of each process a GPU of its own, or the CPU.
        layers_on_host: The layers' parameters stay in the memory of the CPU. With `zero` they come to the device when
            they are wanted; without, who made this layout sees to it.

    Raises:
        UsageError: The processes, or the model, cannot be divided like that.
    """

    def __init__(
        self,
        model: Layered,
        config: ParallelConfig = PLAIN,
        world: World = ALONE,
        device: torch.device = CPU,
        *,
        layers_on_host: bool = False,
    ) -> None:
        assert isinstance(model, nn.Module)
        world.require_alike("devices", device.type)
        shapes = {name: (list(value.shape), value.requires_grad) for name, value in model.named_parameters()}
        world.require_alike("models or settings of loop.parallel", f"{config.model_dump_json()} {shapes}")
        self.device, self.layers_on_host = device, layers_on_host
        self.workers = make_workers(Mesh(config, world))
        _move(model, device, layers_stay=layers_on_host)
        world.copy_from_main([*model.parameters(), *model.buffers()])
        if self.workers.count > 1:
            config = config.model_copy(update={"replicas": 1})  # the others are other workers
        self.config, self.world = config, self.workers.own
        self.mesh = Mesh(config, self.world, self.workers.count, device.type)
        world = self.world
        self.shapes = {name: list(value.shape) for name, value in model.named_parameters() if value.requires_grad}
        """Of all parameters that are trained, whole, by name."""
        self._whole = {name: torch.empty_like(value, device="meta") for name, value in model.state_dict().items()}
        self._pipeline = _pipeline(model, config, self.mesh) if config.pipeline > 1 else None
        self.model, self.learner = model, Learner(model)
        parts = [self.learner] if self._pipeline is None else [*self._pipeline.stages.values()]
        self._parts: list[nn.Module] = [*parts]
        self.layers = [layer for part in parts for layer in part.layers]
        """Those of the model that this process computes."""
        # processes whose rows need other numbers of passes would wait for each other for ever
        self.in_step = world.size > 1 and (config.zero > 0 or config.context > 1 or config.expert > 1)
        if config.tensor > 1:
            vocabulary = spread(model, self.mesh.grid["tensor"])
            for part in parts:
                part.vocabulary = vocabulary
        experts: list[SharedExperts] = []
        if config.expert > 1:
            experts = share_experts(model, self.mesh.expert_grid, self.mesh.experts)
        if config.context > 1:
            refuse_indivisible(model, config)
        if config.zero and world.size > 1:
            for part in parts:
                shard(
                    part,
                    part.layers,
                    sharding_mesh(self.mesh.grid),
                    experts=[module for module in part.modules() if isinstance(module, SharedExperts)],
                    experts_mesh=sharding_mesh(self.mesh.expert_grid) if experts else None,
                    whole=_moved(model),
                    # a pipeline needs them for one micro-batch after the other
                    free_weights=config.zero == 3 and self._pipeline is None,
                    on_host=layers_on_host,
                )
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        """What is trained, by name: of each parameter this process's share."""
        self.own_s = 0.0
        """Seconds of the last `backpropagate` until this process had to wait for others' gradients; of a pipeline, in
        which it waits all the time, those of the forward passes. On a GPU, which works behind its process's back, the
        time in which all of it was set going."""
        self._sums: list[GradientSum] = []
        self.compressed: CompressedSum | None = None
        """What sums gradients, where it compresses them."""
        divided = {parameter for module in experts for parameter in module.parameters()}
        for part in [] if config.zero else parts:
            trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
            sums = self._sum_over(self.mesh.tokens, [parameter for parameter in trained if parameter not in divided])
            # those who share experts have sent each other the tokens, and so have no more gradients to sum
            sums += self._sum_over(self.mesh.holders, [parameter for parameter in trained if parameter in divided])
            if isinstance(part, Stage):
                part.begin_sums = [gradient_sum.begin for gradient_sum in sums]
        self._elsewhere = set[str]()
        if self._pipeline is not None and self.mesh.ends.size > 1:
            twins = [name for name in self._pipeline.twins if name in self.parameters]
            self._sums.append(GradientSum([self.parameters[name] for name in twins], self.mesh.ends))
            self._elsewhere |= set(twins if self.mesh.ends.rank else [])

    @property
    def sums_at_once(self) -> bool:
        """Whether a gradient is the sum over all processes as soon as the backward pass gives it."""
        config = self.config
        apart = config.tensor * config.context * config.pipeline * config.expert
        return self.world.size == 1 or (config.zero > 0 and apart == 1)

    def recompute(self, how: Recompute, count: int | None = None) -> None:
        """Let so many layers forget what they need for the backward pass, the first ones; None: all.

        The first ones keep it the longest.
        """
        recompute(self.layers[:count], how)

    def backpropagate(
        self,
        micro_batches: Sequence[Packed],
        objective: Objective,
        autocast: Autocast,
        *,
        drawn_targets: bool = False,
        for_update: bool = True,
        scale: float = 1.0,
    ) -> tuple[float, int]:
        """Add the gradients of the loss of all micro-batches of all processes.

        Args:
            micro_batches: This process's part.
            objective: Makes examples of them.
            autocast: In which the model computes.
            drawn_targets: As `summed_loss` has it.
            for_update: Whether an update is made of these gradients; else they are not compressed.
            scale: Factor of the gradients.

        Returns:
            The summed loss and the number of targets of this process's part; `sum` makes them those of all.
        """
        objective = self._shared(objective)
        if self._pipeline is not None:
            with autocast():
                result = self._pipeline.backpropagate(
                    micro_batches, objective, drawn_targets=drawn_targets, scale=scale
                )
            self.own_s = self._pipeline.own_s
            for gradient_sum in self._sums:
                gradient_sum.complete()
            self._complete_shares()
            return result
        total, targets = torch.zeros((), dtype=torch.float64, device=self.device), 0
        micro_batches = self.level(micro_batches)
        start = time.perf_counter()
        for number, packed in enumerate(micro_batches, 1):
            with self._synchronizing(number == len(micro_batches), exact=not for_update), autocast():
                loss, count = self.learner(packed, objective, drawn_targets)
                (loss * scale).backward()
                self.own_s = time.perf_counter() - start
            total, targets = total + loss.detach(), targets + count
        return total.item(), targets  # once, since it waits for a GPU

    def score(self, packed: Packed, objective: Objective) -> tuple[float, int]:
        """The loss of a micro-batch and the number of its targets, without gradients; all processes must call it."""
        objective = self._shared(objective)
        if self._pipeline is not None:
            return self._pipeline.score(packed, objective)
        with torch.no_grad():
            loss, count = self.learner(packed, objective)
        return loss.item(), count

    def forget_weights(self) -> None:
        """Forget others' shares of the weights: those that follow have other values."""
        for module in (module for part in self._parts for module in part.modules()):
            if isinstance(module, FSDPModule):
                module.reshard()

    def level(self, micro_batches: Sequence[Packed]) -> Sequence[Packed]:
        """These, and where processes must keep step as many empty ones as another process has more."""
        if not self.in_step:
            return micro_batches
        [most] = self.mesh.data.max(len(micro_batches))
        filling = (micro_batches[0] if micro_batches else Packed.empty()).without_targets()
        return [*micro_batches, *[filling] * (int(most) - len(micro_batches))]

    def sum(self, *values: float) -> list[float]:
        """Sums over all processes of what each has done: each part of the work counts once."""
        return self.mesh.distinct.sum(*values)

    @property
    def reader(self) -> Position:
        """This process among those of everyone that have rows of their own; processes with the same rows are one."""
        data, workers = self.mesh.data, self.workers
        return Position(workers.number + workers.count * data.rank, workers.count * data.size)

    def gather(self) -> dict[str, Tensor]:
        """On the main process all weights, whole and on the CPU, by name; nothing elsewhere. All must call it.

        Of several workers, these are the first one's.
        """
        whole: dict[str, Tensor] = {}
        state: dict[str, Tensor] = self.model.state_dict()
        for name, like in self._whole.items():
            value = state.get(name)
            value = whole_tensor(value) if isinstance(value, DTensor) else value
            if self._pipeline is not None:
                value = self._pipeline.bring(name, value, like)
            if self.world.is_main:
                assert value is not None
                whole[name] = value.cpu()
        return whole

    def gradient_norm(self) -> float:
        """Of all parameters of all processes together."""
        counted = [value for name, value in self.parameters.items() if name not in self._elsewhere]
        square = squared_norm(value.grad for value in counted if value.grad is not None)
        [square] = self.mesh.pipeline.sum(square)
        return square**0.5

    def _shared(self, objective: Objective) -> Objective:
        """The objective, of this process's part of each row, on its device."""
        config, objective = self.config, examples_on(self.device, objective)
        return objective if config.context == 1 else share_places(objective, config.attention, self.mesh.context)

    def _sum_over(self, world: World, parameters: Sequence[nn.Parameter]) -> list[GradientSum]:
        """Let gradients be summed; the sums of those that are not compressed."""
        if world.size == 1 or not parameters:
            return []
        self._sums.append(GradientSum(parameters, world))
        if self.config.compress == "powersgd":
            self.compressed = CompressedSum(parameters, world, self.config.compress_rank)
        return self._sums[-1:]

    @contextmanager
    def _synchronizing(self, last: bool, *, exact: bool) -> Iterator[None]:
        """Around the forward and backward pass of a micro-batch: with the last one, gradients become sums."""
        if isinstance(self.learner, FSDPModule):
            self.learner.set_requires_gradient_sync(last or self.config.zero > 1)
            self.learner.set_requires_all_reduce(last)
            if self.config.zero < 3:  # weights stay until the update
                self.learner.set_reshard_after_backward(last)
        sums = self._sums if exact or self.compressed is None else [self.compressed]
        with ExitStack() as stack:
            for gradient_sum in sums if last else []:
                stack.enter_context(gradient_sum.in_last_backward())
            yield
        if last:
            self._complete_shares()

    def _complete_shares(self) -> None:
        """Make of gradients of which each process of a tensor group has a part what they are."""
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                own_gradient(parameter)


def _moved(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that change without a gradient."""
    return {value for _, value in model.moved_parameters()} if isinstance(model, Balancing) else set()


def _move(model: Layered, device: torch.device, *, layers_stay: bool) -> None:
    """Bring a model to a device, in place, but for what its layers compute with, where that is to stay."""
    assert isinstance(model, nn.Module)
    staying = set(model.layers.parameters()) - _moved(model) if layers_stay else set[Tensor]()
    model._apply(lambda tensor: tensor if tensor in staying else tensor.to(device))


def _pipeline(model: Layered, config: ParallelConfig, mesh: Mesh) -> Pipeline:
    from tallow.parallel.pipeline import Pipeline  # slow to import: it brings PyTorch's compiler with it

    return Pipeline(model, config, mesh)
