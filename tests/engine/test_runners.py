"""A runner computes what the model computes in one pass, however its tokens are cut, batched and laid in the cache."""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable, Sequence

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.conftest import logits, make_model, native_runner, tiny
from torch import Tensor
from transformers import AutoConfig

from tallow.engine.blocks import BLOCK_TOKENS
from tallow.engine.native_runner import READY_SHARE, NativeRunner
from tallow.engine.packed_model import CacheNumber, Number
from tallow.engine.runner import Runner, Span
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import UsageError
from tallow.kernels import cpu
from tallow.kernels.quantized import QuantizedWeight, quantized_linear
from tallow.models.blocks import quantized
from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder
from tallow.models.families import FAMILIES, find_family
from tallow.models.quantization import quantize_modules

NUM_BLOCKS = 192
MakeRunner = Callable[[Decoder], Runner]

needs_native = pytest.mark.skipif(cpu.native() is None, reason="the C++ kernels are not built")
EXTENSION = cpu.native()
INSTRUCTION_SETS: list[str] = EXTENSION.operation_sets() if EXTENSION is not None else []


def native(instruction_set: str | None, threads: int = 2) -> MakeRunner:
    return lambda model: native_runner(model, "float32", "float32", threads=threads, instruction_set=instruction_set)


RUNNERS: dict[str, MakeRunner] = {"torch": TorchRunner} | {name: native(name) for name in INSTRUCTION_SETS}
SINGLE: dict[str, MakeRunner] = {"torch": TorchRunner} | {name: native(name, threads=1) for name in INSTRUCTION_SETS}
"""For many short passes: of two threads, whoever is done first spins, which takes long on a busy machine."""


@pytest.fixture(params=RUNNERS)
def make_runner(request: pytest.FixtureRequest) -> MakeRunner:
    return RUNNERS[request.param]


def whole(model: Decoder, ids: Sequence[int]) -> Tensor:
    """Logits, T V, of one pass without a cache."""
    with torch.inference_mode():
        return model.logits(model(torch.tensor([ids]), SequenceContext.plain(1, len(ids))))[0].float()


