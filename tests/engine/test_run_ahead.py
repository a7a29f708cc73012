"""Several tokens a step are those that single steps give."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.engine.test_runners import RUNNERS, SINGLE, MakeRunner

from tallow.engine.engine import Engine
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.run_ahead import MOST_PASSES
from tallow.engine.runner import Runner, Scores, Span
from tallow.engine.torch_runner import TorchRunner
from tallow.kernels.sampling import Draw
from tallow.models.decoder import Decoder

LONG_S = 1e6
GREEDY = SamplingParams(max_new_tokens=30)
SAMPLED = SamplingParams(max_new_tokens=30, temperature=1.0, top_p=0.9, seed=7)
CHOICES = {
    "greedy": GREEDY,
    "sampled": SAMPLED,
    "penalized": replace(SAMPLED, repetition_penalty=1.3),
    "with likeliest": replace(SAMPLED, top_log_probs=2),
    "scored": replace(GREEDY, prompt_log_probs=True),
}


def answers(runner: Runner, run_ahead_s: float, params: Sequence[SamplingParams]) -> tuple[list[Request], int]:
    """What requests with these params come to, and how many steps they took."""
    engine = Engine(runner, None, run_ahead_s=run_ahead_s)
    requests = [engine.submit([7, 3, 9 + index], each) for index, each in enumerate(params)]
    steps = 0
    while any(request.state is not RequestState.FINISHED for request in requests):
        engine.step()
        steps += 1
    engine.check_blocks()
    assert engine.state.free_blocks == engine.state.num_blocks
    return requests, steps


@pytest.mark.parametrize("make", SINGLE.values(), ids=SINGLE)
@pytest.mark.parametrize("name", CHOICES)
def test_the_same_answers(any_model: Decoder, make: MakeRunner, name: str) -> None:
    length = MOST_PASSES + 3  # once as many passes as may be, and once fewer
    runner, params = make(any_model), replace(CHOICES[name], max_new_tokens=length)
    [alone], steps = answers(runner, 0.0, [params])
    [ahead], fewer = answers(runner, LONG_S, [params])
    assert steps == length
    assert fewer == (3 if name in ("greedy", "sampled", "scored") else length)
    assert (ahead.ids, ahead.log_probs) == (alone.ids, alone.log_probs)
    assert ahead.top_log_probs == alone.top_log_probs


@pytest.mark.parametrize("make", RUNNERS.values(), ids=RUNNERS)
def test_the_same_side_by_side(any_model: Decoder, make: MakeRunner) -> None:
    """Requests that end at different times, by their length or an end token; on two threads."""
    runner = make(any_model)
    [free], _ = answers(runner, 0.0, [replace(SAMPLED, ignore_eos=True)])
    params = [
        replace(SAMPLED, stop_ids=(free.ids[5],)),
        replace(SAMPLED, seed=8, max_new_tokens=12),
        replace(GREEDY, max_new_tokens=21),
    ]
    one_by_one, _ = answers(runner, 0.0, params)
    ahead, steps = answers(runner, LONG_S, params)
    assert steps < 15
    assert one_by_one[0].finish_reason == "stop"
    for request, expected in zip(ahead, one_by_one, strict=True):
        assert (request.ids, request.finish_reason) == (expected.ids, expected.finish_reason)
        assert request.log_probs == pytest.approx(expected.log_probs, abs=1e-5)  # torch rounds as the batch is large


class CountingRunner(TorchRunner):
    """Remembers how many passes there were."""

    passes = 0

    def run(self, spans: Sequence[Span]) -> Scores:
        self.passes += 1
        return super().run(spans)


def test_nothing_is_computed_after_the_last_end(model: Decoder) -> None:
    [free], _ = answers(TorchRunner(model), 0.0, [replace(SAMPLED, ignore_eos=True)])
    end = next(index for index in range(3, 30) if free.ids[index] not in free.ids[:index])
    runner = CountingRunner(model)
    [request], _ = answers(runner, LONG_S, [replace(SAMPLED, stop_ids=(free.ids[end],))])
    assert request.finish_reason == "stop"
    assert runner.passes == end + 1


@pytest.mark.parametrize("make", RUNNERS.values(), ids=RUNNERS)
def test_a_runner_stops_by_itself(model: Decoder, make: MakeRunner) -> None:
    [request], _ = answers(make(model), 0.0, [SAMPLED])
    runner = make(model)
    runner.allocate(4)
    spans = [Span(list(request.prompt_ids), 0, 1, [array("i", range(4))])]
    draw, end = Draw(1.0, 0, 0.9, 0.0, 1.0, 7, 0), request.ids[5]
    passed = runner.run_ahead(spans, [draw], [(end,)], 20)
    assert [scores.tokens[0] for scores in passed] == request.ids[: request.ids.index(end) + 1]
