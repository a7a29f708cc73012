from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tallow.models.blocks.context import AttentionSpec, SequenceContext, attention
from tallow.models.config import DecoderConfig, Rotary
from tallow.models.decoder import Decoder, initialize

SHAPES: dict[str, object] = {
    "vocab_size": 31,
    "hidden_size": 24,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 32,
    "max_positions": 32,
}
CONFIGS = {
    "llama": DecoderConfig.model_validate(SHAPES),
    "windows": DecoderConfig.model_validate(
        {**SHAPES, "window": 3, "sliding_layers": (True, False, True), "local_rotary": Rotary(theta=100.0)}
    ),
    "soft caps": DecoderConfig.model_validate({**SHAPES, "attention_softcap": 1.0, "norm_placement": "both"}),
    "learned positions": DecoderConfig.model_validate({**SHAPES, "positions": "learned", "norm": "layer"}),
}


def make_model(config: DecoderConfig) -> Decoder:
    model = Decoder(config)
    initialize(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)  # so that attention tells tokens apart
    return model.eval()


@torch.inference_mode()
def hidden(model: Decoder, ids_BT: Tensor, context: SequenceContext | None = None) -> Tensor:
    return model(ids_BT, context or SequenceContext.plain(len(ids_BT), ids_BT.shape[1]))


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_documents_equal_separate_ones(name: str) -> None:
    model = make_model(CONFIGS[name])
    rows = [[5, 1, 9], [7, 4]]
    generator = torch.Generator().manual_seed(0)
    documents = [[torch.randint(0, 31, (length,), generator=generator) for length in row] for row in rows]
    length = 16
    ids_BT = torch.zeros(2, length, dtype=torch.long)
    positions_BT, documents_BT = torch.zeros_like(ids_BT), torch.full_like(ids_BT, -1)
    for row, parts in enumerate(documents):
        start = 0
        for number, ids in enumerate(parts):
            here = slice(start, start + len(ids))
            ids_BT[row, here], documents_BT[row, here] = ids, number
            positions_BT[row, here] = torch.arange(len(ids))
            start += len(ids)
    packed_BTD = hidden(model, ids_BT, SequenceContext(positions_BT, documents_BT))
    for row, parts in enumerate(documents):
        start = 0
        for ids in parts:
            alone_1TD = hidden(model, ids[None])
            assert torch.allclose(packed_BTD[row, start : start + len(ids)], alone_1TD[0], atol=2e-5)
            start += len(ids)
    # the comparison would notice a leak
    leaking_BTD = hidden(model, ids_BT, SequenceContext(positions_BT))
    assert not torch.allclose(leaking_BTD[0, 5:6], packed_BTD[0, 5:6], atol=1e-2)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_token_sees_a_later_one(name: str) -> None:
    model = make_model(CONFIGS[name])
    ids_BT = torch.randint(0, 31, (1, 12), generator=torch.Generator().manual_seed(1))
    before_BTD = hidden(model, ids_BT)
    for changed in range(12):
        other_BT = ids_BT.clone()
        other_BT[0, changed] = (other_BT[0, changed] + 1) % 31
        after_BTD = hidden(model, other_BT)
        assert torch.equal(after_BTD[:, :changed], before_BTD[:, :changed])
        assert not torch.allclose(after_BTD[:, changed], before_BTD[:, changed], atol=1e-3)


def brute_force(q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, spec: AttentionSpec, documents_BT: Tensor) -> Tensor:
    """Attention one query at a time, in fp64, from the definition."""
    out_BHTd = torch.zeros_like(q_BHTd, dtype=torch.float64)
    batch, heads, length, _ = q_BHTd.shape
    group = heads // k_BKTd.shape[1]
    for b in range(batch):
        for h in range(heads):
            for t in range(length):
                seen = [
                    s
                    for s in range(t + 1)
                    if documents_BT[b, s] == documents_BT[b, t] and (spec.window is None or t - s < spec.window)
                ]
                scores = k_BKTd[b, h // group, seen].double() @ q_BHTd[b, h, t].double() * spec.scale
                if spec.softcap is not None:
                    scores = spec.softcap * torch.tanh(scores / spec.softcap)
                out_BHTd[b, h, t] = scores.softmax(0) @ v_BKTd[b, h // group, seen].double()
    return out_BHTd


@given(
    length=st.integers(1, 9),
    group=st.sampled_from([1, 2, 3]),
    window=st.none() | st.integers(1, 10),
    softcap=st.none() | st.just(0.7),
    packed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_attention_equals_its_definition(
    length: int, group: int, window: int | None, softcap: float | None, packed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    q_BHTd, k_BKTd, v_BKTd = (torch.randn(2, heads, length, 8, generator=generator) for heads in (2 * group, 2, 2))
    documents_BT = torch.zeros(2, length, dtype=torch.long)
    if packed:
        documents_BT = torch.randint(0, 2, (2, length), generator=generator).cumsum(1)
    spec = AttentionSpec(layer=0, scale=0.5, window=window, softcap=softcap)
    context = SequenceContext(torch.arange(length).expand(2, length), documents_BT if packed else None)
    got_BHTd = context.attend(spec, q_BHTd, k_BKTd, v_BKTd)
    assert torch.allclose(got_BHTd.double(), brute_force(q_BHTd, k_BKTd, v_BKTd, spec, documents_BT), atol=1e-5)


def test_grouped_heads_have_the_gradients_of_repeated_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    q_BHTd, k_BKTd, v_BKTd = (
        torch.randn(2, heads, 6, 8, generator=generator, requires_grad=True) for heads in (6, 2, 2)
    )
    upstream_BHTd = torch.randn(2, 6, 6, 8, generator=generator)
    inputs = (q_BHTd, k_BKTd, v_BKTd)
    spec = AttentionSpec(layer=0, scale=0.5)
    got = torch.autograd.grad(attention(*inputs, None, spec), inputs, upstream_BHTd)
    repeated = (q_BHTd, k_BKTd.repeat_interleave(3, dim=1), v_BKTd.repeat_interleave(3, dim=1))
    wanted = torch.autograd.grad(attention(*repeated, None, spec), inputs, upstream_BHTd)
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
