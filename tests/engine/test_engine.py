"""The engine's one rule gives every request the tokens that it gets alone."""

from __future__ import annotations

import copy
import math
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.conftest import CONFIGS, make_model, tiny

from tallow.engine.beam_search import BeamParams, BeamSearch
from tallow.engine.engine import MAX_ANSWERS, SCORING, Engine
from tallow.engine.policies import POLICIES
from tallow.engine.request import GREATEST_CHANGE, Request, RequestState, SamplingParams
from tallow.engine.runner import Floats, context_length
from tallow.engine.speculation import DraftModel, NgramProposer, StepCost
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import DataError, UsageError
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import Rotary, RotaryScaling
from tallow.models.decoder import Decoder
from tallow.tokenizer.tokenizer import Tokenizer

GREEDY = SamplingParams(max_new_tokens=12)
SAMPLED = SamplingParams(max_new_tokens=12, temperature=1.0, top_p=0.95, seed=7)


def run(engine: Engine, *requests: Request) -> None:
    while not all(request.state is RequestState.FINISHED for request in requests):
        assert engine.step() or engine.state.running


def answer(model: Decoder, prompt_ids: Sequence[int], params: SamplingParams) -> list[int]:
    engine = Engine(TorchRunner(model), None)
    request = engine.submit(prompt_ids, params)
    run(engine, request)
    return request.ids


@pytest.fixture(scope="module")
def exact_model(model: Decoder) -> Decoder:
    """In fp64, so that rounding (which differs between batch sizes) never decides between two tokens."""
    return copy.deepcopy(model).double()


def test_greedy_equals_the_model_without_a_cache(any_model: Decoder) -> None:
    ids = [5, 9, 2]
    for _ in range(GREEDY.max_new_tokens):
        with torch.inference_mode():
            hidden_BTD = any_model(torch.tensor([ids]), SequenceContext.plain(1, len(ids)))
            ids.append(int(any_model.logits(hidden_BTD)[0, -1].argmax()))
    assert answer(any_model, [5, 9, 2], GREEDY) == ids[3:]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, replace(SAMPLED, repetition_penalty=1.3)])
@pytest.mark.parametrize("budget", [1, 3, 7, 100])
def test_batched_and_chunked_equal_alone(exact_model: Decoder, params: SamplingParams, budget: int) -> None:
    prompts = [[3], list(range(20)), [9] * 7, [250, 4]]
    engine = Engine(TorchRunner(exact_model), None, max_tokens_per_step=budget)
    requests = [engine.submit(prompt, params) for prompt in prompts]
    run(engine, *requests)
    assert [request.ids for request in requests] == [answer(exact_model, prompt, params) for prompt in prompts]


@given(data=st.data())
def test_any_traffic(exact_model: Decoder, data: st.DataObject) -> None:
    """Random arrivals, lengths, budgets and aborts: who is not aborted gets the tokens that it gets alone."""
    runner, max_running = TorchRunner(exact_model), data.draw(st.integers(1, 4))
    engine = Engine(
        runner,
        None,
        max_tokens_per_step=data.draw(st.integers(1, 16)),
        max_running=max_running,
        cache_bytes=data.draw(st.integers(3, 12)) * runner.block_bytes,  # so few that some must give theirs to others
    )
    # few different tokens, so that many begin alike
    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=35)
    params = st.builds(
        SamplingParams,
        max_new_tokens=st.integers(1, 8),
        temperature=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 3),
        repetition_penalty=st.sampled_from([1.0, 1.5]),
        stop_ids=st.lists(st.integers(0, 100), max_size=20).map(tuple),
    )
    requests: list[Request] = []
    for action in data.draw(st.lists(st.sampled_from(["submit", "submit", "step", "step", "abort"]), max_size=25)):
        if action == "submit":
            requests.append(engine.submit(data.draw(prompts), data.draw(params)))
        elif action == "step":
            engine.step()
        elif requests:
            engine.abort(data.draw(st.sampled_from(requests)))
        unfinished = [request for request in requests if request.state is not RequestState.FINISHED]
        assert engine.state.waiting + engine.state.running == len(unfinished)
        assert engine.state.running <= max_running
        engine.check_blocks()
    run(engine, *requests)
    assert engine.step() == []
    engine.check_blocks()
    assert engine.state.free_blocks == engine.state.num_blocks
    for request in requests:
        alone = answer(exact_model, request.prompt_ids, request.params)
        if request.finish_reason == "abort":
            assert request.ids == alone[: len(request.ids)]
        else:
            assert request.ids == alone
            assert request.finish_reason == ("stop" if alone[-1] in request.params.stop_ids else "length")


