"""Rows that several processes share: what each computes for its places is what one computes for the whole rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.parallel.layouts import together
from torch import Tensor

from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.blocks.context import AttentionSpec, Context, SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.parallel import ParallelConfig, World, ring
from tallow.parallel.all_to_all import AllToAllContext
from tallow.parallel.context import refuse_indivisible
from tallow.parallel.places import Cut
from tallow.parallel.ring import RingContext

PROCESSES, ROWS, HEADS, HEAD_SIZE = 3, 2, 6, 4
WAYS = {"all to all": (AllToAllContext, 1), "ring": (RingContext, 2)}
LENGTHS = (2, 13)
"""Fewer places than processes, and numbers that these do not divide."""


@given(length=st.integers(1, 60), processes=st.integers(1, 5), chunks_each=st.integers(1, 2), size=st.integers(1, 9))
def test_each_place_is_one_process_s(length: int, processes: int, chunks_each: int, size: int) -> None:
    cut, row_1T = Cut(length, processes, chunks_each), torch.arange(length)[None]
    found: list[int] = []
    for rank in range(processes):
        [mine] = cut.take(row_1T, rank, -1).tolist()
        assert len(mine) * processes == length + cut.filling
        pieces = cut.pieces_of(rank, size)
        assert all(list(places) == mine[where] and 0 < len(places) <= size for places, where in pieces)
        assert [place for places, _ in pieces for place in places] == [place for place in mine if place >= 0]
        found += [place for place in mine if place >= 0]
    assert sorted(found) == list(range(length))


def test_in_causal_order_all_have_the_same_to_do() -> None:
    cut, row_1T = Cut(40, 5, 2), torch.arange(40)[None]
    assert len({int((cut.take(row_1T, rank, 0) + 1).sum()) for rank in range(5)}) == 1


def contexts(length: int) -> dict[str, Context]:
    generator = torch.Generator().manual_seed(length)
    starts_BT = torch.rand(ROWS, length, generator=generator) < 0.2
    starts_BT[:, 0] = True
    documents_BT = starts_BT.int().cumsum(1)
    index_T = torch.arange(length)
    positions_BT = index_T - torch.where(starts_BT, index_T, 0).cummax(1).values
    padding_BT = index_T >= torch.tensor([[length], [length - 2]])
    return {
        "causal": SequenceContext.plain(ROWS, length),
        "documents": SequenceContext(positions_BT, documents_BT, padding_BT),
        "both directions": BidirectionalContext.plain(ROWS, length),
        "documents in both directions": BidirectionalContext(positions_BT, documents_BT),
    }


def specs(name: str) -> list[AttentionSpec]:
    plain = AttentionSpec(layer=0, scale=0.7)
    if "both" in name:
        return [plain]
    return [plain, AttentionSpec(layer=0, scale=0.7, window=4), AttentionSpec(layer=0, scale=3.0, softcap=2.0)]


def attend(context: Context, spec: AttentionSpec, tensors: list[Tensor], by_out: Tensor) -> list[Tensor]:
    """What it gives, and the gradients of queries, keys and values."""
    q, k, v = (tensor.detach().requires_grad_() for tensor in tensors)
    out = context.attend(spec, q, k, v)
    return [out.detach(), *torch.autograd.grad(out, [q, k, v], by_out)]


def places_of(cut: Cut, rank: int) -> Tensor:
    """The places of the row that a process has, -1 where it has filling."""
    return cut.take(torch.arange(cut.length)[None], rank, -1)[0]


def mine_of(x: Tensor, places: Tensor) -> Tensor:
    """This process's part of what there is for each place, the last dimension but one; 0 in filling."""
    return x[..., places.clamp(min=0), :] * (places >= 0)[:, None]


