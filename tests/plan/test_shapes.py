from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.skeletons import ModelConfig, build
from tallow.plan.shapes import count_parameters, shape_of_size, smallest_size

SHAPES: list[ModelConfig] = [
    DecoderConfig(vocab_size=300, hidden_size=64, num_layers=3, intermediate_size=96),
    DecoderConfig(vocab_size=300, hidden_size=64, num_layers=3, intermediate_size=96, tied_embeddings=False),
    DecoderConfig(vocab_size=300, hidden_size=64, num_layers=3, num_experts=4, intermediate_size=32, family="mixtral"),
    DecoderConfig(
        vocab_size=300, num_layers=2, window=8, sliding_layers=(True, False), positions="learned", family="gpt2"
    ),
    EncoderConfig(vocab_size=300, hidden_size=64, num_layers=3, intermediate_size=96),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_model(shape: ModelConfig) -> None:
    model = build(shape)
    counted = count_parameters(shape)
    assert counted.total == model.num_parameters()
    vocabulary = sum(parameter.numel() for parameter in model.parameters() if shape.vocab_size in parameter.shape)
    assert counted.vocabulary == vocabulary
    assert counted.inner == counted.total - vocabulary


@settings(max_examples=10)
@given(st.floats(5.5, 10), st.sampled_from([1024, 8192, 32768]), st.booleans())
def test_a_shape_has_its_size(exponent: float, vocabulary: int, tied: bool) -> None:
    base = DecoderConfig(vocab_size=vocabulary, tied_embeddings=tied)
    size = max(round(10**exponent), 4 * smallest_size(base))
    shape = shape_of_size(size, base)
    assert count_parameters(shape).total == pytest.approx(size, rel=0.12)
    assert 8 <= shape.hidden_size / shape.num_layers <= 256
    assert shape.hidden_size % 32 == 0
    assert shape.hidden_size % 64 == 0 or shape.hidden_size < 128
    assert shape.head_size in (16, 32, 64, 128)
    assert (shape.vocab_size, shape.tied_embeddings) == (vocabulary, tied)


def test_depth_grows_with_width() -> None:
    base = DecoderConfig(vocab_size=32768)
    shapes = [shape_of_size(size, base) for size in (5_000_000, 135_000_000, 1_000_000_000, 7_000_000_000)]
    assert [shape.num_layers for shape in shapes] == sorted(shape.num_layers for shape in shapes)
    assert shapes[1].num_layers in range(9, 16)
    assert shapes[3].num_layers in range(24, 40)


def test_what_is_kept_stays() -> None:
    base = DecoderConfig(vocab_size=4096, num_layers=24, num_heads=2, num_kv_heads=2)
    shape = shape_of_size(20_000_000, base, frozenset({"num_layers", "num_heads", "num_kv_heads"}))
    assert (shape.num_layers, shape.num_heads, shape.num_kv_heads) == (24, 2, 2)
    assert count_parameters(shape).total == pytest.approx(20_000_000, rel=0.1)
    wide = shape_of_size(20_000_000, base.model_copy(update={"hidden_size": 512}), frozenset({"hidden_size"}))
    assert wide.hidden_size == 512
    assert count_parameters(wide).total == pytest.approx(20_000_000, rel=0.1)


def test_an_encoder_has_shapes_too() -> None:
    shape = shape_of_size(20_000_000, EncoderConfig(vocab_size=8192))
    assert count_parameters(shape).total == pytest.approx(20_000_000, rel=0.1)
    assert shape.intermediate_size == 4 * shape.hidden_size


def test_a_vocabulary_that_is_too_large_is_named() -> None:
    with pytest.raises(UsageError, match=r"vocabulary of 49,152 has 200k parameters; the nearest has 1\.6m"):
        shape_of_size(200_000, DecoderConfig(vocab_size=49152))
    assert smallest_size(DecoderConfig(vocab_size=49152)) > 49152 * 32


def test_a_shape_that_is_set_is_not_blamed_on_the_vocabulary() -> None:
    base = DecoderConfig(vocab_size=512, hidden_size=64, num_layers=4, intermediate_size=128)
    kept = frozenset({"hidden_size", "num_layers", "intermediate_size"})
    with pytest.raises(UsageError, match="hidden_size, intermediate_size, num_layers that the recipe sets has 30m"):
        shape_of_size(30_000_000, base, kept)
    for size in (200_000, 300_000, 1_000_000):  # no number of layers makes up for coarse widths
        shape = shape_of_size(size, base.model_copy(update={"num_layers": 3}), frozenset({"num_layers"}))
        assert count_parameters(shape).total == pytest.approx(size, rel=0.1)
