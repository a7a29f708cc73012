"""Adapters change what a model computes as merging them would, for their own requests alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tests.engine.conftest import make_model, native_runner, tiny
from tests.engine.lora import merged, random_adapter
from tests.engine.test_runners import (
    INSTRUCTION_SETS,
    RUNNERS,
    MakeRunner,
    chunked,
    make_runner,
    needs_native,
    random_ids,
    rounding_activations,
    whole,
)
from torch import Tensor
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from tallow.engine.adapters import AdapterRegistry
from tallow.engine.engine import Engine
from tallow.engine.language_model import LanguageModel
from tallow.engine.native_runner import NativeRunner
from tallow.engine.packed_model import Number
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.runner import Runner
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import CapacityError, DataError, UsageError
from tallow.models.blocks import quantized
from tallow.models.decoder import Decoder
from tallow.models.families import FAMILIES, find_family
from tallow.models.formats import load_model
from tallow.models.formats.adapters import LowRank, read_adapter, write_adapter
from tallow.models.quantization import quantize_modules
from tallow.tokenizer.tokenizer import Tokenizer

__all__ = ["make_runner"]

GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True)
NAMES = ("one", "two", "three")


def run(engine: Engine, *requests: Request) -> None:
    while not all(request.state is RequestState.FINISHED for request in requests):
        assert engine.step() or engine.state.running


@pytest.fixture(scope="module")
def folders(model: Decoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters for `model`."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        write_adapter(random_adapter(model.config, seed, rank=2 + seed), model.config, root / name, "tiny")
    return {name: root / name for name in NAMES}


# ---- runners


def test_an_adapter_equals_its_merged_model(any_model: Decoder, make_runner: MakeRunner) -> None:
    runner, ids = make_runner(any_model), random_ids(any_model, 90)
    adapter = random_adapter(any_model.config, seed=5)
    expected = whole(merged(any_model, adapter), ids)
    assert (expected - whole(any_model, ids)).abs().max() > 0.1  # else this would prove nothing
    for cuts in ([90], [70, 1, 1, 18]):
        (logits_TV,) = chunked(runner, [ids], [cuts], [runner.load_adapter(adapter)])
        torch.testing.assert_close(logits_TV, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted({family.name for family in FAMILIES.values()}))
def test_every_family_through_its_files(family: str, tmp_path: Path) -> None:
    """Also those that store several of our matrices as one, whose adapters share an A."""
    sizes = {"vocab_size": 61, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 96, "head_dim": 8}
    model = make_model(find_family(family).read_config(AutoConfig.for_model(family, **sizes).to_dict()))
    ids = random_ids(model, 20)
    written = random_adapter(model.config, seed=2, targets=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"))
    write_adapter(written, model.config, tmp_path / "adapter", "tiny")
    expected = whole(merged(model, written), ids)
    adapter = read_adapter(tmp_path / "adapter", model.config)
    for make in RUNNERS.values() if not model.config.num_experts else [TorchRunner]:
        runner = make(model)
        (logits_TV,) = chunked(runner, [ids], [[9, 11]], [runner.load_adapter(adapter)])
        torch.testing.assert_close(logits_TV, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [["q_proj"], ["gate_proj"], ["up_proj"], ["v_proj", "down_proj"]], ids=str)
def test_some_layers_only(model: Decoder, make_runner: MakeRunner, targets: list[str]) -> None:
    runner, ids, others = make_runner(model), random_ids(model, 40), random_ids(model, 30, seed=1)
    adapter = random_adapter(model.config, seed=1, rank=40, targets=targets)
    handles = [runner.load_adapter(adapter), runner.load_adapter(random_adapter(model.config, seed=2)), 0]
    changed, _, plain = chunked(runner, [ids, others, ids], [[40], [30], [40]], handles)
    torch.testing.assert_close(changed, whole(merged(model, adapter), ids), atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(plain, whole(model, ids), atol=5e-5, rtol=1e-5)


def test_layers_with_different_ranks(model: Decoder, make_runner: MakeRunner) -> None:
    adapter = random_adapter(model.config, 1, rank=2) | random_adapter(model.config, 2, rank=33, targets=["k_proj"])
    runner, ids = make_runner(model), random_ids(model, 9)
    (logits_TV,) = chunked(runner, [ids], [[9]], [runner.load_adapter(adapter)])
    torch.testing.assert_close(logits_TV, whole(merged(model, adapter), ids), atol=5e-5, rtol=1e-5)


@needs_native
@pytest.mark.parametrize(
    ("weights", "instruction_set"),
    [*product(("float32", "bfloat16", "nested_int4"), INSTRUCTION_SETS[:1]), *product(["int8"], INSTRUCTION_SETS[1:])],
)
def test_batch_invariance(weights: Number, instruction_set: str) -> None:
    """The same bits alone, with other adapters and none, in chunks, one by one, and on any number of threads."""
    config = tiny(hidden_size=64, num_heads=6, num_kv_heads=2, head_dim=16, intermediate_size=96)
    model = make_model(config)
    adapters = [
        random_adapter(config, seed=1, rank=40),
        random_adapter(config, seed=2),
        random_adapter(config, seed=3, targets=["q_proj", "down_proj"]),
    ]
    sequences = [random_ids(model, 70, seed) for seed in range(4)]

    def results(threads: int, members: Sequence[int], cuts: Sequence[Sequence[int]]) -> list[Tensor]:
        runner = native_runner(model, weights, "bfloat16", threads=threads, instruction_set=instruction_set)
        handles = [0, *map(runner.load_adapter, adapters)]
        return chunked(runner, [sequences[i] for i in members], cuts, [handles[i] for i in members])

    alone = [results(1, [index], [[70]])[0] for index in range(4)]
    for threads, members, cuts in [
        (1, [1], [[1] * 70]),
        (2, [3, 0, 2, 1], [[60, 1, 9], [7, 60, 3], [1, 1, 68], [2, 2, 66]]),
        (3, [2, 0, 1, 3, 2], [[20, 1, 49], [20, 1, 49], [1, 1, 68], [0, 1, 69], [5, 0, 65]]),
    ]:
        for index, logits_TV in zip(members, results(threads, members, cuts), strict=True):
            assert torch.equal(logits_TV, alone[index])


@settings(max_examples=5)
@given(data=st.data())
def test_any_mixture_equals_its_merged_models(model: Decoder, data: st.DataObject) -> None:
    adapters = [
        {},
        random_adapter(model.config, 1),
        random_adapter(model.config, 2, rank=1, targets=["v_proj", "up_proj"]),
    ]
    passes = data.draw(st.integers(1, 4))
    members = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
    most = model.config.max_positions // passes
    cuts = [data.draw(st.lists(st.integers(1, most), min_size=passes, max_size=passes)) for _ in members]
    sequences = [random_ids(model, sum(lengths), seed) for seed, lengths in enumerate(cuts)]
    for make in RUNNERS.values():
        runner = make(model)
        handles = [0, *map(runner.load_adapter, adapters[1:])]
        found = chunked(runner, sequences, cuts, [handles[i] for i in members])
        for logits_TV, ids, index in zip(found, sequences, members, strict=True):
            torch.testing.assert_close(logits_TV, whole(merged(model, adapters[index]), ids), atol=5e-5, rtol=1e-5)


@needs_native
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_models(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Activations are rounding_activations for the model's own products, not for the adapter's."""
    monkeypatch.setattr(quantized, "quantized_linear", rounding_activations)
    config = tiny(hidden_size=64, intermediate_size=96)
    model, adapter = quantize_modules(make_model(config), bits, 32), random_adapter(config, seed=1)
    ids = random_ids(model, 40)
    expected, found = (
        chunked(runner, [ids], [[40]], [runner.load_adapter(adapter)])[0]
        for runner in (TorchRunner(model), native_runner(model, "float32", "float32"))
    )
    assert (found - expected).norm() < 3e-3 * expected.norm()


