"""The runner for a GPU against the reference: with CUDA graphs where there is a GPU, else the same work done at once.

Without a GPU attention is that of the reference, and of the kernel in Triton's interpreter where a test says so.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.conftest import CONFIGS, make_model, tiny
from tests.engine.test_runners import chunked, random_ids, whole

from tallow.engine.engine import Engine
from tallow.engine.request import RequestState, SamplingParams
from tallow.engine.runner import Runner, Span
from tallow.engine.torch_runner import TorchRunner
from tallow.kernels.dispatch import using
from tallow.kernels.paged_attention import paged_attention
from tallow.models.config import Rotary, RotaryScaling
from tallow.models.decoder import Decoder

running = pytest.importorskip("tallow.engine.cuda_runner", reason="Triton is not installed")
attending = pytest.importorskip("tallow.kernels.triton.paged_attention")
ON_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="there is no GPU")


@pytest.fixture
def interpreted_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention on a CPU by the kernel, not by its reference, in few programs: each takes milliseconds."""
    monkeypatch.setitem(paged_attention._fast, ("cpu", torch.float32), attending.attend)
    if not ON_GPU:
        monkeypatch.setattr(attending, "PROGRAMS", 4)


@pytest.fixture(scope="module", autouse=True)
def no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def make_runner(model: Decoder) -> Runner:
    if ON_GPU:
        return running.CudaRunner(copy.deepcopy(model).cuda())
    return running.CudaRunner(model, record=lambda work: work)


