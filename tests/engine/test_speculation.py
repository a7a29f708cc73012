"""Guesses make answers come sooner, and never change them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.engine.conftest import BYTE_TOKENS, make_model, make_tokenizer, tiny

from tallow.engine import speculation
from tallow.engine.engine import Engine
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.runner import Scores, Span
from tallow.engine.speculation import DraftModel, NgramProposer, Proposer, Speculation, StepCost
from tallow.engine.step import Step
from tallow.engine.structure import Structure
from tallow.engine.torch_runner import TorchRunner
from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder
from tallow.tokenizer.tokenizer import Tokenizer

GREEDY = SamplingParams(max_new_tokens=40, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=1.0, seed=5)
PROMPTS = ([1, 2, 3], [0] * 20, [3, 1, 3, 1, 3, 1])
SECONDS_PER_GUESS = 0.1


@pytest.fixture(autouse=True)
def guesses_cost_a_tenth_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided must not depend on how busy the machine is."""
    monkeypatch.setattr(StepCost, "line", lambda _self: (1.0 - SECONDS_PER_GUESS, SECONDS_PER_GUESS))
    monkeypatch.setattr(speculation, "time", SimpleNamespace(perf_counter=lambda: 0.0))


def small(vocab_size: int = 5, seed: int = 0, **choices: int) -> Decoder:
    """In fp64, so that rounding (which differs with the rows of a step) never decides between two tokens."""
    config = tiny(vocab_size=vocab_size, num_layers=1, **{"max_positions": 400, **choices})
    return make_model(config, seed).double()


@pytest.fixture(scope="module")
def target() -> Decoder:
    return small()


def draft(vocab_size: int = 5, *, blocks: int = 64, seed: int = 1, target_vocab: int | None = 5) -> DraftModel:
    runner = TorchRunner(small(vocab_size, seed))
    return DraftModel(runner, blocks * runner.block_bytes, target_vocab)


class Oracle:
    """Guesses what an answer is known to become, or always something else."""

    def __init__(self, answer: Sequence[int], *, is_right: bool = True, vocab_size: int = 5) -> None:
        self.answer, self.shift, self.vocab_size = answer, int(not is_right), vocab_size

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[list[int]]:
        starts = [len(request.ids) for request in requests]
        return [
            [(token + self.shift) % self.vocab_size for token in self.answer[start : start + count]]
            for start, count in zip(starts, most, strict=True)
        ]


def run(engine: Engine, requests: Sequence[Request]) -> int:
    """Steps until all are finished; returns how many."""
    for steps in itertools.count():
        if all(request.state is RequestState.FINISHED for request in requests):
            engine.check_blocks()
            assert engine.state.free_blocks == engine.state.num_blocks
            return steps
        assert engine.step() or engine.state.running
    raise AssertionError


def answers(
    model: Decoder, proposer: Proposer | None, params: SamplingParams, tokenizer: Tokenizer | None = None
) -> tuple[list[Request], Engine, int]:
    engine = Engine(TorchRunner(model), tokenizer, proposer=proposer)
    requests = [engine.submit(prompt, params) for prompt in PROMPTS]
    return requests, engine, run(engine, requests)


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SAMPLED,
        replace(SAMPLED, seed=8, top_k=3, repetition_penalty=1.2, frequency_penalty=0.3, dry_multiplier=0.5),
        replace(SAMPLED, logit_bias={4: 0.5}, min_new_tokens=20, stop_ids=(4,)),
        replace(GREEDY, top_log_probs=2, prompt_log_probs=True),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        NgramProposer,
        draft,
        lambda: draft(seed=0),
        lambda: draft(9),
        lambda: draft(4),
        lambda: draft(blocks=3),
    ],
    ids=["ngram", "draft", "itself", "larger vocabulary", "smaller vocabulary", "full cache"],
)
def test_answers_are_those_without_guesses(
    target: Decoder, make: Callable[[], Proposer], params: SamplingParams
) -> None:
    expected, _, _ = answers(target, None, params)
    found, engine, _ = answers(target, make(), params)
    for one, other in zip(found, expected, strict=True):
        assert (one.ids, one.finish_reason) == (other.ids, other.finish_reason)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
        assert one.prompt_log_probs == pytest.approx(other.prompt_log_probs, abs=1e-5)
        assert [[token for token, _ in top] for top in one.top_log_probs] == [
            [token for token, _ in top] for top in other.top_log_probs
        ]
    assert engine.state.guessed_tokens > 0