def differences(world: World) -> dict[str, float]:
    """The greatest difference in what this process computes, in each case."""
    found: dict[str, float] = {}
    generator = torch.Generator().manual_seed(0)
    for length in LENGTHS:
        for name, whole in contexts(length).items():
            for way, (kind, chunks_each) in WAYS.items():
                cut = Cut(length, world.size, chunks_each)
                shared, places = kind(whole, cut, world), places_of(cut, world.rank)
                for spec in specs(name):
                    # fewer than processes, not their multiple, as many
                    for kv_heads in (1, 2, 3) if way == "all to all" and spec.softcap is None else (2,):
                        tensors = [
                            torch.randn(ROWS, heads, length, HEAD_SIZE, generator=generator, dtype=torch.float64)
                            for heads in (HEADS, kv_heads, kv_heads, HEADS)
                        ]
                        expected = attend(whole, spec, tensors[:3], tensors[3])
                        *mine, by_out = (mine_of(tensor, places) for tensor in tensors)
                        found[f"{way}, {name}, {length}, {kv_heads}, {spec}"] = max(
                            (one - mine_of(other, places)).abs().max().item()
                            for one, other in zip(attend(shared, spec, mine, by_out), expected, strict=True)
                        )
                with torch.autocast("cpu", dtype=torch.bfloat16):  # norms and rotations leave queries and keys in fp32
                    q, k, v = (torch.randn(ROWS, 6, length, HEAD_SIZE, generator=generator) for _ in range(3))
                    mine = [mine_of(x, places).to(x.dtype if x is not v else torch.bfloat16) for x in (q, k, v)]
                    got, expected = shared.attend(specs(name)[0], *mine), whole.attend(specs(name)[0], q, k, v)
                    assert got.dtype == torch.bfloat16
                found[f"{way}, {name}, {length}, bf16"] = (got - mine_of(expected, places)).abs().max().item()
                values_BTE = torch.randn(ROWS, length, 3, generator=generator, dtype=torch.float64)
                expected_BTE = whole.sum_over_sequences(values_BTE.flatten(0, 1)).unflatten(0, (ROWS, length))
                sums_NE = shared.sum_over_sequences(mine_of(values_BTE, places).flatten(0, 1))
                difference_BTE = sums_NE.unflatten(0, (ROWS, -1)) - mine_of(expected_BTE, places)
                found[f"{way}, {name}, {length}, sums"] = (difference_BTE * (places >= 0)[:, None]).abs().max().item()
                # what is filling must be padding, and what is padding stay so
                padding_BT = torch.zeros(ROWS, length).bool() if whole.padding_BT is None else whole.padding_BT
                same = torch.equal(
                    torch.zeros(ROWS, len(places)).bool() if shared.padding_BT is None else shared.padding_BT,
                    padding_BT[:, places.clamp(min=0)] | (places < 0),
                )
                found[f"{way}, {name}, {length}, padding"] = 0.0 if same else 1.0
    return found


def compare(world: World, directory: Path) -> None:
    ring.PIECE_PLACES = 4
    write_json(directory / f"{world.rank}.json", differences(world))


def test_attention_of_shared_rows(tmp_path: Path) -> None:
    together(PROCESSES, compare, tmp_path)
    for rank in range(PROCESSES):
        for case, difference in read_json(tmp_path / f"{rank}.json").items():
            # the softmax of capped scores of whole rows is fp32 whatever they are
            tolerance = 2e-2 if case.endswith("bf16") else 1e-5 if "softcap=2" in case else 1e-12
            assert difference < tolerance, (rank, case)


def rounding(world: World, directory: Path) -> None:
    """Write how far the ring and whole rows in fp32 are from whole rows in fp64, at sharp softmaxes."""
    ring.PIECE_PLACES = 16
    generator, whole, cut = torch.Generator().manual_seed(1), SequenceContext.plain(8, 66), Cut(66, world.size, 2)
    places, spec = places_of(cut, world.rank), AttentionSpec(layer=0, scale=4.0)
    tensors = [torch.randn(8, heads, 66, 16, generator=generator) for heads in (4, 2, 2, 4)]
    exact = attend(whole, spec, [x.double() for x in tensors[:3]], tensors[3].double())
    *mine, by_out = (mine_of(x, places) for x in tensors)
    shared = attend(RingContext(whole, cut, world), spec, mine, by_out)
    plain = [mine_of(x, places) for x in attend(whole, spec, tensors[:3], tensors[3])]
    errors = {
        name: [(x - mine_of(other, places)).norm().item() for x, other in zip(some, exact, strict=True)]
        for name, some in (("ring", shared), ("whole", plain))
    }
    write_json(directory / f"{world.rank}.json", errors)


def test_a_ring_rounds_no_more_than_whole_rows(tmp_path: Path) -> None:
    together(2, rounding, tmp_path)
    for rank in range(2):
        errors = read_json(tmp_path / f"{rank}.json")
        assert all(one < 1.5 * other for one, other in zip(errors["ring"], errors["whole"], strict=True)), errors


def test_heads_that_cannot_be_divided() -> None:
    shape = {
        "vocab_size": 8,
        "hidden_size": 24,
        "num_layers": 1,
        "num_heads": 6,
        "intermediate_size": 8,
        "num_kv_heads": 2,
    }
    model = Decoder(DecoderConfig.model_validate({**shape, "max_positions": 8}))
    refuse_indivisible(model, ParallelConfig(context=3))
    refuse_indivisible(model, ParallelConfig(context=4, attention="ring"))
    with pytest.raises(UsageError, match="cannot share 6 heads evenly"):
        refuse_indivisible(model, ParallelConfig(context=2, tensor=2))
