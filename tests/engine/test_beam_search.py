"""Beam search finds what that of `transformers` finds, however its beams are batched, chunked and preempted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.conftest import make_model, tiny
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tallow.engine.beam_search import BeamParams, BeamSearch, EarlyStopping
from tallow.engine.engine import Engine
from tallow.engine.policies import PolicyName
from tallow.engine.request import RequestState, SamplingParams
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import DataError, UsageError
from tallow.models.decoder import Decoder
from tallow.models.formats.hub import load_directory

VOCAB_SIZE, END = 37, 2
PROMPTS = ([5, 9, 3], [11] * 17, [*range(3, 36)])
PENALTIES = (-1.0, 0.0, 0.6, 1.0, 2.0)
STOPPING: tuple[EarlyStopping, ...] = (False, True, "never")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def reference() -> PreTrainedModel:
    """Random weights; the end token is about as likely as others."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=END,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 1.2 * parameter.shape[1] ** -0.5, generator=generator)
    return model


@pytest.fixture(scope="module")
def model(reference: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    directory: Path = tmp_path_factory.mktemp("model")
    reference.save_pretrained(directory)
    return load_directory(directory).eval()


def theirs(reference: PreTrainedModel, prompt: Sequence[int], params: BeamParams) -> list[tuple[list[int], float]]:
    """The answers of `transformers`, the best first, and their scores."""
    options: dict[str, Any] = {"eos_token_id": [END, *params.stop_ids]}
    if params.ignore_eos:
        options["eos_token_id"] = list(params.stop_ids) or None
    generate: Any = reference.generate  # what it returns depends on its arguments
    with torch.inference_mode():
        found = generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            num_beams=params.num_beams,
            num_return_sequences=params.num_beams,
            max_new_tokens=params.max_new_tokens,
            length_penalty=params.length_penalty,
            early_stopping=params.early_stopping,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            pad_token_id=0,
            **options,
        )
    answers = []
    for ids, score, beams in zip(
        found.sequences.tolist(), found.sequences_scores.tolist(), found.beam_indices.tolist(), strict=True
    ):
        length = sum(beam >= 0 for beam in beams)
        answers.append((ids[len(prompt) : len(prompt) + length], score))
    return answers


def finish(engine: Engine, *searches: BeamSearch) -> None:
    for _ in range(5000):
        if all(search.is_finished for search in searches):
            engine.check_blocks()
            return
        engine.step()
    raise AssertionError("the searches do not end")


def search(model: Decoder, prompt: Sequence[int], params: BeamParams, **options: Any) -> BeamSearch:
    engine = Engine(TorchRunner(model), None, **options)
    found = engine.search(prompt, params)
    finish(engine, found)
    assert engine.state.free_blocks == engine.state.num_blocks
    assert engine.state.waiting == engine.state.running == 0
    return found


def assert_equal(found: BeamSearch, expected: Sequence[tuple[list[int], float]]) -> None:
    assert [result.ids for result in found.results] == [ids for ids, _ in expected]
    scores = [result.score for result in found.results]
    assert scores == pytest.approx([score for _, score in expected], abs=TOLERANCE)


@pytest.mark.parametrize("early_stopping", STOPPING)
@pytest.mark.parametrize("length_penalty", PENALTIES)
def test_results_are_those_of_transformers(
    reference: PreTrainedModel, model: Decoder, length_penalty: float, early_stopping: EarlyStopping
) -> None:
    reasons = set()
    for prompt, (num_beams, length), stop_ids, ignore_eos in [
        (PROMPTS[0], (2, 12), (), False),
        (PROMPTS[1], (4, 9), (7, 20), False),
        (PROMPTS[2], (3, 14), (4, 16, 30, 33), False),
        (PROMPTS[0], (4, 10), tuple(range(20, 28)), False),
        (PROMPTS[1], (3, 6), (), True),
        (PROMPTS[2], (5, 1), (8,), False),
    ]:
        params = BeamParams(num_beams, length, length_penalty, early_stopping, stop_ids, ignore_eos)
        found = search(model, prompt, params)
        assert_equal(found, theirs(reference, prompt, params))
        reasons |= {result.finish_reason for result in found.results}
    assert reasons == {"stop", "length"}


def test_one_beam_is_greedy(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None)
    greedy = engine.submit(PROMPTS[0], SamplingParams(max_new_tokens=9))
    while greedy.state is not RequestState.FINISHED:
        engine.step()
    [found] = search(model, PROMPTS[0], BeamParams(1, 9)).results
    assert found.ids == greedy.ids
    assert found.log_probs == pytest.approx(greedy.log_probs, abs=1e-5)
    assert found.score == pytest.approx(sum(greedy.log_probs) / len(greedy.ids), abs=1e-5)


def test_several_ends_at_a_time_may_all_be_better_than_those_before(model: Decoder) -> None:
    """All that complete in the last step count, and the worst of those before gives way."""
    searches = [search(model, PROMPTS[0], BeamParams(3, 8, 2.0, True, tuple(range(low, low + 9)))) for low in range(25)]
    for found in searches:
        scores = [result.score for result in found.results]
        assert scores == sorted(scores, reverse=True)
        assert len(scores) == 3


@pytest.fixture(scope="module")
def exact_model() -> Decoder:
    """In fp64, so that rounding (which differs between batch sizes) never decides between two beams."""
    return make_model(tiny(), seed=2).double()


def results(found: BeamSearch) -> list[tuple[list[int], float]]:
    return [(result.ids, result.score) for result in found.results]