def test_the_distribution_is_that_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """χ² of the first three tokens of 4,096 seeds against the model's own joint probabilities.

    With the true distribution the statistic is beyond the threshold in one of 10,000 sets of seeds; this set is fixed.
    """
    monkeypatch.setattr(StepCost, "line", lambda _self: (1.0, 0.0))  # with so many requests they would not pay
    model, prompt, count = small(4, seed=3), [1, 2], 4096
    engine = Engine(TorchRunner(model), None, proposer=draft(4, seed=4, blocks=2048, target_vocab=4), max_running=256)
    params = SamplingParams(max_new_tokens=4, temperature=1.0, ignore_eos=True)
    requests = [engine.submit(prompt, replace(params, seed=seed)) for seed in range(count)]
    run(engine, requests)
    assert count / 4 < engine.state.accepted_tokens < engine.state.guessed_tokens - count / 4
    texts = list(itertools.product(range(4), repeat=3))
    ids_NT = torch.tensor([[*prompt, *text] for text in texts])
    with torch.inference_mode():
        logits_NTV = model.logits(model(ids_NT, SequenceContext.plain(len(texts), ids_NT.shape[1])))
    log_probs_NT = logits_NTV.log_softmax(-1)[:, 1:-1].gather(2, ids_NT[:, 2:, None])[..., 0]
    expected_N = log_probs_NT.sum(-1).exp().double() * count
    observed_N = torch.zeros(len(texts), dtype=torch.float64)
    for request in requests:
        observed_N[texts.index((request.ids[0], request.ids[1], request.ids[2]))] += 1
    frequent_N = expected_N >= 5  # the rare ones count together
    expected_C = torch.cat([expected_N[frequent_N], expected_N[~frequent_N].sum()[None]])
    observed_C = torch.cat([observed_N[frequent_N], observed_N[~frequent_N].sum()[None]])
    statistic = ((observed_C - expected_C) ** 2 / expected_C.clamp(min=1e-9)).sum()
    p_value = torch.special.gammaincc(torch.tensor((len(expected_C) - 1) / 2).double(), statistic / 2)
    assert p_value > 1e-4


def test_guesses_that_are_right_save_steps(target: Decoder) -> None:
    engine = Engine(TorchRunner(target), None, run_ahead_s=0)
    alone = engine.submit([1, 2, 3], replace(SAMPLED, max_new_tokens=200))
    steps = run(engine, [alone])
    engine = Engine(TorchRunner(target), None, proposer=Oracle(alone.ids))
    request = engine.submit([1, 2, 3], alone.params)
    assert run(engine, [request]) <= steps / 3
    assert request.ids == alone.ids
    assert engine.state.accepted_tokens == engine.state.guessed_tokens > 150


def test_guesses_that_are_wrong_are_given_up(target: Decoder) -> None:
    engine = Engine(TorchRunner(target), None)
    alone = engine.submit([1, 2, 3], replace(SAMPLED, max_new_tokens=300))
    run(engine, [alone])
    engine = Engine(TorchRunner(target), None, proposer=Oracle(alone.ids, is_right=False), run_ahead_s=1e6)
    request = engine.submit([1, 2, 3], alone.params)
    while len(request.ids) < 50:
        engine.step()
    before = engine.state.guessed_tokens
    assert run(engine, [request]) < 250 / 8  # several tokens a step, as without guesses
    assert request.ids == alone.ids
    assert engine.state.accepted_tokens == 0
    assert 0 < engine.state.guessed_tokens - before < 0.05 * 250


def test_guesses_come_back_when_they_are_right_again(target: Decoder) -> None:
    engine = Engine(TorchRunner(target), None)
    alone = engine.submit([1, 2, 3], replace(SAMPLED, max_new_tokens=200))
    run(engine, [alone])
    oracle = Oracle(alone.ids, is_right=False)
    engine = Engine(TorchRunner(target), None, proposer=oracle)
    request = engine.submit([1, 2, 3], alone.params)
    while len(request.ids) < 50:
        engine.step()
    oracle.shift = 0
    run(engine, [request])
    assert request.ids == alone.ids
    assert engine.state.accepted_tokens > 75


def test_a_structure_that_ends_on_the_draft_s_way_ends_no_step() -> None:
    """Nothing may follow three letters, but the answer must be longer: nobody else suffers from that."""
    target = make_model(tiny(), 0).double()
    runner = TorchRunner(make_model(tiny(), 9).double())
    engine = Engine(TorchRunner(target), make_tokenizer(), proposer=DraftModel(runner, 100 * runner.block_bytes))
    impossible = replace(SAMPLED, max_new_tokens=12, min_new_tokens=10, structure=Structure(regex="[a-c]{3}"))
    requests = [engine.submit([9, 8], replace(impossible, seed=seed)) for seed in range(6)]
    bystander = engine.submit([5, 6, 7], GREEDY)
    while any(request.state is not RequestState.FINISHED for request in (*requests, bystander)):
        engine.step()
    assert all(request.error is not None for request in requests)
    assert (bystander.error, len(bystander.ids)) == (None, 40)


class CountingRunner(TorchRunner):
    """Remembers how many tokens each step computed."""

    def __init__(self, model: Decoder) -> None:
        super().__init__(model)
        self.counts: list[int] = []

    def run(self, spans: Sequence[Span]) -> Scores:
        self.counts.append(sum(len(span.tokens) for span in spans))
        return super().run(spans)