def random_ids(model: Decoder, length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def chunked(
    runner: Runner,
    sequences: Sequence[Sequence[int]],
    cuts: Sequence[Sequence[int]],
    adapters: Sequence[int] | None = None,
) -> list[Tensor]:
    """Logits of each sequence, fed side by side: `cuts` has the lengths of its chunks, one for each pass.

    The blocks of the sequences lie scattered in the cache, which is full of what others have left.
    """
    adapters = adapters or [0] * len(sequences)
    runner.allocate(NUM_BLOCKS)
    everything = array("i", range(NUM_BLOCKS))
    runner.run([Span([1] * 20, 0, 0, [everything] * len(runner.layout.windows))])
    order = torch.randperm(NUM_BLOCKS, generator=torch.Generator().manual_seed(len(sequences))).tolist()
    tables = [[array("i") for _ in runner.layout.windows] for _ in sequences]
    starts = [0] * len(sequences)
    parts: list[list[Tensor]] = [[] for _ in sequences]
    for lengths in zip(*cuts, strict=True):
        taking_part = [index for index, length in enumerate(lengths) if length]
        spans = []
        for index in taking_part:
            start, end = starts[index], starts[index] + lengths[index]
            for table in tables[index]:
                while len(table) * BLOCK_TOKENS < end:
                    table.append(order.pop())
            spans.append(Span(sequences[index][start:end], start, lengths[index], tables[index], adapters[index]))
            starts[index] = end
        logits_RV = logits(runner.run(spans))
        for index, part in zip(taking_part, logits_RV.split([len(span.tokens) for span in spans]), strict=True):
            parts[index].append(part)
    return [torch.cat(part) for part in parts]


@pytest.mark.parametrize("cuts", [[24], [1] * 24, [9, 1, 1, 13], [1, 23], [5, 5, 5, 5, 4]], ids=str)
def test_chunks_equal_the_whole(any_model: Decoder, make_runner: MakeRunner, cuts: list[int]) -> None:
    ids = random_ids(any_model, 24)
    (logits_TV,) = chunked(make_runner(any_model), [ids], [cuts])
    torch.testing.assert_close(logits_TV, whole(any_model, ids), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted({family.name for family in FAMILIES.values()}))
def test_every_family(family: str, make_runner: MakeRunner) -> None:
    sizes = {"vocab_size": 61, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
        "head_dim": 8,
        "sliding_window": 5,
    }
    model = make_model(find_family(family).read_config(AutoConfig.for_model(family, **sizes).to_dict()))
    if model.config.num_experts:
        make_runner = TorchRunner  # the C++ decoder knows no experts
    sequences = [random_ids(model, length, seed=length) for length in (90, 12)]
    parts = chunked(make_runner(model), sequences, [[80, 1, 9], [0, 3, 9]])
    for logits_TV, ids in zip(parts, sequences, strict=True):
        torch.testing.assert_close(logits_TV, whole(model, ids), atol=2e-5, rtol=1e-5)


def test_a_batch_equals_its_members(any_model: Decoder, make_runner: MakeRunner) -> None:
    sequences = [random_ids(any_model, length, seed=length) for length in (17, 6, 11)]
    cuts = [[10, 0, 1, 1, 5], [0, 3, 1, 1, 1], [1, 8, 0, 1, 1]]
    for logits_TV, ids in zip(chunked(make_runner(any_model), sequences, cuts), sequences, strict=True):
        torch.testing.assert_close(logits_TV, whole(any_model, ids), atol=2e-5, rtol=1e-5)


def test_long_sequences(make_runner: MakeRunner) -> None:
    """Over several chunks of the softmax, and windows whose first blocks nobody sees any more."""
    for config in (tiny(max_positions=400), tiny(max_positions=400, window=70, sliding_layers=(True, False, True))):
        model = make_model(config)
        ids = random_ids(model, 300)
        (logits_TV,) = chunked(make_runner(model), [ids], [[150, 1, 1, 130, 18]])
        torch.testing.assert_close(logits_TV, whole(model, ids), atol=3e-5, rtol=1e-5)


def test_the_random_models_look_back(any_model: Decoder) -> None:
    """Else the tests above would prove nothing."""
    ids = random_ids(any_model, 8)
    changed = [(ids[0] + 1) % any_model.config.vocab_size, *ids[1:]]
    assert (whole(any_model, ids)[3] - whole(any_model, changed)[3]).abs().max() > 1e-2


def test_a_chunk_may_be_fed_again(model: Decoder, make_runner: MakeRunner) -> None:
    """As after a step that was interrupted."""
    ids, blocks, runner = random_ids(model, 9), array("i", [3]), make_runner(model)
    runner.allocate(4)
    runner.run([Span(ids[:6], 0, 0, [blocks])])
    first, second = (logits(runner.run([Span(ids[6:], 6, 3, [blocks])])) for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole(model, ids)[6:], atol=2e-5, rtol=1e-5)


def test_a_copied_block_is_as_good(model: Decoder, make_runner: MakeRunner) -> None:
    ids, runner = random_ids(model, 20), make_runner(model)
    runner.allocate(8)
    runner.run([Span(ids[:18], 0, 0, [array("i", [5, 2])])])
    expected = logits(runner.run([Span(ids[18:], 18, 2, [array("i", [5, 2])])]))
    runner.copy_block(2, 7)
    assert torch.equal(logits(runner.run([Span(ids[18:], 18, 2, [array("i", [5, 7])])])), expected)


@pytest.mark.parametrize("wanted", [[1, 0, 2], [0, 90, 1], [70, 1, 0]])
def test_what_is_not_wanted_changes_nothing(model: Decoder, make_runner: MakeRunner, wanted: list[int]) -> None:
    """Of many rows, too, whose last layer is computed only where somebody looks."""
    runner, sequences = make_runner(model), [random_ids(model, length, seed=length) for length in (80, 90, 2)]
    runner.allocate(16)
    tables = [[array("i", range(6))], [array("i", range(6, 12))], [array("i", [12])]]
    every = runner.run([Span(ids, 0, len(ids), table) for ids, table in zip(sequences, tables, strict=True)])
    parts = logits(every).split([80, 90, 2])
    some = runner.run([Span(ids, 0, count, table) for ids, count, table in zip(sequences, wanted, tables, strict=True)])
    expected_RV = torch.cat([part[len(part) - count :] for part, count in zip(parts, wanted, strict=True)])
    tolerance = 0 if isinstance(runner, NativeRunner) else 1e-5
    torch.testing.assert_close(logits(some), expected_RV, atol=tolerance, rtol=0)


def test_scores_are_of_the_logits(any_model: Decoder, make_runner: MakeRunner) -> None:
    runner = make_runner(any_model)
    runner.allocate(8)
    tables = [[array("i", [first + 2 * table]) for table in range(len(runner.layout.windows))] for first in (0, 1)]
    scores = runner.run([Span(random_ids(any_model, 12), 0, 5, tables[0]), Span([3], 0, 1, tables[1])])
    assert logits(scores).shape == (6, any_model.config.vocab_size)
    assert scores.tokens == logits(scores).argmax(-1).tolist()
    torch.testing.assert_close(torch.tensor(scores.logits), logits(scores).amax(-1), atol=0, rtol=0)
    torch.testing.assert_close(torch.tensor(scores.log_sum_exp), logits(scores).logsumexp(-1), atol=1e-5, rtol=0)


def test_what_is_not_finite_is_seen(make_runner: MakeRunner) -> None:
    model = make_model(tiny())
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    runner = make_runner(model)
    runner.allocate(4)
    scores = runner.run([Span([5, 7, 9], 0, 1, [array("i", [0])]), Span([5, 9], 0, 1, [array("i", [1])])])
    assert scores.log_sum_exp[0] != scores.log_sum_exp[0]
    # the table is tied: token 7 has no logit for anyone, but the others' own are what they are
    assert logits(scores)[1].isnan().sum() == 1
    with torch.no_grad():
        model.embed.weight[7] = 0.0
    clean = make_runner(model)
    clean.allocate(4)
    expected = logits(clean.run([Span([5, 9], 0, 1, [array("i", [1])])]))[0]
    finite = torch.arange(len(expected)) != 7
    torch.testing.assert_close(logits(scores)[1][finite], expected[finite], atol=1e-5, rtol=0)


@settings(max_examples=10)
@given(data=st.data())
def test_any_cuts_equal_the_whole(model: Decoder, data: st.DataObject) -> None:
    """Sequences of any lengths, cut and interleaved in any way."""
    passes = data.draw(st.integers(1, 5))
    cuts = data.draw(
        st.lists(st.lists(st.integers(0, 9), min_size=passes, max_size=passes).filter(any), min_size=1, max_size=4)
    )
    keep = [column for column in range(passes) if any(lengths[column] for lengths in cuts)]
    cuts = [[lengths[column] for column in keep] for lengths in cuts]
    sequences = [random_ids(model, sum(lengths), seed) for seed, lengths in enumerate(cuts)]
    for make in RUNNERS.values():
        for logits_TV, ids in zip(chunked(make(model), sequences, cuts), sequences, strict=True):
            torch.testing.assert_close(logits_TV, whole(model, ids), atol=2e-5, rtol=1e-5)


@needs_native
@pytest.mark.parametrize("cache", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "weights", ["float32", "bfloat16", "compressed_bfloat16", "int8", "nested_int4", "int4", "int6"]
)
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_batch_invariance(weights: Number, cache: CacheNumber, instruction_set: str) -> None:
    """The same bits alone, in company, in chunks, one by one, and on any number of threads."""
    model = make_model(tiny(hidden_size=64, num_heads=6, num_kv_heads=2, head_dim=16, intermediate_size=96))
    ids, other, third = random_ids(model, 80), random_ids(model, 50, seed=1), random_ids(model, 33, seed=2)

    def runner(threads: int) -> Runner:
        return native_runner(model, weights, cache, threads=threads, instruction_set=instruction_set)

    (alone,) = chunked(runner(1), [ids], [[80]])
    for threads, company, cuts in [
        (2, [ids], [[1] * 80]),
        (2, [ids, other, third], [[70, 1, 9], [7, 40, 3], [1, 1, 31]]),
        (3, [other, ids], [[0, 1, 1, 48], [33, 14, 30, 3]]),
    ]:
        where = company.index(ids)
        assert torch.equal(chunked(runner(threads), company, cuts)[where], alone)


@needs_native
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_compressed_weights_equal_plain_ones(instruction_set: str) -> None:
    model = make_model(tiny(hidden_size=136, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=260))
    with torch.no_grad():
        model.embed.weight[7, ::2] = -0.0
        tiny_values = torch.tensor(2.0) ** torch.arange(-130, -118)  # some of them subnormal
        model.get_parameter("layers.1.feed_forward.up_proj.weight")[3, :12] = tiny_values
    ids, others = random_ids(model, 90), [random_ids(model, 40, seed) for seed in range(1, 41)]
    plain, compressed = (
        native_runner(model, weights, instruction_set=instruction_set)
        for weights in ("bfloat16", "compressed_bfloat16")
    )
    assert compressed.weight_bytes < 0.78 * plain.weight_bytes
    assert compressed.precision == plain.precision == "bfloat16 weights, bfloat16 cache"
    cuts = [1, 1, 2, 3, 10, 11, 40, 22]
    for expected, result in zip(*(chunked(runner, [ids], [cuts]) for runner in (plain, compressed)), strict=True):
        assert torch.equal(result, expected)
    for together in (2, 7, 11, 40):  # a token each
        first = [other[:2] for other in others[:together]]
        for pair in zip(*(chunked(r, first, [[1, 1]] * together) for r in (plain, compressed)), strict=True):
            assert torch.equal(*pair)


def rounded(x: Tensor, width: int) -> Tensor:
    """Activations as they enter products with quantized weights: 8 bits, `width` inputs to a scale."""
    groups = x.unflatten(-1, (-1, width))
    scales = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scales).round() * scales).nan_to_num().flatten(-2)