@pytest.fixture(scope="module")
def windowed_model() -> Decoder:
    return make_model(CONFIGS["alternating windows, soft caps"]).double()


@given(data=st.data())
def test_any_traffic_of_all_kinds(exact_model: Decoder, windowed_model: Decoder, data: st.DataObject) -> None:
    """Several answers, priorities, scored prompts, beam searches, windows and guesses, together and with aborts."""
    model = data.draw(st.sampled_from([exact_model, windowed_model]))
    runner, policy = TorchRunner(model), data.draw(st.sampled_from(list(POLICIES)))
    draft = TorchRunner(model)  # the model itself: so most of its guesses are right
    budget, max_running = data.draw(st.integers(1, 20)), data.draw(st.integers(3, 6))
    least = runner.layout.blocks_needed(44, budget)
    proposers = [None, NgramProposer(), DraftModel(draft, 2 * least * draft.block_bytes)]
    engine = Engine(
        runner,
        None,
        max_tokens_per_step=budget,
        max_running=max_running,
        cache_bytes=data.draw(st.integers(least, 3 * least)) * runner.block_bytes,
        policy=policy,
        proposer=data.draw(st.sampled_from(proposers)),
    )
    prompts = st.lists(st.integers(0, 1), min_size=1, max_size=35)
    sampling = st.builds(
        SamplingParams,
        max_new_tokens=st.integers(1, 8),
        temperature=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 3),
        prompt_log_probs=st.booleans(),
        stop_ids=st.lists(st.integers(0, 100), max_size=20).map(tuple),
    )
    searching = st.builds(BeamParams, st.integers(1, 3), st.integers(1, 6), stop_ids=st.just(tuple(range(0, 90, 9))))
    requests: list[Request] = []
    searches: list[tuple[BeamSearch, list[int], BeamParams]] = []
    stopped: set[BeamSearch] = set()
    actions = ["submit", "submit", "search", "step", "step", "step", "abort", "abort search"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepCost, "line", lambda _self: (1.0, 0.0))  # guess as much as may be, however long it takes
        for action in data.draw(st.lists(st.sampled_from(actions), min_size=5, max_size=20)):
            urgency = data.draw(st.integers(0, 2)) if policy == "priority" else 0
            if action == "submit":
                count = data.draw(st.integers(1, 3))
                requests += engine.submit_many(data.draw(prompts), data.draw(sampling), count, priority=urgency)
            elif action == "search":
                prompt, params = data.draw(prompts), data.draw(searching)
                with suppress(UsageError):  # it may be too much for the cache
                    searches.append((engine.search(prompt, params, priority=urgency), prompt, params))
            elif action == "step":
                engine.step()
            elif action == "abort" and requests:
                engine.abort(data.draw(st.sampled_from(requests)))
            elif action == "abort search" and searches:
                search = data.draw(st.sampled_from(searches))[0]
                stopped |= set() if search.is_finished else {search}
                engine.abort_search(search)
            assert engine.state.running <= max_running
            engine.check_blocks()
        for _ in range(3000):
            if not engine.state.waiting + engine.state.running:
                break
            engine.step()
        engine.check_blocks()
        assert engine.state.free_blocks == engine.state.num_blocks
    alone = Engine(TorchRunner(model), None)
    for request in requests:
        expected = alone.submit(request.prompt_ids, request.params)
        run(alone, expected)
        assert request.state is RequestState.FINISHED
        if request.finish_reason == "abort":
            assert request.ids == expected.ids[: len(request.ids)]
        else:
            assert (request.ids, request.finish_reason) == (expected.ids, expected.finish_reason)
            assert request.prompt_log_probs == pytest.approx(expected.prompt_log_probs, abs=1e-5)
    for search, prompt, params in searches:
        expected_search = alone.search(prompt, params)
        while not expected_search.is_finished:
            alone.step()
        assert search.is_finished
        if search not in stopped:
            assert [result.ids for result in search.results] == [result.ids for result in expected_search.results]