@pytest.mark.parametrize("budget", [10, 16])
@pytest.mark.parametrize("windows", [{}, {"window": 7, "sliding_layers": (True, False, True)}])
def test_chunked_and_preempted_equal_alone(budget: int, windows: dict[str, Any]) -> None:
    model, params = make_model(tiny(**windows), seed=2).double(), BeamParams(3, 14, 0.6, ignore_eos=True)
    expected = results(search(model, range(21), params))
    runner = TorchRunner(model)
    blocks = 3 * runner.layout.blocks_needed(21 + 14, budget)
    engine = Engine(
        runner,
        None,
        max_tokens_per_step=budget,
        max_running=4,
        cache_bytes=blocks * runner.block_bytes,
        policy="priority",
    )
    found = engine.search(range(21), params, priority=1)
    for _ in range(21 // budget + 9):
        engine.step()
    assert len(found.beams[0].ids) > 2
    urgent = SamplingParams(max_new_tokens=30, ignore_eos=True)
    others = [engine.submit(range(start, start + 20), urgent) for start in (50, 99)]
    finish(engine, found)
    assert_equal(found, expected)
    assert engine.state.preemptions > 0
    for other in others:
        engine.abort(other)
    assert engine.state.free_blocks == engine.state.num_blocks


@settings(max_examples=20)
@given(
    policy=st.sampled_from(["first-come", "priority", "shortest"]),
    max_running=st.integers(3, 6),
    spare_blocks=st.integers(0, 4),
    budget=st.integers(1, 20),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 18)), min_size=2, max_size=4),
    abort=st.integers(0, 30),
)
def test_searches_that_need_each_others_memory_all_end(
    exact_model: Decoder,
    policy: PolicyName,
    max_running: int,
    spare_blocks: int,
    budget: int,
    sizes: list[tuple[int, int, int]],
    abort: int,
) -> None:
    runner = TorchRunner(exact_model)
    blocks = max(beams * runner.layout.blocks_needed(prompt + new, budget) for beams, prompt, new in sizes)
    engine = Engine(
        runner,
        None,
        max_tokens_per_step=budget,
        max_running=max_running,
        cache_bytes=(blocks + spare_blocks) * runner.block_bytes,
        policy=policy,
    )
    sought = [(range(prompt), BeamParams(beams, new, stop_ids=(*range(0, 50, 5),))) for beams, prompt, new in sizes]
    searches = [engine.search(prompt, params) for prompt, params in sought]
    for _ in range(abort):
        engine.step()
        engine.check_blocks()
    engine.abort_search(searches[-1])
    finish(engine, *searches)
    assert engine.state.free_blocks == engine.state.num_blocks
    for found, (prompt, params) in list(zip(searches, sought, strict=True))[:-1]:
        assert_equal(found, results(search(exact_model, prompt, params)))


def test_beams_share_what_they_have_in_common(exact_model: Decoder) -> None:
    engine = Engine(TorchRunner(exact_model), None)
    found = engine.search(range(70), BeamParams(4, 8, ignore_eos=True))
    for _ in range(3):
        engine.step()
    assert engine.state.running == 4
    assert engine.state.num_blocks - engine.state.free_blocks <= 4 + 4  # each has at most the last one for itself
    engine.abort_search(found)
    engine.abort_search(found)
    assert engine.state.free_blocks == engine.state.num_blocks
    assert engine.state.running == engine.state.waiting == 0
    assert found.is_finished


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_end_the_search(broken: float) -> None:
    model = make_model(tiny(tied_embeddings=False))
    with torch.no_grad():
        model.embed.weight[200] = broken
    engine = Engine(TorchRunner(model), None)
    sick, healthy = engine.search([5, 200], BeamParams(2, 5)), engine.search([5, 9], BeamParams(2, 5))
    finish(engine, sick, healthy)
    assert isinstance(sick.error, DataError)
    assert "not finite" in sick.error.message
    assert sick.results == []
    assert healthy.error is None
    assert len(healthy.results) == 2


@pytest.mark.parametrize(
    "values",
    [
        *({"num_beams": number} for number in (0, 65, 2.5)),
        *({"max_new_tokens": number} for number in (0, 1.5)),
        *({"length_penalty": penalty} for penalty in (1e9, -1e9, math.nan, math.inf, "1")),
        *({"early_stopping": value} for value in ("sometimes", 1)),
        {"ignore_eos": "no"},
        {"stop_ids": 5},
    ],
    ids=str,
)
def test_parameters_that_make_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values))):
        BeamParams(**values)


def test_what_cannot_be_is_refused_at_the_door(exact_model: Decoder) -> None:
    runner = TorchRunner(exact_model)
    engine = Engine(runner, None, max_running=4, cache_bytes=8 * runner.block_bytes)
    with pytest.raises(UsageError, match="4 beams of 40 tokens do not fit into the cache"):
        engine.search(range(30), BeamParams(4, 10))
    with pytest.raises(UsageError, match="5 beams are more than the 4 requests"):
        engine.search([1], BeamParams(5, 3))
    with pytest.raises(UsageError, match="empty"):
        engine.search([], BeamParams())
    with pytest.raises(UsageError, match="999"):
        engine.search([999], BeamParams())
    with pytest.raises(UsageError, match="stop_ids"):
        engine.search([1], BeamParams(2, 3, stop_ids=(999,)))
    with pytest.raises(UsageError, match="priorities"):
        engine.search([1], BeamParams(2, 3), priority=1)
    assert engine.state.waiting == 0
    finish(engine, engine.search(range(22), BeamParams(4, 10)))
