"""Who goes first, what that does to mean times, and that nobody waits for ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
from tests.engine.conftest import tiny

from tallow.engine.block_tables import CacheLayout
from tallow.engine.blocks import BLOCK_TOKENS
from tallow.engine.engine import Engine
from tallow.engine.policies import AGEING, POLICIES, TOKEN_AS_PREFILL, PolicyName, first_come, priority, shortest
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.runner import Scores, Span
from tallow.errors import UsageError
from tallow.kernels.sampling import Draw
from tallow.models.equalization import Factors
from tallow.models.formats.adapters import Adapter

STEP_S = 0.01


class NoModel:
    """A runner that computes nothing: the next token is always 1."""

    def __init__(self) -> None:
        self.config = tiny(num_layers=1, max_positions=512)
        self.layout = CacheLayout.of(self.config, 512)
        self.weight_bytes = 0
        self.block_bytes = 1
        self.precision = "none"

    @property
    def device(self) -> Literal["cpu"]:
        return "cpu"

    @property
    def factors(self) -> dict[str, Factors]:
        return {}

    def allocate(self, num_blocks: int) -> None:
        pass

    def copy_block(self, source: int, target: int) -> None:
        pass

    def load_adapter(self, adapter: Adapter) -> int:
        raise NotImplementedError

    def unload_adapter(self, handle: int) -> None:
        raise NotImplementedError

    def run(self, spans: Sequence[Span]) -> Scores:
        for span in spans:
            end = span.start + len(span.tokens)
            assert all(len(table) * BLOCK_TOKENS >= end for table in span.tables), "there are no blocks for its tokens"
        rows = sum(span.wanted for span in spans)
        zeros_RV = np.zeros((rows, self.config.vocab_size), np.float32)
        return Scores(lambda: zeros_RV, [1] * rows, [0.0] * rows, [0.0] * rows, zeros_RV.__getitem__)

    def run_ahead(
        self, spans: Sequence[Span], draws: Sequence[Draw], stop_ids: Sequence[Sequence[int]], passes: int
    ) -> list[Scores]:
        raise NotImplementedError


def make_engine(policy: PolicyName, *, blocks: int = 64, budget: int = 16, max_running: int = 4) -> Engine:
    return Engine(
        NoModel(),
        None,
        max_tokens_per_step=budget,
        max_running=max_running,
        cache_bytes=blocks,
        policy=policy,
        run_ahead_s=0,
    )


def submit(engine: Engine, first: int, prompt: int, new: int, *, at: float = 0.0, urgency: int = 0) -> Request:
    request = engine.submit([first] * prompt, SamplingParams(max_new_tokens=new), priority=urgency)
    request.submitted_s = at
    return request


def test_orders() -> None:
    engine = make_engine("priority")
    one, two, three = (submit(engine, 5, 10, 4, urgency=urgency) for urgency in (1, 0, 1))
    assert sorted([three, two, one], key=first_come) == [one, two, three]
    assert sorted([three, two, one], key=priority) == [two, one, three]


def test_shortest_counts_what_remains() -> None:
    engine = make_engine("shortest")
    long, short = submit(engine, 5, 100, 4), submit(engine, 6, 20, 4)
    assert shortest(short) < shortest(long)
    long.num_cached_tokens = 96
    assert shortest(long) < shortest(short)
    long.num_cached_tokens = 0
    talkative = submit(engine, 7, 20, 16)
    assert shortest(talkative)[0] - shortest(short)[0] == 12 * TOKEN_AS_PREFILL
    assert shortest(submit(engine, 8, 20, 4)) > shortest(short)  # of equal ones the first
    assert shortest(submit(engine, 9, 20, 4, at=81 / AGEING)) > shortest(long)  # who came so much later


def test_what_a_request_has_computed_brings_it_forward() -> None:
    engine = make_engine("shortest")
    request = submit(engine, 5, 100, 4)
    orders = [shortest(request)]
    while request.state is not RequestState.FINISHED:
        engine.step()
        orders.append(shortest(request))
    assert orders == sorted(orders, reverse=True)


def test_a_beginning_in_the_cache_brings_a_request_forward() -> None:
    engine = make_engine("shortest", max_running=1)
    first = submit(engine, 5, 96, 1)
    while first.state is not RequestState.FINISHED:
        engine.step()
    shorter, cached = submit(engine, 6, 60, 4), submit(engine, 5, 97, 4)
    while cached.state is not RequestState.FINISHED:
        engine.step()
    assert shorter.state is not RequestState.FINISHED


def test_the_urgent_take_from_the_others() -> None:
    engine = make_engine("priority", max_running=2)
    others = [submit(engine, 5 + index, 4, 50, urgency=5) for index in range(2)]
    for _ in range(3):
        engine.step()
    urgent = submit(engine, 9, 4, 3, urgency=1)
    for _ in range(3):
        engine.step()
    assert urgent.state is RequestState.FINISHED
    assert engine.state.preemptions == 1
    assert others[0].num_computed_tokens > 0  # the later of the two gave way
    while any(other.state is not RequestState.FINISHED for other in others):
        engine.step()
        engine.check_blocks()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("blocks", [7, 12])
def test_nobody_waits_for_ever(policy: PolicyName, blocks: int) -> None:
    """One long request, and more short ones than can be served, which come after it."""
    engine = make_engine(policy, blocks=blocks, budget=8)
    old = submit(engine, 5, 60, 20)
    shorts: list[Request] = []
    # shortest: what is longer about it, in time at which others age
    head_start = (60 - 8 + (20 - 6) * TOKEN_AS_PREFILL) / AGEING / STEP_S if policy == "shortest" else 0.0
    for step in range(80 + int(2 * head_start)):
        if len([short for short in shorts if short.state is not RequestState.FINISHED]) < 30:
            shorts += [submit(engine, 6 + (step + 7 * index) % 200, 8, 6, at=step * STEP_S) for index in range(2)]
        engine.step()
        engine.check_blocks()
        if old.state is RequestState.FINISHED:
            break
    assert len(old.ids) == 20


def test_who_goes_first_takes_even_from_those_that_only_add_a_token() -> None:
    """These are served first in a step, since they cost the others least; but they cannot keep blocks from him."""
    engine = make_engine("priority", blocks=7, budget=16, max_running=5)
    others = [submit(engine, 5 + index, 4, 60, urgency=1) for index in range(4)]
    for _ in range(3):
        engine.step()
    urgent = submit(engine, 20, 100, 4)
    for _ in range(15):
        before = urgent.num_computed_tokens
        engine.step()
        engine.check_blocks()
        assert urgent.num_computed_tokens >= before
    assert urgent.state is RequestState.FINISHED
    assert engine.state.preemptions > 0
    while any(other.state is not RequestState.FINISHED for other in others):
        engine.step()
    assert [len(other.ids) for other in others] == [60] * 4


def completion_times(policy: PolicyName) -> list[float]:
    """Of a load in which long requests come before short ones."""
    engine = make_engine(policy, max_running=2)
    arrivals = [(0, 200, 40), (1, 200, 40), (2, 10, 5), (3, 10, 5), (4, 100, 20), (5, 10, 5), (60, 10, 5), (61, 200, 9)]
    requests: list[Request] = []
    ended: dict[Request, int] = {}
    step = 0
    while len(ended) < len(arrivals):
        for at, prompt, new in arrivals:
            if at == step:
                requests.append(submit(engine, 5 + len(requests), prompt, new, at=at * STEP_S))
        engine.step()
        step += 1
        for request in requests:
            if request.state is RequestState.FINISHED:
                ended.setdefault(request, step)
    return [ended[request] - arrivals[index][0] for index, request in enumerate(requests)]


def test_shortest_first_lowers_the_mean_time() -> None:
    in_order, by_length = completion_times("first-come"), completion_times("shortest")
    assert sum(by_length) < 0.9 * sum(in_order)


def test_what_is_not_there_is_refused() -> None:
    unknown: Any = "longest"
    with pytest.raises(UsageError, match="longest"):
        make_engine(unknown)
    with pytest.raises(UsageError, match="priorities"):
        make_engine("shortest").submit([1], SamplingParams(), priority=2)
