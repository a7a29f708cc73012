"""Sampling against the definition of each filter, and against the exact distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tallow.engine.penalties import repetition
from tallow.engine.request import SamplingParams
from tallow.engine.sampler import Sampler
from tallow.kernels.sampling import Draw, choose_tokens
from tallow.kernels.sampling_reference import candidates


def random_logits(vocab_size: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed))


def distribution(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities of all tokens, V, fp64."""
    draw = Draw(params.temperature, params.top_k, params.top_p, params.min_p, params.typical_p, seed=0, token_index=0)
    probs_C, ids_C = candidates(logits_V, draw)
    return torch.zeros(len(logits_V), dtype=torch.float64).index_add_(0, ids_C, probs_C)


def brute_force(logits: list[float], params: SamplingParams) -> list[float]:
    """The filters by their definitions, one token at a time."""
    largest = max(logits)
    weights = {token: math.exp((logit - largest) / params.temperature) for token, logit in enumerate(logits)}
    by_weight = sorted(weights, key=lambda token: -weights[token])
    if params.top_k:
        by_weight = by_weight[: params.top_k]
    total, mass, kept = sum(weights[token] for token in by_weight), 0.0, []
    for token in by_weight:
        if params.top_p < 1 and mass >= params.top_p * total:
            break
        kept.append(token)
        mass += weights[token]
    kept = [token for token in kept if weights[token] >= params.min_p * weights[kept[0]]]
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0.2, 3.0),
    top_k=st.integers(0, 20),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
)


@given(params=PARAMS, vocab_size=st.integers(1, 30), seed=st.integers(0, 1000))
def test_filters_equal_brute_force(params: SamplingParams, vocab_size: int, seed: int) -> None:
    logits_V = random_logits(vocab_size, seed)
    expected_V = torch.tensor(brute_force(logits_V.tolist(), params), dtype=torch.float64)
    torch.testing.assert_close(distribution(logits_V, params), expected_V, atol=1e-6, rtol=0)


@given(params=PARAMS, seed=st.integers(0, 1000))
def test_filters_equal_transformers(params: SamplingParams, seed: int) -> None:
    logits_V = random_logits(50, seed)
    processors = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    processors.append(TopPLogitsWarper(params.top_p))
    processors.append(MinPLogitsWarper(params.min_p))
    expected_V = processors(torch.LongTensor([[0]]), torch.FloatTensor(logits_V[None].clone()))[0].double().softmax(-1)
    torch.testing.assert_close(distribution(logits_V, params), expected_V, atol=1e-6, rtol=0)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_nucleus_of_a_large_vocabulary(top_p: float, spread: float) -> None:
    """Nuclei of few tokens, of many, and of nearly all."""
    logits_V = random_logits(5120, spread=spread)
    params = SamplingParams(temperature=1.0, top_p=top_p)
    probs_V = logits_V.double().softmax(-1)
    sorted_V, order_V = probs_V.sort(descending=True)
    before_V = sorted_V.cumsum(0) - sorted_V
    kept_V = order_V[before_V < top_p]
    expected_V = torch.zeros_like(probs_V).index_copy(0, kept_V, probs_V[kept_V] / probs_V[kept_V].sum())
    difference = (distribution(logits_V, params) - expected_V).abs()
    # rounding may move the border by a token or two, each of them less likely than this
    assert int(((distribution(logits_V, params) > 0) != (expected_V > 0)).sum()) <= 2
    assert difference.max() < 1e-5


@given(
    penalty=st.floats(0.3, 3.0), seen=st.lists(st.integers(0, 19), min_size=1, max_size=30), seed=st.integers(0, 1000)
)
def test_repetition_penalty_equals_transformers(penalty: float, seen: list[int], seed: int) -> None:
    logits_V = random_logits(20, seed)
    given_V = torch.FloatTensor(logits_V[None].clone())
    expected_V = RepetitionPenaltyLogitsProcessor(penalty)(torch.LongTensor([seen]), given_V)[0]
    repetition(logits_V.numpy(), seen, penalty)
    assert torch.equal(logits_V, expected_V)


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits_V = np.array([5.0, 4.0, 3.0, -1.0], np.float32)
    sampler = Sampler(SamplingParams(repetition_penalty=2.0), prompt_ids=[0, 0])
    assert [sampler.choose(logits_V, ids) for ids in ([], [1], [1, 2], [1, 2, 0])] == [1, 2, 0, 0]


