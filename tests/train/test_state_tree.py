from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tallow.train.state_tree import Structure, flatten, unflatten

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
KEYS = st.text("abc.:", min_size=1)
TREES = st.recursive(
    LEAVES,
    lambda parts: (
        st.lists(parts) | st.lists(parts).map(tuple) | st.dictionaries(KEYS, parts, min_size=1)  # an empty one is lost
    ),
    max_leaves=20,
)


def through_json(structure: Structure) -> Structure:
    return Structure.model_validate(json.loads(json.dumps(structure.model_dump(mode="json"))))


@given(st.dictionaries(KEYS, TREES))
def test_what_is_taken_apart_is_put_together_again(state: dict[str, Any]) -> None:
    tensors, structure = flatten(state)
    assert tensors == {}
    again = unflatten(tensors, through_json(structure))
    assert _typed(again) == _typed(state)


def _typed(value: Any) -> Any:
    """Values with their types, for 1 == 1.0 == True."""
    if isinstance(value, dict):
        return {key: _typed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [_typed(part) for part in value]
    return type(value), value


def test_tensors_keep_type_and_layout() -> None:
    state = {
        "layer.weight": {
            "codes": torch.arange(6, dtype=torch.uint8).view(2, 3),
            "bases": [torch.arange(6.0).view(2, 3).T, []],
            "step": torch.tensor(3.0),
        }
    }
    tensors, structure = flatten(state)
    assert sorted(tensors) == ["layer.weight/bases/0", "layer.weight/codes", "layer.weight/step"]
    saved = {path: tensor.contiguous() for path, tensor in tensors.items()}
    again = unflatten(saved, through_json(structure))["layer.weight"]
    assert again["codes"].dtype == torch.uint8
    assert torch.equal(again["bases"][0], state["layer.weight"]["bases"][0])
    assert again["bases"][0].stride() == (1, 3)
    assert again["bases"][1] == []
    assert again["step"] is not state["layer.weight"]["step"]


class Projector:
    def __init__(self, rank: int) -> None:
        self.rank, self.matrix = rank, torch.eye(rank)


class Other:
    pass


def test_objects_of_named_classes_only() -> None:
    tensors, structure = flatten({"weight": {"projector": Projector(2)}}, [Projector])
    again = unflatten(tensors, through_json(structure), [Other, Projector])["weight"]["projector"]
    assert type(again) is Projector
    assert again.rank == 2
    assert torch.equal(again.matrix, torch.eye(2))
    with pytest.raises(AssertionError, match="Other"):
        flatten({"weight": Other()}, [Projector])
    with pytest.raises(KeyError):
        unflatten(tensors, structure, [Other])