def test_memory_returns(make_runner: MakeRunner) -> None:
    model = make_model(tiny(num_layers=1))
    runner = make_runner(model)
    before, large = runner.weight_bytes, random_adapter(model.config, seed=1, rank=30_000, targets=["o_proj"])
    handle, resident = runner.load_adapter(large), resident_bytes()
    taken = runner.weight_bytes - before
    assert taken >= 4 * 30_000 * 64
    runner.unload_adapter(handle)
    assert runner.weight_bytes == before
    if isinstance(runner, NativeRunner):  # torch's may stay with the allocator
        assert resident - resident_bytes() > 0.9 * taken
    assert runner.load_adapter(large) != handle


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


# ---- the engine


@pytest.mark.parametrize("make", [TorchRunner, *list(RUNNERS.values())[1:2]])
def test_requests_get_what_the_merged_model_says(model: Decoder, folders: dict[str, Path], make: MakeRunner) -> None:
    engine = Engine(make(model), None)
    for name, path in folders.items():
        engine.load_adapter(name, path)
    assert {name: loaded.path for name, loaded in engine.adapters.items()} == folders
    requests = [engine.submit(range(20), GREEDY, adapter=name) for name in (None, *NAMES)]
    run(engine, *requests)
    for request, name in zip(requests, (None, *NAMES), strict=True):
        change = read_adapter(folders[name], model.config) if name else {}
        alone = Engine(make(merged(model, change)), None)
        expected = alone.submit(range(20), GREEDY)
        run(alone, expected)
        assert request.ids == expected.ids
        assert request.log_probs == pytest.approx(expected.log_probs, abs=1e-4)
    assert len({tuple(request.ids) for request in requests}) == 4