@pytest.mark.parametrize(
    ("steps", "dropped"), [(0, [0]), (1, [0]), (2, [0]), (0, [1]), (1, [1, 2]), (0, [1, 0]), (5, [0]), (2, [])]
)
@pytest.mark.parametrize("limits", [{}, {"max_running": 1}, {"max_running": 2}, {"cache_blocks": 3}])
def test_several_answers_to_one_prompt(
    exact_model: Decoder, steps: int, dropped: list[int], limits: dict[str, int]
) -> None:
    """Each is what it is alone, whichever of them is aborted when: the first computes the prompt, in three steps."""
    runner = TorchRunner(exact_model)
    blocks = limits.get("cache_blocks", 40)
    engine = Engine(
        runner,
        None,
        max_tokens_per_step=8,
        max_running=limits.get("max_running", 8),
        cache_bytes=blocks * runner.block_bytes,
    )
    params = replace(SAMPLED, prompt_log_probs=True, top_log_probs=2)
    requests = engine.submit_many(range(20), params, 3)
    assert engine.state.waiting == 3
    for _ in range(steps):
        engine.step()
    for index in dropped:
        engine.abort(requests[index])
    run(engine, *requests)
    engine.check_blocks()
    assert engine.state.free_blocks == engine.state.num_blocks
    scored = engine.log_probs(range(20)).tolist()
    for index, request in enumerate(requests):
        expected = answer(exact_model, range(20), replace(SAMPLED, seed=7 + index))
        if index in dropped:
            assert request.ids == expected[: len(request.ids)]
        else:
            assert request.ids == expected
            assert request.prompt_log_probs == pytest.approx(scored, abs=1e-5)
            assert len(request.prompt_top_log_probs) == 19


def test_several_answers_compute_their_prompt_once(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None, run_ahead_s=0)
    requests = engine.submit_many(range(40), SAMPLED, 4)
    assert engine.step() == requests
    assert engine.state.num_blocks - engine.state.free_blocks == 3
    engine.step()
    assert engine.state.num_blocks - engine.state.free_blocks == 2 + 4
    assert len({tuple(request.ids) for request in requests}) > 1
    run(engine, *requests)


def test_scoring_several_times_ends(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None)
    requests = engine.submit_many(range(9), SCORING, 2)
    assert engine.step() == requests
    assert [request.finish_reason for request in requests] == ["length", "length"]
    assert requests[0].prompt_log_probs == requests[1].prompt_log_probs


@pytest.mark.parametrize("count", [0, MAX_ANSWERS + 1])
def test_no_answers_and_too_many_are_refused(model: Decoder, count: int) -> None:
    engine = Engine(TorchRunner(model), None)
    with pytest.raises(UsageError, match=f"{count:,} answers"):
        engine.submit_many([1], GREEDY, count)
    assert engine.state.waiting == 0
    assert len(engine.submit_many([1], GREEDY, MAX_ANSWERS)) == MAX_ANSWERS


@pytest.mark.parametrize("budget", [1, 5, 64])
@pytest.mark.parametrize("blocks", [5, 40])
def test_the_likeliest_tokens_are_those_of_the_model(any_model: Decoder, budget: int, blocks: int) -> None:
    """Of prompt and answer, however they are chunked, and if they have to be computed again."""
    exact = copy.deepcopy(any_model).double()
    runner = TorchRunner(exact)
    blocks = max(blocks, runner.layout.blocks_needed(40, budget))
    engine = Engine(runner, None, max_tokens_per_step=budget, cache_bytes=blocks * runner.block_bytes)
    params = replace(SAMPLED, max_new_tokens=10, top_log_probs=3, prompt_log_probs=True, repetition_penalty=1.2)
    requests = [engine.submit(range(start, start + 25), params) for start in (0, 100)]
    run(engine, *requests)
    for request in requests:
        ids = request.token_ids
        with torch.inference_mode():
            logits_TV = exact.logits(exact(torch.tensor([ids]), SequenceContext.plain(1, len(ids))))[0]
        log_probs_TV = logits_TV.log_softmax(-1)[:-1]
        chosen = log_probs_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        assert [*request.prompt_log_probs, *request.log_probs] == pytest.approx(chosen, abs=1e-4)
        top = log_probs_TV.topk(3)
        found = [*request.prompt_top_log_probs, *request.top_log_probs]
        assert [[token for token, _ in place] for place in found] == top.indices.tolist()
        values = torch.tensor([[value for _, value in place] for place in found], dtype=torch.float64)
        torch.testing.assert_close(values, top.values, atol=1e-4, rtol=0)


