from __future__ import annotations

import pytest
import torch
from tests.parallel.layouts import DECODER, KINDS, make

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.skeletons import new_model
from tallow.parallel.stages import divide, keep

LEARNED = DecoderConfig.model_validate({**DECODER, "positions": "learned"})


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("decoder", {"embed"}, {"embed", "norm"}),
        ("untied", {"embed"}, {"norm", "lm_head"}),
        ("experts", {"embed"}, {"embed", "norm"}),
        ("encoder", {"embed", "embed_positions", "embed_types", "embed_norm"}, {"embed", "head"}),
    ],
)
def test_each_stage_has_what_it_reads(kind: str, first: set[str], last: set[str]) -> None:
    shares = divide(make(kind, seed=0), 3)
    assert [share.layers for share in shares] == [range(2), range(2, 3), range(3, 4)]
    assert [share.children for share in shares] == [first, frozenset(), last]


def test_learned_positions_are_read_by_the_first_stage_alone() -> None:
    first, last = divide(new_model(LEARNED, seed=0), 2)
    assert first.children == {"embed", "embed_positions"}
    assert last.children == {"embed", "norm"}


@pytest.mark.parametrize("kind", KINDS)
def test_stages_have_all_parameters_under_their_names(kind: str) -> None:
    whole = make(kind, seed=0).state_dict()
    held: set[str] = set()
    for number in range(2):
        model = make(kind, seed=0)
        share = divide(model, 2)[number]
        keep(model, [share])
        own = model.state_dict()
        assert set(own) == {name for name in whole if share.has(name)}
        assert all(torch.equal(value, whole[name]) for name, value in own.items())
        assert len(own) < len(whole)
        held |= set(own)
    assert held == set(whole)


def test_too_few_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="4 layers cannot be divided into 5 stages"):
        divide(make("decoder", seed=0), 5)