@pytest.fixture
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 8 tokens, so that short tests have larger steps, too."""
    monkeypatch.setattr(running, "GRAPH_TOKENS", (1, 2, 4, 8))


@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize("cuts", [[24], [9, 1, 1, 13], [5, 19]], ids=str)
def test_chunks_equal_the_whole(any_model: Decoder, cuts: list[int]) -> None:
    ids = random_ids(any_model, 24)
    (logits_TV,) = chunked(make_runner(any_model), [ids], [cuts])
    torch.testing.assert_close(logits_TV.cpu(), whole(any_model, ids), atol=1e-4, rtol=1e-5)


@pytest.mark.usefixtures("small_graphs")
def test_company_changes_nothing(any_model: Decoder) -> None:
    """Steps of 3, 5 and 18 tokens: filled up, and too many for a graph."""
    sequences = [random_ids(any_model, length, seed=length) for length in (17, 6, 11)]
    cuts = [[1, 10, 1, 5], [1, 3, 1, 1], [1, 5, 3, 2]]
    for logits_TV, ids in zip(chunked(make_runner(any_model), sequences, cuts), sequences, strict=True):
        torch.testing.assert_close(logits_TV.cpu(), whole(any_model, ids), atol=1e-4, rtol=1e-5)


@pytest.mark.usefixtures("small_graphs", "interpreted_kernel")
@pytest.mark.parametrize("name", ["one kv head", "alternating windows, soft caps"])
def test_with_the_kernel(name: str) -> None:
    model = make_model(CONFIGS[name])
    ids, other = random_ids(model, 22), random_ids(model, 5, seed=1)
    results = chunked(make_runner(model), [ids, other], [[20, 1, 1], [3, 0, 2]])
    for logits_TV, expected in zip(results, (ids, other), strict=True):
        torch.testing.assert_close(logits_TV.cpu(), whole(model, expected), atol=1e-4, rtol=1e-5)


@pytest.mark.usefixtures("small_graphs")
@settings(max_examples=15)
@given(data=st.data())
def test_any_cuts_equal_the_whole(data: st.DataObject) -> None:
    model = make_model(tiny(window=5, sliding_layers=(True, False, True), num_layers=3, max_positions=48))
    passes = data.draw(st.integers(1, 4))
    columns = st.lists(st.integers(0, 6), min_size=passes, max_size=passes).filter(any)
    cuts = data.draw(st.lists(columns, min_size=1, max_size=3))
    keep = [column for column in range(passes) if any(lengths[column] for lengths in cuts)]
    cuts = [[lengths[column] for column in keep] for lengths in cuts]
    sequences = [random_ids(model, sum(lengths), seed) for seed, lengths in enumerate(cuts)]
    for logits_TV, ids in zip(chunked(make_runner(model), sequences, cuts), sequences, strict=True):
        torch.testing.assert_close(logits_TV.cpu(), whole(model, ids), atol=1e-4, rtol=1e-5)


def spans_of(runner: Runner, *parts: tuple[list[int], int, int, list[int]]) -> list[Span]:
    tables = range(len(runner.layout.windows))
    return [
        Span(tokens, start, wanted, [array("i", [block + 8 * table for block in blocks]) for table in tables])
        for tokens, start, wanted, blocks in parts
    ]


def test_scores_of_the_wanted_rows(any_model: Decoder) -> None:
    """Some rows of a step, all, and none, against the reference on the same spans."""
    runner, reference = make_runner(any_model), TorchRunner(any_model)
    steps = [
        [(random_ids(any_model, 6), 0, 2, [3]), ([9], 0, 0, [5]), ([4, 8], 0, 1, [1])],
        [([7], 6, 1, [3]), ([11], 1, 1, [5]), ([2], 2, 1, [1])],
        [([5], 7, 0, [3])],
        [([6], 8, 1, [3])],
    ]
    for each in (runner, reference):
        each.allocate(40)
    for step in steps:
        scores, expected = (each.run(spans_of(each, *step)) for each in (runner, reference))
        np.testing.assert_allclose(scores.logits_RV, expected.logits_RV, atol=1e-4, rtol=1e-5)
        assert scores.tokens == expected.tokens
        for ours, theirs in ((scores.logits, expected.logits), (scores.log_sum_exp, expected.log_sum_exp)):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=1e-5)


def test_each_size_is_recorded_once(model: Decoder) -> None:
    sizes = []

    def record(work: Callable[[], None]) -> Callable[[], None]:
        sizes.append(None)
        return work

    runner = running.CudaRunner(model, record)
    runner.allocate(8)
    for count in (1, 3, 4, 1, 2, 3):
        runner.run(spans_of(runner, *[([5], 0, 1, [block]) for block in range(count)]))
    assert len(sizes) == 3  # 1, 4, 2
    runner.allocate(8)  # other addresses
    runner.run(spans_of(runner, ([5], 0, 1, [0])))
    assert len(sizes) == 4


def test_steps_that_cannot_be_recorded() -> None:
    """Angles that depend on the longest sequence, and references that were asked for."""

    def refuse(_work: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError

    scaling = RotaryScaling(kind="dynamic", factor=2.0)
    model = make_model(tiny(rotary=Rotary(scaling=scaling)))
    ids = random_ids(model, 5)
    (logits_TV,) = chunked(running.CudaRunner(model, refuse), [ids], [[3, 1, 1]])
    torch.testing.assert_close(logits_TV, whole(model, ids), atol=1e-4, rtol=1e-5)
    plain = make_model(tiny())
    with using("reference"):
        (logits_TV,) = chunked(running.CudaRunner(plain, refuse), [ids], [[3, 1, 1]])
    torch.testing.assert_close(logits_TV, whole(plain, ids), atol=1e-4, rtol=1e-5)


def test_an_engine_generates_the_same(model: Decoder) -> None:
    """Greedy, sampled and penalized requests side by side; logits stay where they were computed."""
    choices = [
        SamplingParams(max_new_tokens=5),
        SamplingParams(max_new_tokens=5, temperature=0.8, top_p=0.9, min_p=0.01, seed=3),
        SamplingParams(max_new_tokens=5, repetition_penalty=1.3, presence_penalty=0.5, logit_bias={7: 2.0}),
    ]
    answers = []
    for runner in (make_runner(model), TorchRunner(model)):
        engine = Engine(runner, None, cache_bytes=1 << 20)
        requests = [engine.submit(random_ids(model, 20, seed=n), params) for n, params in enumerate(choices)]
        while any(request.state is not RequestState.FINISHED for request in requests):
            engine.step()
        engine.check_blocks()
        answers.append([request.ids for request in requests])
    assert answers[0] == answers[1]


@pytest.mark.usefixtures("small_graphs")
def test_embeddings_equal_the_reference(any_model: Decoder) -> None:
    """Of steps that are recorded, filled up, and too large; each when others have run since its graph was recorded."""
    embeddings = []
    for runner in (make_runner(any_model), TorchRunner(any_model)):
        engine = Engine(runner, None, cache_bytes=1 << 20)
        embeddings.append([])
        for lengths in ([3], [8], [1, 20], [2, 3], [3], [7, 1], [2]):
            requests = [engine.submit_embedding(random_ids(any_model, length, length)) for length in lengths]
            while any(request.state is not RequestState.FINISHED for request in requests):
                engine.step()
            embeddings[-1] += [request.embedding for request in requests]
    torch.testing.assert_close(*embeddings, atol=1e-4, rtol=0)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_compute_what_the_reference_does(any_model: Decoder, dtype: torch.dtype) -> None:
    """Everything at once: real graphs of several sizes, replayed with other inputs, beside steps that are too large."""
    model = copy.deepcopy(any_model).to("cuda", dtype)
    sequences = [random_ids(model, 90, seed) for seed in range(3)]
    cuts = [[60, *[1] * 20, 10]] * 3
    results = zip(
        chunked(running.CudaRunner(model), sequences, cuts), chunked(TorchRunner(model), sequences, cuts), strict=True
    )
    for ours, theirs in results:
        if dtype == torch.float32:
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        else:
            assert (ours - theirs).norm() < 0.02 * theirs.norm()
