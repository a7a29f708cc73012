"""The cache changes nothing: one pass over a sequence, chunks, single tokens and batches give the same logits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.conftest import make_model
from torch import Tensor
from transformers import AutoConfig

from tallow.engine.cache import MIN_CAPACITY, CacheContext, Chunk, KVCache
from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder
from tallow.models.families import FAMILIES, find_family

CPU = torch.device("cpu")


def whole(model: Decoder, ids_T: Tensor) -> Tensor:
    """Logits, T V, of one pass without a cache."""
    with torch.inference_mode():
        return model.logits(model(ids_T[None], SequenceContext.plain(1, len(ids_T))))[0]


def chunked(model: Decoder, sequences: Sequence[Tensor], cuts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of each sequence, fed side by side: `cuts` has the lengths of its chunks, one for each pass."""
    caches = [KVCache(model.config.num_layers) for _ in sequences]
    starts, parts = [0] * len(sequences), [[] for _ in sequences]
    for lengths in zip(*cuts, strict=True):
        taking_part = [index for index, length in enumerate(lengths) if length]
        chunks = [Chunk(caches[index], starts[index], lengths[index]) for index in taking_part]
        ids = [sequences[index][starts[index] : starts[index] + lengths[index]] for index in taking_part]
        with torch.inference_mode():
            logits_TV = model.logits(model(torch.cat(ids)[None], CacheContext(chunks, CPU)))[0]
        for index, part in zip(taking_part, logits_TV.split([len(chunk) for chunk in ids]), strict=True):
            parts[index].append(part)
            starts[index] += lengths[index]
    return [torch.cat(part) for part in parts]


def random_ids(model: Decoder, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cuts", [[24], [1] * 24, [9, 1, 1, 13], [1, 23], [5, 5, 5, 5, 4]], ids=str)
def test_chunks_equal_the_whole(any_model: Decoder, cuts: list[int]) -> None:
    ids_T = random_ids(any_model, 24)
    (logits_TV,) = chunked(any_model, [ids_T], [cuts])
    torch.testing.assert_close(logits_TV, whole(any_model, ids_T), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", sorted({family.name for family in FAMILIES.values()}))
def test_every_family(family: str) -> None:
    sizes = {"vocab_size": 61, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "head_dim": 8,
        "sliding_window": 5,
    }
    model = make_model(find_family(family).read_config(AutoConfig.for_model(family, **sizes).to_dict()))
    sequences = [random_ids(model, length, seed=length) for length in (18, 12)]
    for logits_TV, ids_T in zip(chunked(model, sequences, [[11, 1, 6], [0, 3, 9]]), sequences, strict=True):
        torch.testing.assert_close(logits_TV, whole(model, ids_T), atol=1e-5, rtol=0)


def test_a_batch_equals_its_members(any_model: Decoder) -> None:
    sequences = [random_ids(any_model, length, seed=length) for length in (17, 6, 11)]
    cuts = [[10, 0, 1, 1, 5], [0, 3, 1, 1, 1], [1, 8, 0, 1, 1]]
    for logits_TV, ids_T in zip(chunked(any_model, sequences, cuts), sequences, strict=True):
        torch.testing.assert_close(logits_TV, whole(any_model, ids_T), atol=1e-5, rtol=0)


def test_the_random_models_look_back(any_model: Decoder) -> None:
    """Else the tests above would prove nothing."""
    ids_T = random_ids(any_model, 8)
    changed_T = torch.cat([(ids_T[:1] + 1) % any_model.config.vocab_size, ids_T[1:]])
    difference = (whole(any_model, ids_T)[3] - whole(any_model, changed_T)[3]).abs().max()
    assert difference > 1e-2


def test_buffers_double_and_keep_their_content() -> None:
    cache = KVCache(num_layers=1)
    generator = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, 2, 5 * MIN_CAPACITY, 4, generator=generator) for _ in range(2))
    start, sizes = 0, set()
    for length in (1, MIN_CAPACITY, 1, 3 * MIN_CAPACITY, 7):
        end = start + length
        stored = cache.store(0, start, keys[:, :, start:end], values[:, :, start:end])
        assert torch.equal(stored[0], keys[:, :, :end])
        assert torch.equal(stored[1], values[:, :, :end])
        sizes.add(cache.nbytes)
        start = end
    one_token = 2 * 2 * 4 * keys.itemsize
    needed = 2 + 4 * MIN_CAPACITY
    assert sizes == {one_token * capacity for capacity in (MIN_CAPACITY, 2 * MIN_CAPACITY, needed, 2 * needed)}


def test_clearing_frees_the_memory(model: Decoder) -> None:
    cache = KVCache(model.config.num_layers)
    with torch.inference_mode():
        model(random_ids(model, 4)[None], CacheContext([Chunk(cache, 0, 4)], CPU))
    assert cache.nbytes > 0
    cache.clear()
    assert cache.nbytes == 0


def test_a_chunk_may_be_fed_again(model: Decoder) -> None:
    """As after a step that was interrupted."""
    ids_T, cache = random_ids(model, 9), KVCache(model.config.num_layers)
    with torch.inference_mode():
        model(ids_T[None, :6], CacheContext([Chunk(cache, 0, 6)], CPU))
        first, second = (
            model.logits(model(ids_T[None, 6:], CacheContext([Chunk(cache, 6, 3)], CPU)))[0] for _ in range(2)
        )
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole(model, ids_T)[6:], atol=1e-5, rtol=0)


@settings(max_examples=15)
@given(data=st.data())
def test_any_cuts_equal_the_whole(any_model: Decoder, data: st.DataObject) -> None:
    """Sequences of any lengths, cut and interleaved in any way."""
    passes = data.draw(st.integers(1, 5))
    cuts = data.draw(
        st.lists(st.lists(st.integers(0, 9), min_size=passes, max_size=passes).filter(any), min_size=1, max_size=4)
    )
    cuts = [list(lengths) for lengths in cuts]
    keep = [column for column in range(passes) if any(lengths[column] for lengths in cuts)]
    cuts = [[lengths[column] for column in keep] for lengths in cuts]
    sequences = [random_ids(any_model, sum(lengths), seed) for seed, lengths in enumerate(cuts)]
    for logits_TV, ids_T in zip(chunked(any_model, sequences, cuts), sequences, strict=True):
        torch.testing.assert_close(logits_TV, whole(any_model, ids_T), atol=1e-5, rtol=0)