def test_adapters_do_not_share_the_cache(model: Decoder, folders: dict[str, Path]) -> None:
    engine = Engine(TorchRunner(model), None)

    def answer(adapter: str | None) -> list[int]:
        request = engine.submit(range(40), GREEDY, adapter=adapter)
        run(engine, request)
        return request.ids

    plain = answer(None)
    engine.load_adapter("x", folders["one"])
    first = answer("x")
    assert engine.state.hit_tokens == 0
    assert answer("x") == first
    assert engine.state.hit_tokens == 32
    engine.unload_adapter("x")
    engine.load_adapter("x", folders["two"])  # other weights under the same name
    second = answer("x")
    assert engine.state.hit_tokens == 32
    assert answer(None) == plain
    assert engine.state.hit_tokens == 64
    assert len({*map(tuple, (plain, first, second))}) == 3


def test_adapters_come_and_go_while_others_generate(model: Decoder, folders: dict[str, Path]) -> None:
    runner = TorchRunner(model)
    engine, before = Engine(runner, None), runner.weight_bytes
    params = replace(GREEDY, max_new_tokens=30)
    engine.load_adapter("one", folders["one"])
    alone = engine.submit([1, 2, 3], params, adapter="one")
    run(engine, alone)
    running, plain = engine.submit([1, 2, 3], params, adapter="one"), engine.submit([4], params)
    engine.step()
    engine.load_adapter("two", folders["two"])
    aborted = engine.submit([5], params, adapter="two")
    engine.step()
    with_both = runner.weight_bytes
    for name in ("one", "two"):
        engine.unload_adapter(name)
        with pytest.raises(UsageError, match=f"no adapter '{name}'"):
            engine.submit([1], params, adapter=name)
        with pytest.raises(UsageError, match=f"no adapter '{name}'"):
            engine.unload_adapter(name)
    assert engine.adapters == {}
    assert runner.weight_bytes == with_both
    engine.load_adapter("one", folders["three"])  # the name is free at once
    engine.abort(aborted)
    assert runner.weight_bytes > before
    run(engine, running, plain)
    assert running.ids == alone.ids
    engine.unload_adapter("one")
    assert runner.weight_bytes == before


def test_preempted_requests_keep_their_adapter(model: Decoder, folders: dict[str, Path]) -> None:
    def answers(blocks: int) -> list[list[int]]:
        runner = TorchRunner(model)
        engine = Engine(runner, None, cache_bytes=blocks * runner.block_bytes)
        for name in NAMES[:2]:
            engine.load_adapter(name, folders[name])
        params = replace(GREEDY, max_new_tokens=30)
        requests = [engine.submit(range(30), params, adapter=name) for name in NAMES[:2]]
        for name in NAMES[:2]:
            engine.unload_adapter(name)
        run(engine, *requests)
        assert (engine.state.preemptions > 0) == (blocks < 10)
        return [request.ids for request in requests]

    assert answers(5) == answers(20)