def test_temperature_zero_takes_the_likeliest() -> None:
    logits_V = random_logits(100)
    params = SamplingParams(temperature=0.0, top_p=0.5, top_k=3, min_p=0.1)
    assert Sampler(params, []).choose(logits_V.numpy(), []) == int(logits_V.argmax())


@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_tiny_temperatures_do_not_overflow(temperature: float) -> None:
    logits_V = 1e4 * random_logits(100)
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=0.9, seed=0), [])
    assert sampler.choose(logits_V.numpy(), []) == int(logits_V.argmax())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.6),
        SamplingParams(temperature=1.5, top_k=7),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.0, min_p=0.1),
        SamplingParams(temperature=0.9, top_k=12, top_p=0.9, min_p=0.05),
    ],
    ids=lambda params: f"t{params.temperature}-k{params.top_k}-p{params.top_p}-m{params.min_p}",
)
@pytest.mark.parametrize("across", ["seeds", "indices"])
def test_draws_follow_the_distribution(params: SamplingParams, across: str) -> None:
    """Chi-square against the exact probabilities, over seeds and over the tokens of one answer."""
    draws, vocab_size = 2000, 16
    logits_V = random_logits(vocab_size, seed=5, spread=1.5)
    counts = torch.zeros(vocab_size, dtype=torch.float64)
    for draw in range(draws):
        seed, index = (draw, 3) if across == "seeds" else (123, draw)
        sampler = Sampler(SamplingParams(**{**vars(params), "seed": seed}), [])
        counts[sampler.choose(logits_V.numpy(), range(index))] += 1
    expected_V = draws * torch.tensor(brute_force(logits_V.tolist(), params), dtype=torch.float64)
    possible = expected_V > 0
    assert counts[~possible].sum() == 0
    statistic = float(((counts - expected_V)[possible] ** 2 / expected_V[possible]).sum())
    freedom = int(possible.sum()) - 1
    # Wilson and Hilferty's approximation of the 99.9 % quantile
    quantile = freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < quantile


def test_the_batch_does_not_matter() -> None:
    params = [SamplingParams(temperature=1.0, top_k=top_k, seed=seed) for top_k in (0, 5) for seed in range(10)]
    samplers, rows = [Sampler(each, []) for each in params], [random_logits(5000, seed).numpy() for seed in range(20)]
    answers = [[1] * (number % 3) for number in range(20)]
    alone = [sampler.choose(row, ids) for sampler, row, ids in zip(samplers, rows, answers, strict=True)]
    prepared = [each.prepare(logits_V, ids) for each, logits_V, ids in zip(samplers, rows, answers, strict=True)]
    for order in (prepared, prepared[::-1]):
        chosen = choose_tokens([logits_V for logits_V, _ in order], [draw for _, draw in order])
        assert chosen == (alone if order is prepared else alone[::-1])


def test_a_draft_agrees_as_often_as_distributions_do() -> None:
    """Drawn with the same noise, p and q give the same token with probability ≥ Σ min(p, q) / Σ max(p, q)."""
    target_V, draft_V = random_logits(50, 0, 1.0), random_logits(50, 0, 1.0) + random_logits(50, 1, 0.3)
    p_V, q_V = target_V.double().softmax(0), draft_V.double().softmax(0)
    bound = float(torch.minimum(p_V, q_V).sum() / torch.maximum(p_V, q_V).sum())
    samplers = [Sampler(SamplingParams(temperature=1.0, seed=seed), []) for seed in range(1000)]
    agreed = (
        sum(sampler.choose(target_V.numpy(), []) == sampler.choose(draft_V.numpy(), []) for sampler in samplers) / 1000
    )
    assert 0.5 < bound < agreed + 0.05


def test_without_a_seed_answers_differ() -> None:
    params = SamplingParams(temperature=1.0)
    assert Sampler(params, []).seed != Sampler(params, []).seed


@given(typical_p=st.floats(0.05, 0.95), temperature=st.floats(0.3, 2.0), seed=st.integers(0, 50))
def test_typical_equals_transformers(typical_p: float, temperature: float, seed: int) -> None:
    logits_V = random_logits(60, seed)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TypicalLogitsWarper(typical_p)])
    warped_V = warpers(torch.LongTensor([[0]]), torch.FloatTensor(logits_V[None].numpy()))[0]
    expected_V = warped_V.softmax(-1).double()
    ours_V = distribution(logits_V, SamplingParams(temperature=temperature, typical_p=typical_p))
    torch.testing.assert_close(ours_V, expected_V, atol=1e-6, rtol=0)
