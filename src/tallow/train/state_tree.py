"""State of any form as tensors and JSON: what is in lists, mappings and objects gets a path of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tallow.recipe import Section

Value = bool | int | float | str | None
LIST, TUPLE = "list", "tuple"


class Structure(Section):
    """What of a state is no tensor, by path (`layer.weight/slot/0`).

    Args:
        values: Numbers, text, booleans and null.
        kinds: `list`, `tuple`, or the name of an object's class; what else has parts is a mapping.
        strides: Of tensors that do not lie in the order of their indices; products may round otherwise if they do.
    """

    values: dict[str, Value]
    kinds: dict[str, str]
    strides: dict[str, list[int]]

    @classmethod
    def union(cls, parts: Sequence[Structure]) -> Structure:
        """All that several parts of a state say."""
        values, kinds, strides = {}, {}, {}
        for part in parts:
            values, kinds, strides = values | part.values, kinds | part.kinds, strides | part.strides
        return cls(values=values, kinds=kinds, strides=strides)

    def of(self, keys: Collection[str]) -> Structure:
        """What it says of some of the state's keys."""
        return Structure(
            values={path: value for path, value in self.values.items() if path.partition("/")[0] in keys},
            kinds={path: kind for path, kind in self.kinds.items() if path.partition("/")[0] in keys},
            strides={path: strides for path, strides in self.strides.items() if path.partition("/")[0] in keys},
        )


def flatten(state: Mapping[str, Any], classes: Sequence[type] = ()) -> tuple[dict[str, Tensor], Structure]:
    """Take a state apart.

    Args:
        state: Tensors, numbers, text, null, and lists, tuples, mappings and objects of these; keys are text.
        classes: Of the objects, which consist of their attributes.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Value] = {}
    kinds: dict[str, str] = {}

    def visit(path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            tensors[path] = value
        elif value is None or isinstance(value, bool | int | float | str):
            values[path] = value
        elif isinstance(value, list | tuple):
            kinds[path] = LIST if isinstance(value, list) else TUPLE
            for index, part in enumerate(value):
                visit(f"{path}/{index}", part)
        else:
            if not isinstance(value, Mapping):
                assert type(value) in classes, f"{path} is a {type(value)}"
                kinds[path], value = type(value).__name__, vars(value)
            for key, part in value.items():
                visit(f"{path}/{key}", part)

    for key, value in state.items():
        visit(key, value)
    strides = {path: list(tensor.stride()) for path, tensor in tensors.items() if not tensor.is_contiguous()}
    return tensors, Structure(values=values, kinds=kinds, strides=strides)


def unflatten(tensors: Mapping[str, Tensor], structure: Structure, classes: Sequence[type] = ()) -> dict[str, Any]:
    """The state that was taken apart; its tensors are copies that lie as they lay."""
    known = {kind.__name__: kind for kind in classes}
    root: dict[str, Any] = {}

    def place(path: str) -> dict[str, Any]:
        """The mapping of the parts of what is at this path."""
        node = root
        for key in path.split("/"):
            node = node.setdefault(key, {})
        return node

    for path in structure.kinds:
        place(path)
    leaves = structure.values | {path: _copy(tensor, structure.strides.get(path)) for path, tensor in tensors.items()}
    for path, leaf in leaves.items():
        parent, slash, key = path.rpartition("/")
        (place(parent) if slash else root)[key] = leaf

    def assemble(path: str, node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        parts = {key: assemble(f"{path}/{key}", part) for key, part in node.items()}
        kind = structure.kinds.get(path)
        if kind is None:
            return parts
        if kind in (LIST, TUPLE):
            ordered = [parts[str(index)] for index in range(len(parts))]
            return ordered if kind == LIST else tuple(ordered)
        made = object.__new__(known[kind])
        vars(made).update(parts)
        return made

    return {key: assemble(key, node) for key, node in root.items()}


def map_tensors(
    state: Any, change: Callable[[str, Tensor], Tensor], classes: Sequence[type] = (), path: str = ""
) -> Any:
    """The state with other tensors, in place but for tuples.

    Args:
        state: As `flatten` takes it.
        change: Gives a tensor in place of the one of this path.
        classes: Of the objects, which consist of their attributes.
        path: Of the state itself.
    """
    if isinstance(state, Tensor):
        return change(path, state)
    if isinstance(state, tuple):
        return tuple(map_tensors(part, change, classes, f"{path}/{index}") for index, part in enumerate(state))
    if isinstance(state, list):
        parts: Any = state
        keys: Any = range(len(state))
    elif isinstance(state, dict) or type(state) in classes:
        parts = state if isinstance(state, dict) else vars(state)
        keys = parts.keys()
    else:
        return state
    for key in keys:
        parts[key] = map_tensors(parts[key], change, classes, f"{path}/{key}")
    return state


def _copy(tensor: Tensor, strides: list[int] | None) -> Tensor:
    if isinstance(tensor, DTensor):
        own = tensor.to_local()
        own = _copy(own, strides if own.shape == tensor.shape else None)
        return DTensor.from_local(own, tensor.device_mesh, tensor.placements, run_check=False)
    if strides is None:
        return tensor.clone()
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