def rounding_activations(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """The layer as the C++ decoder computes it: beside 4 bits, rows of up to 128 inputs have one scale."""
    return quantized_linear(rounded(x, 32 if weight.bits > 4 else x.shape[-1]), weight, bias)


@needs_native
@pytest.mark.parametrize("cache", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_threads_may_share_the_keys_of_one_sequence(cache: CacheNumber, instruction_set: str) -> None:
    model = make_model(tiny(max_positions=700, window=300, sliding_layers=(True, False, True)))
    ids, other = random_ids(model, 530), random_ids(model, 40, seed=1)

    def runner(threads: int) -> Runner:
        return native_runner(model, "float32", cache, threads=threads, instruction_set=instruction_set)

    (alone,) = chunked(runner(1), [ids], [[530]])
    (shared,) = chunked(runner(2), [ids], [[250, *[1] * 8, 253, *[1] * 19]])
    assert torch.equal(shared, alone)
    company = chunked(runner(3), [other, ids], [[0, 38, 1, 1], [527, 1, 1, 1]])
    assert torch.equal(company[1], alone)


@needs_native
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are used as they are, with rounded activations: equal but where one is rounded to its other neighbour."""
    monkeypatch.setattr(quantized, "quantized_linear", rounding_activations)
    model = quantize_modules(make_model(tiny(hidden_size=64, intermediate_size=96)), bits, 32)
    errors = []
    for seed in range(9):
        ids = random_ids(model, 40, seed)
        expected = whole(model, ids)
        (logits_TV,) = chunked(native_runner(model, "float32", "float32"), [ids], [[40]])
        errors.append(float((logits_TV - expected).norm() / expected.norm()))
    assert statistics.median(errors) < 1e-5
    assert max(errors) < 0.02


@needs_native
def test_rounding_while_loading_equals_rounding_before() -> None:
    model = make_model(tiny(hidden_size=64, intermediate_size=96))
    ids = random_ids(model, 20)
    pairs: list[tuple[Number, int]] = [("int8", 8), ("nested_int4", 4)]
    for weights, bits in pairs:
        (rounded,) = chunked(native_runner(model, weights), [ids], [[20]])
        (stored,) = chunked(native_runner(quantize_modules(make_model(model.config), bits, 32)), [ids], [[20]])
        assert torch.equal(rounded, stored)


@needs_native
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_the_environment_chooses_the_instruction_set(
    name: str, model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALLOW_CPU", name)
    cpu.operation_set.cache_clear()
    try:
        assert native_runner(model).instruction_set == name
        monkeypatch.setenv("TALLOW_CPU", "mmx")
        cpu.operation_set.cache_clear()
        with pytest.raises(UsageError, match="mmx cannot run here"):
            native_runner(model)
    finally:
        cpu.operation_set.cache_clear()


@needs_native
def test_a_share_of_the_cache_is_ready_before_it_is_used() -> None:
    runner, size = native_runner(make_model(tiny())), 400 << 20
    before = psutil.Process().memory_info().rss
    runner.allocate(size // runner.block_bytes)

    def taken() -> float:
        return (psutil.Process().memory_info().rss - before) / (size / READY_SHARE)

    def wait_for(shares: float) -> None:
        deadline = time.monotonic() + 10
        while taken() < shares - 0.05 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert shares - 0.1 < taken() < shares + 0.5

    assert taken() < 0.1  # a process that answers at once and ends takes no more than it uses
    wait_for(1)
    block = size // READY_SHARE // runner.block_bytes
    runner.run([Span([1] * 16, 0, 1, [array("i", [block])] * len(runner.layout.windows))])
    wait_for(2)  # as much again, ahead of what is used
