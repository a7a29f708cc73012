"""The parameters of a model in the tensors of a hub directory, which may have other names and hold several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from tallow.errors import DataError
from tallow.models.families import Family, TensorMap
from tallow.models.families.family import AS_IS
from tallow.models.formats.tensor_files import TensorFiles


class MappedTensors:
    """Reads parameters by our names.

    Args:
        stored: The files.
        family: How its tensors are spelled.
        maps: Which parameters lie where.
        shapes: Those that the parameters must have.

    Raises:
        DataError: A tensor is missing, a layer has one that nothing reads, or the first is broken.
    """

    def __init__(
        self, stored: TensorFiles, family: Family, maps: Iterable[TensorMap], shapes: Mapping[str, torch.Size]
    ) -> None:
        self._stored, self._family, self._maps, self._shapes = stored, family, list(maps), shapes
        self._maps_of: dict[str, list[TensorMap]] = {}  # of a parameter that stacks experts: one for each
        for tensor_map in self._maps:
            for name in tensor_map.ours:
                self._maps_of.setdefault(name, []).append(tensor_map)
        self.dtype = stored.read_weight(family.spellings(self._maps[0].hub)).dtype
        """Of the first tensor; all that are read become of it, unless they are asked for in another."""
        for tensor_map in self._maps:
            stored.find(family.spellings(tensor_map.hub))
        _refuse_unexplained(stored, family)

    def read(self, name: str) -> Tensor:
        """One parameter, which the caller alone will hold.

        Raises:
            DataError: It is broken or of another shape.
        """
        state: dict[str, Tensor] = {}
        for tensor_map in self._maps_of[name]:
            tensor = self._stored.read_weight(self._family.spellings(tensor_map.hub), self.dtype, alone=True)
            part = _split(tensor, tensor_map, self._shapes)[tensor_map.ours.index(name)]
            self._put(state, name, part, tensor_map.expert)
        return state[name]

    def read_all(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """All parameters, mapped from the files where that can be.

        Args:
            dtype: Of all; None: that of the first tensor.

        Raises:
            DataError: One is broken or of another shape.
        """
        state: dict[str, Tensor] = {}
        for tensor_map in self._maps:
            copied = tensor_map.layout is not AS_IS or tensor_map.expert is not None
            spellings = self._family.spellings(tensor_map.hub)
            tensor = self._stored.read_weight(spellings, dtype or self.dtype, alone=copied)
            for name, part in zip(tensor_map.ours, _split(tensor, tensor_map, self._shapes), strict=True):
                # contiguous, as fused optimizers take it to be without a check
                self._put(state, name, part.contiguous(), tensor_map.expert)
        return state

    def _put(self, state: dict[str, Tensor], name: str, part: Tensor, expert: int | None) -> None:
        """Put a parameter, or an expert's part of it, into a state."""
        if expert is None:
            state[name] = part
            return
        if name not in state:
            state[name] = part.new_empty(self._shapes[name])
        state[name][expert] = part


def _split(tensor: Tensor, tensor_map: TensorMap, shapes: Mapping[str, torch.Size]) -> tuple[Tensor, ...]:
    """Our parameters in a stored tensor, once they are of these shapes."""
    wanted = [shapes[name] if tensor_map.expert is None else shapes[name][1:] for name in tensor_map.ours]
    try:
        parts = tensor_map.split(tensor)
    except (RuntimeError, ValueError, IndexError):
        parts = ()
    if [part.shape for part in parts] != wanted:
        text = ", ".join(f"{name} {tuple(shape)}" for name, shape in zip(tensor_map.ours, wanted, strict=True))
        raise DataError(
            f"tensor {tensor_map.hub} has the shape {tuple(tensor.shape)}, but config.json asks it to hold {text}",
            "config.json and the weights are not of the same model",
        )
    return parts


def _refuse_unexplained(stored: TensorFiles, family: Family) -> None:
    """A weight of a layer that nothing has read would silently be left out of the computation."""
    layers = tuple(f"{spelling}." for spelling in family.spellings(family.outside["layers"]))
    for name in sorted(stored.unread):
        if name.startswith(layers) and not name.endswith(family.ignored):
            raise DataError(
                f"{stored.directory} holds the tensor {name}, which a {family.name} model of this config.json lacks",
                "config.json and the weights are not of the same model",
            )