def test_limits(model: Decoder, folders: dict[str, Path]) -> None:
    runner = TorchRunner(model)
    registry = AdapterRegistry(runner, max_adapters=1)
    registry.load("one", folders["one"])
    with pytest.raises(UsageError, match="1 adapters are loaded"):
        registry.load("two", folders["two"])
    size = registry.loaded["one"].num_bytes
    assert size == 4 * sum(
        update.a_RI.numel() + update.b_OR.numel() for update in read_adapter(folders["one"], model.config).values()
    )
    small = AdapterRegistry(runner, max_bytes=2 * size)
    small.load("one", folders["one"])
    before = runner.weight_bytes
    with pytest.raises(CapacityError, match=f"only {size:,} left"):
        small.load("two", folders["two"])
    for name in ("one", ""):
        with pytest.raises(UsageError, match="adapter"):
            small.load(name, folders["one"])
    assert runner.weight_bytes == before


def test_broken_adapters_leave_the_engine_as_it_is(model: Decoder, tmp_path: Path) -> None:
    engine = Engine(TorchRunner(model), None)
    with pytest.raises(DataError, match="does not exist"):
        engine.load_adapter("x", tmp_path / "none")
    other = model.config.model_copy(update={"hidden_size": 16, "head_dim": 8})
    write_adapter(random_adapter(other, seed=0), other, tmp_path / "other", "other")
    with pytest.raises(DataError, match="does not fit the model"):
        engine.load_adapter("x", tmp_path / "other")
    untied = make_model(model.config.model_copy(update={"tied_embeddings": False}))
    head = {"lm_head": LowRank(torch.ones(1, 32), torch.ones(untied.config.vocab_size, 1), 1.0)}
    write_adapter(head, untied.config, tmp_path / "head", "head")
    with pytest.raises(DataError, match="changes lm_head"):
        Engine(TorchRunner(untied), None).load_adapter("x", tmp_path / "head")
    assert engine.adapters == {}
    request = engine.submit([1], GREEDY)
    run(engine, request)
    assert request.error is None


@pytest.mark.parametrize("make", list(RUNNERS.values())[:2])
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_adapters_of_peft(make: MakeRunner, rank_stabilized: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=48, num_key_value_heads=2))
    base.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=4,
        lora_alpha=24,
        target_modules=["q_proj", "v_proj", "gate_proj", "down_proj"],
        rank_pattern={"v_proj": 2, "layers.1.mlp.gate_proj": 9},
        alpha_pattern={"model.layers.0.self_attn.q_proj": 40, "down_proj": 7},
        use_rslora=rank_stabilized,
        init_lora_weights=False,
    )
    peft = get_peft_model(base, config).eval()
    peft.save_pretrained(str(tmp_path / "adapter"))
    ids = list(range(2, 42))
    with torch.no_grad():
        expected = peft(torch.tensor([ids])).logits[0]
    model = load_model(tmp_path / "base")
    runner: Runner = make(model)
    (logits_TV,) = chunked(
        runner, [ids], [[30, 10]], [runner.load_adapter(read_adapter(tmp_path / "adapter", model.config))]
    )
    torch.testing.assert_close(logits_TV, expected, atol=1e-4, rtol=1e-4)


def test_a_language_model_with_adapters(model: Decoder, tokenizer: Tokenizer, folders: dict[str, Path]) -> None:
    lm = LanguageModel(TorchRunner(model), tokenizer, Path("tiny"))
    lm.load_adapter("mine", str(folders["one"]))
    changed = lm.generate("abc", GREEDY, adapter="mine")
    assert changed.ids != lm.generate("abc", GREEDY).ids
    assert lm.stream("abc", GREEDY, adapter="mine").result().ids == changed.ids
    merged_lm = LanguageModel(
        TorchRunner(merged(model, read_adapter(folders["one"], model.config))), tokenizer, Path("tiny")
    )
    expected_T = merged_lm.log_probs("abcabc")
    assert np.abs(expected_T - lm.log_probs("abcabc")).max() > 0.1
    np.testing.assert_allclose(lm.log_probs("abcabc", adapter="mine"), expected_T, atol=5e-5, rtol=1e-5)
    ids = lm.encode_prompt("abcabc")
    for scored_T in lm.log_probs_batch([ids, ids], adapter="mine"):
        np.testing.assert_allclose(scored_T, expected_T, atol=5e-5, rtol=1e-5)
    question = [{"role": "user", "content": "hi"}]
    assert lm.chat(question, GREEDY, adapter="mine").ids != lm.chat(question, GREEDY).ids
    lm.unload_adapter("mine")
    with pytest.raises(UsageError, match="no adapter 'mine'"):
        lm.generate("abc", adapter="mine")
