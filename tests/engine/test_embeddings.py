"""Embeddings: the final hidden state of the last token at length 1, by whatever way the engine comes to it."""

from __future__ import annotations

import copy
from array import array
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.conftest import logits, make_model, make_tokenizer, native_runner, tiny
from tests.engine.lora import merged, random_adapter
from tests.engine.test_runners import INSTRUCTION_SETS, MakeRunner, make_runner, needs_native, random_ids
from torch import Tensor
from transformers import AutoModel

from tallow.engine.engine import Engine
from tallow.engine.language_model import LanguageModel
from tallow.engine.packed_model import Number
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.runner import Span
from tallow.engine.speculation import NgramProposer
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import DataError, UsageError
from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder
from tallow.models.formats import save_model
from tallow.models.formats.adapters import write_adapter
from tallow.tokenizer.tokenizer import Tokenizer

__all__ = ["make_runner"]

GREEDY = SamplingParams(max_new_tokens=6, ignore_eos=True)
QUESTION = [{"role": "user", "content": "hi"}]


def run(engine: Engine, *requests: Request) -> None:
    while not all(request.state is RequestState.FINISHED for request in requests):
        assert engine.step() or engine.state.running
    engine.check_blocks()


def embed(engine: Engine, *prompts: Sequence[int], adapters: Sequence[str | None] | None = None) -> list[list[float]]:
    """Embeddings of prompts that are computed together, each at length 1."""
    names = adapters or [None] * len(prompts)
    requests = [engine.submit_embedding(ids, adapter=name) for ids, name in zip(prompts, names, strict=True)]
    run(engine, *requests)
    found = []
    for request in requests:
        assert (request.finish_reason, request.ids, request.text) == ("stop", [], "")
        assert request.embedding is not None
        found.append(request.embedding.tolist())
    assert torch.tensor(found).norm(dim=-1).tolist() == pytest.approx([1.0] * len(found), abs=1e-6)
    return found


def reference(model: Decoder, ids: Sequence[int]) -> Tensor:
    """The same of one pass without a cache."""
    with torch.inference_mode():
        hidden_BTD = model(torch.tensor([ids]), SequenceContext.plain(1, len(ids)))
        return F.normalize(hidden_BTD[0, -1].float(), dim=0)


def test_equal_those_of_transformers(make_runner: MakeRunner, tmp_path: Path) -> None:
    model = make_model(tiny())
    save_model(model, make_tokenizer(), tmp_path / "model")
    theirs = AutoModel.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    prompts = [random_ids(model, length, seed=length) for length in (1, 16, 17, 60)]
    found = embed(Engine(make_runner(model), None), *prompts)
    for ids, embedding in zip(prompts, found, strict=True):
        with torch.inference_mode():
            expected_D = F.normalize(theirs(torch.tensor([ids])).last_hidden_state[0, -1], dim=0)
        torch.testing.assert_close(torch.tensor(embedding), expected_D, atol=1e-5, rtol=0)


@pytest.mark.parametrize("budget", [7, 512])
def test_every_architecture(any_model: Decoder, make_runner: MakeRunner, budget: int) -> None:
    prompts = [random_ids(any_model, length, seed=length) for length in (3, 40, 22)]
    found = embed(Engine(make_runner(any_model), None, max_tokens_per_step=budget), *prompts)
    for ids, embedding in zip(prompts, found, strict=True):
        torch.testing.assert_close(torch.tensor(embedding), reference(any_model, ids), atol=1e-5, rtol=0)
    assert (reference(any_model, prompts[1]) - reference(any_model, [*prompts[1][1:-1], 9])).abs().max() > 0.05


@needs_native
@pytest.mark.parametrize(
    ("weights", "instruction_set"),
    [
        *product(("float32", "bfloat16", "int8", "nested_int4"), INSTRUCTION_SETS[:1]),
        *product(["int8"], INSTRUCTION_SETS[1:]),
    ],
)
def test_batch_invariance(weights: Number, instruction_set: str) -> None:
    """The same bits alone, in company, in chunks, from the cache, and on any number of threads."""
    model = make_model(tiny(hidden_size=64, num_heads=6, num_kv_heads=2, head_dim=16, intermediate_size=96))
    prompts = [random_ids(model, length, seed=length) for length in (80, 33, 5, 64)]

    def engine(threads: int, budget: int = 512) -> Engine:
        runner = native_runner(model, weights, "bfloat16", threads=threads, instruction_set=instruction_set)
        return Engine(runner, None, max_tokens_per_step=budget)

    alone = [embed(engine(1), ids)[0] for ids in prompts]
    assert embed(engine(2), *prompts) == alone
    assert embed(engine(3, budget=11), *prompts) == alone
    used = engine(2)
    for count in range(3):
        generating = [used.submit(ids[::-1], GREEDY) for ids in prompts]
        assert embed(used, *prompts) == alone
        run(used, *generating)
        assert (used.state.hit_tokens > 0) == (count > 0)


def test_the_last_token_is_computed_where_the_cache_has_all(model: Decoder, make_runner: MakeRunner) -> None:
    engine, ids = Engine(make_runner(model), None), random_ids(model, 32)
    first, second = embed(engine, ids), embed(engine, ids)
    assert engine.state.hit_tokens == 16
    torch.testing.assert_close(torch.tensor(first), torch.tensor(second), atol=1e-6, rtol=0)
    salted = [engine.submit_embedding(ids, cache_salt="another") for _ in range(2)]
    run(engine, *salted)
    assert [request.num_cached_tokens for request in salted] == [0, 0]
    assert engine.state.free_blocks == engine.state.num_blocks


