"""What a process writes of a checkpoint, and where it puts what it reads of one.

The tensors are what is trained, `model/<parameter>`, and the optimizer's state, `optimizer/<parameter>/<slot>`. Where
workers make updates of their own, `model/` has the weights that their round began with, `momentum/<parameter>` belongs
to the outer optimizer, and the names of what each worker has for itself begin with the worker:
`worker-00002/optimizer/`, and in the midst of a round `worker-00002/model/`. Where gradients are compressed,
`compression/` has what was left out of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tallow.errors import DataError
from tallow.parallel.compressed_sum import CompressedSum
from tallow.parallel.mesh import Mesh
from tallow.parallel.shares import is_written_here, like_share, writable
from tallow.train.checkpoint_files import read_shares, stored_tensors
from tallow.train.optimizers.joint import GROUPS, JointOptimizer
from tallow.train.outer import OuterOptimizer
from tallow.train.state_tree import Structure

MODEL, OPTIMIZER, MOMENTUM, COMPRESSION = "model/", "optimizer/", "momentum/", "compression/"


class CheckpointPart:
    """This process's part of what a checkpoint holds.

    Args:
        parameters: What is trained, by name: this process's shares.
        optimizer: What trains it.
        mesh: The processes of this worker.
        outer: What makes the workers' weights one; None: there is one worker, and no such thing.
        compressed: What sums gradients, where it compresses them.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: JointOptimizer,
        mesh: Mesh,
        outer: OuterOptimizer | None,
        compressed: CompressedSum | None = None,
    ) -> None:
        self.compressed = compressed
        self.parameters, self.optimizer, self.mesh, self.outer = parameters, optimizer, mesh, outer
        self.worker, self.workers = (outer.workers.number, outer.workers.count) if outer else (0, 1)
        self.speaks = not any(mesh.place.values())
        """Whether it is for this process to write what is no tensor, even if there is no tensor beside it."""

    def tensors(self, *, in_round: bool) -> tuple[dict[str, Tensor], Structure]:
        """What this process is to write, by name, and what of the optimizer's state is no tensor.

        Args:
            in_round: The workers' weights are not the same now.
        """
        state, structure = self.optimizer.state()
        own = {
            f"{OPTIMIZER}{name}": writable(tensor, self.optimizer.parameters.get(name.partition("/")[0]))
            for name, tensor in state.items()
        }
        weights = {f"{MODEL}{name}": parameter.detach() for name, parameter in self.parameters.items()}
        if self.compressed is not None:
            own |= {f"{COMPRESSION}{key}": tensor for key, tensor in self.compressed.state(self.parameters).items()}
        if self.outer is None:
            tensors = weights | own
        else:
            own = own | weights if in_round else own
            tensors = {f"{_of_worker(self.worker)}{name}": tensor for name, tensor in own.items()}
            if self.worker == 0:
                tensors |= {f"{MODEL}{name}": tensor for name, tensor in self.outer.start.items()}
                tensors |= {f"{MOMENTUM}{name}": tensor for name, tensor in self.outer.momenta.items()}
        return {name: tensor for name, tensor in tensors.items() if is_written_here(tensor, self.mesh)}, structure

    def require_weights(self, directory: Path) -> None:
        """See that there is a weight of the right shape for each parameter.

        Raises:
            DataError: There is not.
        """
        stored = stored_tensors(directory)
        for name, parameter in self.parameters.items():
            size, _ = stored.get(f"{MODEL}{name}", (None, None))
            if size != parameter.shape:
                raise DataError(f"{directory} has no weight {name} of this model's shape", "")

    def load(self, directory: Path, structures: Mapping[int, Sequence[Structure]]) -> None:
        """Take up what all processes have written.

        Of a number of workers other than now, worker w takes up the optimizer's state of worker w modulo that number.
        If they were in the midst of a round, it ends: the next one begins with what they have come to.

        Args:
            structures: What of the optimizers' states is no tensor, by worker.
        """
        saved, source = len(structures), self.worker % len(structures)
        prefix = _of_worker(source) if self.outer else ""
        weights = {f"{MODEL}{name}": parameter.detach() for name, parameter in self.parameters.items()}
        places: dict[str, Tensor] = weights
        if self.outer is not None:
            places = {f"{MODEL}{name}": tensor for name, tensor in self.outer.start.items()}
            places |= {f"{MOMENTUM}{name}": tensor for name, tensor in self.outer.momenta.items()}
            places |= {f"{prefix}{name}": tensor for name, tensor in weights.items()}

        tensors = read_shares(directory, lambda key, *_: places.get(key))
        if self.outer is not None:
            in_round = any(key.startswith(f"{prefix}{MODEL}") for key in tensors)
            if not in_round:
                self.outer.go_back()
            elif saved != self.workers:
                self.outer.step_from(lambda worker: self._weights(directory, worker), saved)
        self._load_compression(directory)
        start = f"{prefix}{OPTIMIZER}"

        def read(names: Collection[str]) -> dict[str, Tensor]:
            def place(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
                name = key.removeprefix(start).partition("/")[0]
                if not key.startswith(start) or name not in names:
                    return None
                if name in self.optimizer.parameters:
                    return like_share(self.optimizer.parameters[name], shape, dtype)
                return torch.empty(shape, dtype=dtype) if name == GROUPS else None

            return {key.removeprefix(start): tensor for key, tensor in read_shares(directory, place).items()}

        self.optimizer.load_state(read, Structure.union(structures[source]))

    def _load_compression(self, directory: Path) -> None:
        if (compressed := self.compressed) is None:
            return

        def place(key: str, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
            name = key.removeprefix(COMPRESSION)
            return compressed.place(self.parameters, name, shape, dtype) if key.startswith(COMPRESSION) else None

        kept = read_shares(directory, place)
        compressed.load_state(self.parameters, {key.removeprefix(COMPRESSION): kept[key] for key in kept})

    def _weights(self, directory: Path, worker: int) -> dict[str, Tensor]:
        """What a worker had come to in the midst of a round."""
        prefix = f"{_of_worker(worker)}{MODEL}"

        def place(key: str, _shape: torch.Size, _dtype: torch.dtype) -> Tensor | None:
            parameter = self.parameters.get(key.removeprefix(prefix)) if key.startswith(prefix) else None
            return None if parameter is None else torch.empty_like(parameter.detach())

        return {key.removeprefix(prefix): tensor for key, tensor in read_shares(directory, place).items()}


def _of_worker(number: int) -> str:
    return f"worker-{number:05d}/"