def test_guesses_exceed_no_limit(target: Decoder) -> None:
    """Neither the budget of a step, nor the answer's length, the context or the blocks that there are."""
    engine = Engine(TorchRunner(target), None)
    alone = engine.submit([1] * 30, replace(GREEDY, max_new_tokens=34))
    run(engine, [alone])
    runner = CountingRunner(target)
    engine = Engine(
        runner,
        None,
        max_tokens_per_step=6,
        max_running=2,
        cache_bytes=5 * runner.block_bytes,
        proposer=Oracle(alone.ids),
    )
    requests = [engine.submit([1] * 30, replace(alone.params, max_new_tokens=count)) for count in (34, 5, 1000)]
    run(engine, requests)
    assert max(runner.counts) <= 6
    assert [request.ids for request in requests[:2]] == [alone.ids, alone.ids[:5]]
    assert len(requests[2].ids) == engine.context_length - 30 == 50
    assert engine.state.accepted_tokens > 0


def test_answers_end_where_they_would_without_guesses(tokenizer: Tokenizer) -> None:
    model = make_model(tiny(num_layers=1)).double()
    params = replace(GREEDY, temperature=1.0, seed=3)
    whole, _, _ = answers(model, None, params, tokenizer)
    ids = whole[0].ids
    letter = next(index for index in range(9, 40) if 32 < ids[index] - BYTE_TOKENS < 127)
    stop = chr(ids[letter] - BYTE_TOKENS)
    for ending in (replace(params, stop_ids=(ids[12],)), replace(params, stop=(stop,))):
        results = []
        for proposer in (None, Oracle(ids, vocab_size=model.config.vocab_size)):
            engine = Engine(TorchRunner(model), tokenizer, proposer=proposer)
            request = engine.submit(PROMPTS[0], ending)
            run(engine, [request])
            results.append((request.ids, request.text, request.finish_reason))
        assert results[0] == results[1]
        assert results[0][2] == "stop"
        assert engine.state.accepted_tokens > 0


def test_a_draft_gives_back_what_finished_requests_held(target: Decoder) -> None:
    """Its cache has room for one request; all of four that come after each other are helped."""
    runner = TorchRunner(target)
    engine = Engine(TorchRunner(target), None, proposer=DraftModel(runner, 3 * runner.block_bytes))
    for prompt in ([1] * 5, [2] * 5, [3] * 5, [4] * 5):
        before = engine.state.accepted_tokens
        run(engine, [engine.submit(prompt, replace(GREEDY, max_new_tokens=30))])
        assert engine.state.accepted_tokens - before > 15


def test_guesses_must_be_worth_that_steps_cannot_run_ahead() -> None:
    def guessed(passes: int, *, is_found: bool = True) -> int:
        decides = Speculation(Oracle([0] * 40 if is_found else []))
        decides.learn(Step([], {}), 0.0, 1, 5.0)  # five seconds beside the pass, which takes one
        request = Engine(TorchRunner(small(10)), None).submit([1, 2], GREEDY)
        request.ids.append(0)
        return sum(len(guesses) for _ in range(20) for guesses in decides.guess([request], 8, passes).values())

    assert guessed(1) == 20 * speculation.MOST_GUESSES
    assert guessed(16) == 0
    assert guessed(2) > 0


def test_where_no_guess_is_found_none_is_looked_for() -> None:
    looked_for = 0

    class Blank:
        def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[list[int]]:
            nonlocal looked_for
            looked_for += any(most)
            return [[] for _ in requests]

    decides = Speculation(Blank())
    decides.learn(Step([], {}), 0.0, 1, 0.1)
    request = Engine(TorchRunner(small(10)), None).submit([1, 2], GREEDY)
    for _ in range(50):
        decides.guess([request], 8, 16)
    assert 5 < looked_for < 20


def test_the_latest_longest_match_is_continued() -> None:
    def guess(tokens: list[int], count: int) -> list[int]:
        engine = Engine(TorchRunner(small(10)), None)
        return NgramProposer().propose([engine.submit(tokens, GREEDY)], [count])[0]

    assert guess([1, 2, 3, 4, 5, 1, 2], 3) == [3, 4, 5]
    assert guess([1, 2, 3, 9, 1, 2, 4, 7, 1, 2], 2) == [4, 7]  # the latest of two
    assert guess([0, 1, 2, 3, 9, 1, 2, 4, 0, 1, 2], 2) == [3, 9]  # three tokens that match are better than two
    assert guess([1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]
    assert guess([1, 2, 3], 5) == []
    assert guess([1, 2, 1, 2], 0) == []


def test_the_cost_of_rows_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cost = StepCost()
    for index in range(60):
        rows = 1 + index % 8
        cost.observe(rows, 2.0 + 0.5 * rows)
    assert cost.line() == pytest.approx((2.0, 0.5), rel=0.05)
    for _ in range(200):  # the latest count
        for rows in (1, 4):
            cost.observe(rows, 1.0 + 0.01 * rows)
    assert cost.line() == pytest.approx((1.0, 0.01), rel=0.3)
    steady = StepCost()
    for _ in range(50):
        steady.observe(4, 8.0)
    base, per_row = steady.line()
    assert base + 4 * per_row == pytest.approx(8.0)
    assert per_row == pytest.approx(0.1 * 2.0)  # what it is taken to be as long as nothing is known