def test_adapters(model: Decoder, make_runner: MakeRunner, tmp_path: Path) -> None:
    """Each of its own; the C++ decoder puts their rows into another order than the requests have."""
    engine, ids = Engine(make_runner(model), None), random_ids(model, 20)
    expected: dict[str | None, Tensor] = {None: reference(model, ids)}
    for seed, name in enumerate(("one", "two")):
        adapter = random_adapter(model.config, seed)
        write_adapter(adapter, model.config, tmp_path / name, "tiny")
        engine.load_adapter(name, tmp_path / name)
        expected[name] = reference(merged(model, adapter), ids)
    assert (expected[None] - expected["one"]).abs().max() > 0.05
    names = ["two", None, "one", "two", None]
    for name, embedding in zip(names, embed(engine, *[ids] * 5, adapters=names), strict=True):
        torch.testing.assert_close(torch.tensor(embedding), expected[name], atol=2e-5, rtol=0)
    with pytest.raises(UsageError, match="three"):
        engine.submit_embedding(ids, adapter="three")


@settings(max_examples=25)
@given(data=st.data())
def test_any_traffic(model: Decoder, data: st.DataObject) -> None:
    """Between requests that generate, preempted and aborted: who is not aborted gets what it gets alone."""
    exact = copy.deepcopy(model).double()
    runner, budget = TorchRunner(exact), data.draw(st.integers(1, 16))
    engine = Engine(
        runner,
        None,
        max_tokens_per_step=budget,
        max_running=data.draw(st.integers(1, 4)),
        cache_bytes=data.draw(st.integers(4, 10)) * runner.block_bytes,
        proposer=data.draw(st.sampled_from([None, NgramProposer()])),
    )
    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=40)
    requests: list[Request] = []
    for action in data.draw(st.lists(st.sampled_from(["embed", "embed", "submit", "step", "abort"]), max_size=20)):
        if action == "embed":
            requests.append(engine.submit_embedding(data.draw(prompts)))
        elif action == "submit":
            requests.append(engine.submit(data.draw(prompts), GREEDY))
        elif action == "step":
            engine.step()
        elif requests:
            engine.abort(data.draw(st.sampled_from(requests)))
        engine.check_blocks()
    run(engine, *requests)
    assert engine.state.free_blocks == engine.state.num_blocks
    for request in requests:
        if request.wants_embedding and request.finish_reason != "abort":
            expected_D = reference(exact, request.prompt_ids)
            torch.testing.assert_close(torch.tensor(request.embedding), expected_D, atol=1e-6, rtol=0)
        else:
            assert request.embedding is None


def test_the_context_may_be_full_but_not_more(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None)
    embed(engine, random_ids(model, 96))
    for ids, message in (([], "empty"), ([1] * 97, "97 tokens do not fit"), ([5, 259], "not in the model's")):
        with pytest.raises(UsageError, match=message):
            engine.submit_embedding(ids)
    assert engine.is_idle


def test_what_is_not_finite_fails_alone(make_runner: MakeRunner) -> None:
    model = make_model(tiny(tied_embeddings=False))
    with torch.no_grad():
        model.embed.weight[7] = float("nan")
    engine = Engine(make_runner(model), None)
    good, bad = engine.submit_embedding([5, 9]), engine.submit_embedding([5, 7])
    run(engine, good, bad)
    assert (good.finish_reason, bad.finish_reason, bad.embedding) == ("stop", "abort", None)
    assert isinstance(bad.error, DataError)
    torch.testing.assert_close(torch.tensor(good.embedding), reference(model, [5, 9]), atol=1e-5, rtol=0)


@pytest.fixture
def lm(model: Decoder, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(TorchRunner(model), tokenizer, Path("tiny"))


def test_through_the_language_model(lm: LanguageModel, model: Decoder) -> None:
    prompts = ["abc", lm.tokenizer.encode("abc"), QUESTION]
    vectors_ND = torch.tensor(lm.embed_batch(prompts))
    assert (vectors_ND.shape, vectors_ND.dtype) == ((3, 32), torch.float32)
    for prompt, vector_D in zip(prompts, vectors_ND, strict=True):
        torch.testing.assert_close(vector_D, reference(model, lm.encode_prompt(prompt)), atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(lm.embed(prompt)), vector_D, atol=1e-6, rtol=0)
    assert lm.embed_batch([]).shape == (0, 32)
    with pytest.raises(UsageError, match="empty"):
        lm.embed_batch(["a", ""])
    assert lm.engine.is_idle


def test_a_broken_model_says_so(tokenizer: Tokenizer) -> None:
    model = make_model(tiny())
    with torch.no_grad():
        model.norm.weight[3] = float("inf")
    with pytest.raises(DataError, match="not finite"):
        LanguageModel(TorchRunner(model), tokenizer, Path("tiny")).embed("abc")


def test_hidden_states_are_of_the_wanted_rows(any_model: Decoder, make_runner: MakeRunner) -> None:
    """Several of a span, none of another: in the order of the spans, as their logits are."""
    runner = make_runner(any_model)
    runner.allocate(9)
    tables = [[array("i", [place + 3 * table]) for table in range(len(runner.layout.windows))] for place in range(3)]
    parts = [(random_ids(any_model, 12), 5), ([4, 6], 0), ([3], 1)]
    scores = runner.run([Span(ids, 0, count, table) for (ids, count), table in zip(parts, tables, strict=True)])
    assert len(scores.logits_RV) == 6
    with torch.inference_mode():
        hidden_RD = torch.stack([torch.tensor(scores.hidden(row)) for row in range(6)])
        torch.testing.assert_close(any_model.logits(hidden_RD[None])[0], logits(scores), atol=2e-5, rtol=1e-5)