@pytest.mark.parametrize("unknown", [-1, 259])
@pytest.mark.parametrize("name", ["stop_ids", "dry_breaker_ids", "logit_bias"])
def test_named_tokens_are_of_the_vocabulary(model: Decoder, name: str, unknown: int) -> None:
    engine = Engine(TorchRunner(model), None)
    tokens: Any = {3: 1.0, unknown: 1.0} if name == "logit_bias" else (3, unknown)
    with pytest.raises(UsageError, match=f"{name} has token {unknown}"):
        engine.submit([1], replace(GREEDY, min_new_tokens=2, **{name: tokens}))
    assert engine.state.waiting == 0


def test_the_greatest_changes_of_logits_leave_tokens(model: Decoder) -> None:
    for change in (
        {"logit_bias": {1: GREATEST_CHANGE, 2: -GREATEST_CHANGE}},
        {"repetition_penalty": GREATEST_CHANGE, "frequency_penalty": GREATEST_CHANGE},
        {"repetition_penalty": 1 / GREATEST_CHANGE, "presence_penalty": -GREATEST_CHANGE},
        {"dry_multiplier": GREATEST_CHANGE, "dry_base": 4.0, "dry_allowed_length": 1},
    ):
        params = replace(SAMPLED, max_new_tokens=30, ignore_eos=True, temperature=1e-30, **change)
        assert len(answer(model, [5, 6] * 4, params)) == 30


def test_a_seed_gives_the_same_answer_in_any_company(exact_model: Decoder) -> None:
    engine = Engine(TorchRunner(exact_model), None)
    first, other, second = (engine.submit([1, 2], replace(SAMPLED, seed=seed)) for seed in (7, 8, 7))
    run(engine, first, other, second)
    assert first.ids == second.ids == answer(exact_model, [1, 2], SAMPLED)
    assert first.ids != other.ids


def test_older_requests_go_first(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None, max_tokens_per_step=8)
    first, second = engine.submit(range(6), GREEDY), engine.submit(range(6), GREEDY)
    assert engine.step() == [first]
    assert (first.num_computed_tokens, second.num_computed_tokens) == (6, 2)
    assert engine.step() == [first, second]
    assert (first.num_computed_tokens, second.num_computed_tokens) == (7, 6)


def test_max_running_holds_the_others_back(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None, max_running=2)
    requests = [engine.submit([token], replace(GREEDY, max_new_tokens=token)) for token in (1, 3, 2)]
    assert engine.step() == requests[:2]
    assert (engine.state.waiting, engine.state.running) == (1, 1)
    assert engine.step() == requests[1:]


def test_abort_frees(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None)
    waiting, running = engine.submit([1], GREEDY), engine.submit([2, 3], GREEDY)
    engine.step()
    late = engine.submit([4], GREEDY)
    before = engine.state
    assert (before.waiting, before.running, before.cached_tokens) == (1, 2, 3)
    assert before.free_blocks == before.num_blocks - 2
    for request in (waiting, running, late, running):  # twice does no harm
        engine.abort(request)
        assert request.finish_reason == "abort"
    assert engine.state == replace(before, waiting=0, running=0, cached_tokens=0, free_blocks=before.num_blocks)
    assert engine.step() == []
    assert len(running.ids) == 1
    assert late.ids == []


def test_an_interrupted_step_is_not_done_by_half(exact_model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while two tokens are chosen."""
    params = replace(SAMPLED, repetition_penalty=1.5)
    engine = Engine(TorchRunner(exact_model), None)
    requests = [engine.submit(prompt, params) for prompt in ([1, 2, 3], [4])]
    engine.step()
    with monkeypatch.context() as patch:
        prepare = requests[1].sampler.prepare

        def interrupted(logits_V: Floats, ids: Sequence[int]) -> object:
            signal.raise_signal(signal.SIGINT)
            return prepare(logits_V, ids)

        patch.setattr(requests[1].sampler, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    run(engine, *requests)
    assert [request.ids for request in requests] == [answer(exact_model, ids, params) for ids in ([1, 2, 3], [4])]


def test_end_tokens(model: Decoder, tokenizer: Tokenizer) -> None:
    ids = answer(model, [5, 9, 2], GREEDY)
    end, place = ids[4], ids.index(ids[4])
    ending = copy.copy(model)
    ending.config = model.config.model_copy(update={"eos_ids": (end,)})
    assert answer(ending, [5, 9, 2], GREEDY) == ids[: place + 1]
    assert answer(ending, [5, 9, 2], replace(GREEDY, ignore_eos=True)) == ids
    assert answer(model, [5, 9, 2], replace(GREEDY, stop_ids=(end,), ignore_eos=True)) == ids[: place + 1]
    engine = Engine(TorchRunner(model), tokenizer)
    request = engine.submit([5, 9, 2], replace(GREEDY, stop_ids=(end,)))
    run(engine, request)
    assert request.finish_reason == "stop"
    assert request.text == tokenizer.decode(ids[:place])


def test_the_answer_is_cut_to_the_context(model: Decoder) -> None:
    length = model.config.max_positions
    engine = Engine(TorchRunner(model), None)
    request = engine.submit([1] * (length - 5), replace(GREEDY, max_new_tokens=1000))
    run(engine, request)
    assert len(request.ids) == 5
    assert request.finish_reason == "length"


def test_stop_strings_end_the_answer(model: Decoder, tokenizer: Tokenizer) -> None:
    params = replace(GREEDY, max_new_tokens=40, ignore_eos=True)
    engine = Engine(TorchRunner(model), tokenizer)
    whole = engine.submit([70, 71], params)
    run(engine, whole)
    stop = whole.text[5:7]
    stopped = engine.submit([70, 71], replace(params, stop=(stop,)))
    run(engine, stopped)
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.ids == whole.ids[: len(stopped.ids)]
    assert stop in tokenizer.decode(stopped.ids)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_end_their_request_alone(broken: float) -> None:
    model = make_model(tiny(tied_embeddings=False))
    expected = answer(model, [5, 9, 2], GREEDY)
    with torch.no_grad():
        model.embed.weight[200] = broken
    engine = Engine(TorchRunner(model), None)
    healthy, sick = engine.submit([5, 9, 2], GREEDY), engine.submit([5, 200], GREEDY)
    assert engine.step() == [healthy, sick]
    assert sick.finish_reason == "abort"
    assert isinstance(sick.error, DataError)
    assert "not finite" in sick.error.message
    run(engine, healthy)
    assert healthy.error is None
    assert healthy.ids == expected


@pytest.mark.parametrize(("budget", "place"), [(2, 3), (1000, 1)])  # torch multiplies what is masked by 0
def test_a_prompt_whose_logits_are_not_finite_is_not_scored(budget: int, place: int) -> None:
    model = make_model(tiny(tied_embeddings=False))
    with torch.no_grad():
        model.embed.weight[200] = float("inf")
    engine = Engine(TorchRunner(model), None, max_tokens_per_step=budget)
    params, message = replace(GREEDY, temperature=1.0, prompt_log_probs=True), f"after token {place} are not finite"
    requests = engine.submit_many([5, 9, 200, 7, 8], params, 3)
    engine.abort(requests[1])
    ended = [request for _ in range(10) for request in engine.step()]
    assert ended == [requests[0], requests[2]]
    for request in ended:
        assert isinstance(request.error, DataError)
        assert request.error.message == f"the model's logits {message}"
    assert engine.state.running == engine.state.waiting == 0
    engine.check_blocks()
    with pytest.raises(DataError, match=message):
        engine.log_probs([5, 9, 200, 7, 8])
    assert np.isfinite(engine.log_probs([5, 9, 7, 8])).all()


@pytest.mark.parametrize("budget", [1, 4, 1000])
def test_log_probs_equal_the_model_without_a_cache(any_model: Decoder, budget: int) -> None:
    ids = [(7 * index) % any_model.config.vocab_size for index in range(30)]
    with torch.inference_mode():
        logits_TV = any_model.logits(any_model(torch.tensor([ids]), SequenceContext.plain(1, 30)))[0]
    expected_T = logits_TV.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    log_probs_T = Engine(TorchRunner(any_model), None, max_tokens_per_step=budget).log_probs(ids)
    np.testing.assert_allclose(log_probs_T, expected_T, atol=1e-5, rtol=0)


def test_log_probs_of_one_token_are_none(model: Decoder) -> None:
    assert Engine(TorchRunner(model), None).log_probs([1]).shape == (0,)


def test_generated_log_probs_are_those_of_scoring(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None)
    request = engine.submit([4, 5, 6], replace(SAMPLED, repetition_penalty=1.2))
    run(engine, request)
    scored_T = engine.log_probs([4, 5, 6, *request.ids])[2:]
    np.testing.assert_allclose(request.log_probs, scored_T, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("prompt_ids", "message"),
    [([], "empty"), ([5, 259], "259"), ([-1], "-1"), ([1] * 97, "97 tokens"), ([1] * 96, "room for an answer")],
)
def test_prompts_that_cannot_be_are_refused_at_the_door(model: Decoder, prompt_ids: list[int], message: str) -> None:
    engine = Engine(TorchRunner(model), None)
    with pytest.raises(UsageError, match=message):
        engine.submit(prompt_ids, GREEDY)
    assert engine.state.waiting == 0


def test_scoring_takes_the_whole_context(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None)
    assert len(engine.log_probs([1] * 96)) == 95
    with pytest.raises(UsageError, match="97 tokens"):
        engine.log_probs([1] * 97)


def test_ids_may_come_from_an_array(model: Decoder) -> None:
    ids: Any = np.array([5, 9, 2])
    request = Engine(TorchRunner(model), None).submit(ids, GREEDY)
    assert [type(id) for id in request.prompt_ids] == [int] * 3
    assert answer(model, ids, GREEDY) == answer(model, [5, 9, 2], GREEDY)


def test_stop_strings_need_a_tokenizer(model: Decoder) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        Engine(TorchRunner(model), None).submit([1], replace(GREEDY, stop=("x",)))


@pytest.mark.parametrize("limits", [{"max_tokens_per_step": 0}, {"max_running": 0}])
def test_limits_are_positive(model: Decoder, limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="positive"):
        Engine(TorchRunner(model), None, **limits)


@pytest.mark.parametrize("name", ["max_tokens_per_step", "max_running", "cache_bytes"])
@pytest.mark.parametrize("value", ["1", 1.5e8, math.nan, True])
def test_limits_are_whole_numbers(model: Decoder, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is"):
        Engine(TorchRunner(model), None, **{name: value})


def test_frequencies_that_change_with_the_length_end_the_context(model: Decoder) -> None:
    factors = (1.0,) * 4
    scaling = RotaryScaling(
        kind="longrope", original_max_positions=48, short_factors=factors, long_factors=factors, attention_factor=1.0
    )
    config = model.config.model_copy(update={"rotary": Rotary(scaling=scaling)})
    assert context_length(config) == 48
    assert context_length(model.config) == 96


def test_equal_beginnings_are_computed_once(model: Decoder) -> None:
    engine, prompt = Engine(TorchRunner(model), None), [*range(40)]
    first = engine.submit(prompt, GREEDY)
    run(engine, first)
    second = engine.submit(prompt, GREEDY)
    engine.step()
    assert engine.state.hit_tokens == 32
    run(engine, second)
    assert second.ids == first.ids
    # what the first has answered is kept, too
    longer = engine.submit([*prompt, *first.ids, 1], GREEDY)
    engine.step()
    assert engine.state.hit_tokens == 32 + 48
    engine.abort(longer)
    engine.check_blocks()


def test_tenants_do_not_share(model: Decoder) -> None:
    engine, prompt = Engine(TorchRunner(model), None), [*range(40)]
    for salt in ("one", "two", None):
        run(engine, engine.submit(prompt, GREEDY, cache_salt=salt))
    assert engine.state.hit_tokens == 0
    run(engine, engine.submit(prompt, GREEDY, cache_salt="two"))
    assert engine.state.hit_tokens == 32


def test_a_full_cache_preempts_the_latest(exact_model: Decoder) -> None:
    """Who came first goes on; the other is computed again, to the same answer."""
    runner = TorchRunner(exact_model)
    engine = Engine(runner, None, cache_bytes=5 * runner.block_bytes)
    params = replace(GREEDY, max_new_tokens=30, ignore_eos=True)
    first, second = engine.submit(range(30), params), engine.submit(range(50, 80), params)
    run(engine, first)
    assert engine.state.preemptions > 0
    run(engine, second)
    assert [first.ids, second.ids] == [
        answer(exact_model, range(30), params),
        answer(exact_model, range(50, 80), params),
    ]
    engine.check_blocks()


def test_what_never_fits_is_refused_at_once(model: Decoder) -> None:
    runner = TorchRunner(model)
    engine = Engine(runner, None, cache_bytes=3 * runner.block_bytes)
    with pytest.raises(UsageError, match="cache of 48"):
        engine.submit(range(48), GREEDY)
    request = engine.submit(range(47), GREEDY)
    run(engine, request)
    assert len(request.ids) == 1
    assert request.finish_reason == "length"
    with pytest.raises(UsageError, match="cannot hold one block"):
        Engine(runner, None, cache_bytes=1)


def test_scoring_goes_beside_other_requests(model: Decoder) -> None:
    runner = TorchRunner(model)
    engine = Engine(runner, None, cache_bytes=4 * runner.block_bytes)
    expected = Engine(runner, None).log_probs(range(64))
    runner.allocate(4)
    other = engine.submit(range(40), GREEDY)
    engine.step()
    np.testing.assert_allclose(engine.log_probs(range(64)), expected, atol=1e-5, rtol=0)  # waits for its blocks
    run(engine, other)
    assert other.ids == answer(model, range(40), GREEDY)
    engine.check_blocks()
    assert engine.state.free_blocks == engine.state.num_blocks


BROKEN_OFF_PROMPTS = ([*range(18)], [*range(18), 30], [*range(40, 50)])
BROKEN_OFF = replace(GREEDY, max_new_tokens=20, ignore_eos=True)


@pytest.fixture(scope="module")
def unbroken(exact_model: Decoder) -> list[list[int]]:
    return [answer(exact_model, prompt, BROKEN_OFF) for prompt in BROKEN_OFF_PROMPTS]


@given(instant=st.integers(1, 1500))
def test_a_step_broken_off_at_any_instant_is_done_again(
    exact_model: Decoder, unbroken: list[list[int]], instant: int
) -> None:
    """Ctrl-C may raise between any two lines of Python."""
    runner = TorchRunner(exact_model)
    engine = Engine(runner, None, max_tokens_per_step=24, cache_bytes=5 * runner.block_bytes)
    requests = [engine.submit(prompt, BROKEN_OFF) for prompt in BROKEN_OFF_PROMPTS]
    left = instant

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal left
        if "tallow/engine" not in frame.f_code.co_filename:
            return None
        left -= event == "line"
        if left == 0:
            signal.raise_signal(signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        while any(request.state is not RequestState.FINISHED for request in requests):
            engine.step()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    engine.check_blocks()
    run(engine, *requests)
    assert [request.ids for request in requests] == unbroken
    engine.check_blocks()
    assert engine.state.free_blocks == engine.state.num_blocks


def test_a_scored_prompt_that_is_preempted_is_scored_once(model: Decoder) -> None:
    runner = TorchRunner(model)
    expected = Engine(runner, None).log_probs(range(60))
    engine = Engine(runner, None, max_tokens_per_step=10, cache_bytes=4 * runner.block_bytes, policy="priority")
    scored = engine.submit(range(60), SamplingParams(max_new_tokens=0, prompt_log_probs=True), priority=1)
    for _ in range(3):
        engine.step()
    assert len(scored.prompt_log_probs) == 30
    urgent = engine.submit(range(100, 150), SamplingParams(max_new_tokens=2))
    run(engine, urgent, scored)
    assert engine.state.preemptions == 1
    np.testing.assert_allclose(scored.prompt_log_probs, expected, atol=1e-5, rtol=0)


def test_the_books_are_checked_when_nothing_is_left_to_do(model: Decoder) -> None:
    engine = Engine(TorchRunner(model), None)
    run(engine, engine.submit([1, 2, 3], GREEDY))
    engine._pool.allocate(1)  # nobody's
    with pytest.raises(AssertionError, match="miscounted"):
        engine.step()
