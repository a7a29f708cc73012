"""Sampling in C++ against its definition, on every instruction set that this processor has."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tallow.kernels import cpu
from tallow.kernels.dispatch import using
from tallow.kernels.sampling import Draw, choose_tokens
from tallow.kernels.sampling_reference import candidates, philox, variates

EXTENSION: Any = cpu.native()
NAMES: list[str] = EXTENSION.operation_sets() if EXTENSION else []
PLAIN = Draw(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, typical_p=1.0, seed=1, token_index=0)
VOCABULARY = 49_152
needs_extension = pytest.mark.skipif(EXTENSION is None, reason="installed without the C++ extension")

draws = st.builds(
    Draw,
    temperature=st.sampled_from([1e-35, 1e-4, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 2, 40, 10**6]) | st.integers(0, 100),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.5, 0.95]) | st.floats(0.01, 1.0),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1.0]) | st.floats(0.0, 1.0),
    typical_p=st.sampled_from([1.0, 1.0, 0.5]) | st.floats(0.01, 1.0),
    seed=st.integers(0, 2**64 - 1),
    token_index=st.integers(0, 2**32 - 1),
)


@pytest.fixture(params=NAMES, scope="module")
def ops(request: pytest.FixtureRequest) -> Any:
    return next(ops for ops in EXTENSION.operations() if ops.name == request.param)


@st.composite
def logits(draw: st.DrawFn, sizes: st.SearchStrategy[int]) -> Tensor:
    """Rows with ties, and with tokens that must not come; what is behind the row is not a number."""
    size, seed = draw(sizes), draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    row = torch.randn(size, generator=generator) * draw(st.sampled_from([0.01, 1.0, 3.0, 10.0]))
    if draw(st.booleans()):
        row = (2 * row).round() / 2
    if draw(st.booleans()):
        row[torch.rand(size, generator=generator) < 0.5] = -torch.inf
        row[draw(st.integers(0, size - 1))] = 0.0
    return torch.cat([row, torch.full((64,), torch.nan)])[:size]


SIZES = st.sampled_from([1, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025]) | st.integers(1, 3000)


def choose(ops: Any, rows: Sequence[Tensor], draws: Sequence[Draw], threads: int = 1) -> list[int]:
    return EXTENSION.choose_tokens(ops, [row.data_ptr() for row in rows], len(rows[0]), draws, threads)


def reference(row: Tensor, draw: Draw) -> int:
    with using("reference"):
        return choose_tokens([row.numpy()], [draw])[0]


def is_near_tie(row: Tensor, draw: Draw, tokens: tuple[int, int]) -> bool:
    """Whether rounding may decide which of two candidates comes first."""
    probs_C, ids_C = candidates(row, draw)
    times = dict(zip(ids_C.tolist(), (variates(draw.seed, draw.token_index, ids_C) / probs_C).tolist(), strict=True))
    return all(token in times for token in tokens) and math.isclose(*(times[token] for token in tokens), rel_tol=2e-5)


def nearby(draw: Draw) -> list[Draw]:
    """With the borders of the filters a little to either side."""
    sides = itertools.product((0, -2e-6, 2e-6), repeat=3)
    return [
        draw._replace(
            top_p=draw.top_p if draw.top_p == 1 else min(1.0, draw.top_p * (1 + p)),
            min_p=min(1.0, draw.min_p * (1 + 5 * m)),
            typical_p=draw.typical_p if draw.typical_p == 1 else min(1.0, draw.typical_p * (1 + t)),
        )
        for p, m, t in sides
    ]


def check(ops: Any, row: Tensor, draw: Draw) -> None:
    found = EXTENSION.candidates(ops, row.data_ptr(), len(row), draw)
    assert found == sorted(set(found))
    if found != sorted(candidates(row, draw)[1].tolist()):
        allowed = [set(candidates(row, near)[1].tolist()) for near in nearby(draw)]
        assert set.intersection(*allowed) <= set(found) <= set.union(*allowed)
        return
    chosen, expected = choose(ops, [row], [draw])[0], reference(row, draw)
    assert chosen == expected or is_near_tie(row, draw, (chosen, expected))


@needs_extension
@settings(max_examples=80)
@given(row=logits(SIZES), draw=draws)
def test_candidates_and_tokens(ops: Any, row: Tensor, draw: Draw) -> None:
    check(ops, row, draw)


@needs_extension
@settings(max_examples=40)
@given(row=logits(SIZES), draw=draws)
def test_tokens_without_filters(ops: Any, row: Tensor, draw: Draw) -> None:
    check(ops, row, PLAIN._replace(temperature=draw.temperature, seed=draw.seed, token_index=draw.token_index))


@needs_extension
@settings(max_examples=5)
@given(row=logits(st.just(VOCABULARY)), draw=draws)
def test_a_whole_vocabulary(ops: Any, row: Tensor, draw: Draw) -> None:
    check(ops, row, draw)


@needs_extension
def test_the_noise_of_a_whole_vocabulary(ops: Any) -> None:
    """Among equals the least variate wins."""
    row, ids_V = torch.zeros(VOCABULARY), torch.arange(VOCABULARY)
    chosen = choose(ops, [row] * 20, [PLAIN._replace(seed=2**64 - 1 - index, token_index=index) for index in range(20)])
    assert chosen == [int(variates(2**64 - 1 - index, index, ids_V).argmin()) for index in range(20)]


FILTERED = [
    PLAIN,
    PLAIN._replace(temperature=0.6),
    PLAIN._replace(top_k=9, temperature=1.4),
    PLAIN._replace(top_p=0.8),
    PLAIN._replace(typical_p=0.7),
    PLAIN._replace(top_k=12, top_p=0.9, min_p=0.05),
]


@needs_extension
@pytest.mark.parametrize("draw", FILTERED, ids=str)
def test_draws_follow_the_distribution(ops: Any, draw: Draw) -> None:
    """Chi-square against the exact probabilities."""
    count, row = 20_001, 1.5 * torch.randn(20, generator=torch.Generator().manual_seed(5))
    chosen = choose(ops, [row] * count, [draw._replace(seed=seed, token_index=3) for seed in range(count)])
    times_V = torch.bincount(torch.tensor(chosen), minlength=len(row)).double()
    probs_C, ids_C = candidates(row, draw)
    assert times_V[ids_C].sum() == count
    statistic = float(((times_V[ids_C] - count * probs_C) ** 2 / (count * probs_C)).sum())
    freedom = len(ids_C) - 1
    # Wilson and Hilferty's approximation of the 99.9 % quantile
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("versions", ["fast", "reference"])
@pytest.mark.parametrize("draw", [PLAIN, PLAIN._replace(temperature=0.0), PLAIN._replace(top_k=3, min_p=0.1)], ids=str)
@pytest.mark.parametrize("size", [1, 17, 100])
def test_what_is_no_distribution(versions: Any, draw: Draw, size: int) -> None:
    rows = [torch.zeros(size) for _ in range(4)]
    rows[0][:] = -torch.inf
    rows[1][size // 2] = torch.nan
    rows[2][size - 1] = torch.inf
    with using(versions):
        chosen = choose_tokens([row.numpy() for row in rows], [draw] * 4)
    assert chosen[:3] == [-1, -1, -1]
    assert 0 <= chosen[3] < size


@needs_extension
def test_masked_tokens_do_not_come(ops: Any) -> None:
    row = torch.full((1000,), -torch.inf)
    row[::100] = torch.linspace(-80, 0, 10)
    for draw in FILTERED:
        chosen = choose(ops, [row] * 500, [draw._replace(temperature=5.0, seed=seed) for seed in range(500)])
        assert all(token % 100 == 0 for token in chosen)


@needs_extension
@pytest.mark.parametrize(
    "draw", [PLAIN._replace(temperature=0.0), PLAIN._replace(temperature=1e-4), PLAIN._replace(top_p=1e-9)], ids=str
)
def test_the_first_of_the_likeliest(ops: Any, draw: Draw) -> None:
    row = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    row[[1029, 2500]] = 9.0
    expected = {1029, 2500} if draw.temperature == 1e-4 else {1029}
    assert set(choose(ops, [row] * 50, [draw._replace(seed=seed) for seed in range(50)])) == expected


@needs_extension
def test_threads_and_batches_do_not_matter(ops: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [3 * torch.randn(VOCABULARY, generator=generator) for _ in range(9)]
    mixed = [FILTERED[row % len(FILTERED)]._replace(token_index=row) for row in range(9)]
    alone = [choose(ops, [row], [draw])[0] for row, draw in zip(rows, mixed, strict=True)]
    assert choose(ops, rows, mixed) == alone
    assert choose(ops, rows[::-1], mixed[::-1], threads=3) == alone[::-1]


def test_rows_of_any_kind() -> None:
    rows = list(torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).numpy())
    spread = [np.stack([row, row], axis=1)[:, 0] for row in rows]
    wide: Any = [row.astype(np.float64) for row in rows]
    chosen = choose_tokens(rows, [PLAIN] * 3)
    assert choose_tokens(spread, [PLAIN] * 3) == choose_tokens(wide, [PLAIN] * 3) == chosen
    assert choose_tokens([], []) == []


def words(*values: int) -> Tensor:
    return torch.tensor(values)[:, None]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        (words(0, 0, 0, 0), 0, words(0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (words(*[2**32 - 1] * 4), 2**64 - 1, words(0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            words(0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            words(0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_equals_published_vectors(counter: Tensor, key: int, expected: Tensor) -> None:
    """Those that the authors ship with Random123: of zeros, of ones, and of the digits of π."""
    assert torch.equal(philox(counter, key), expected)


def test_variates_are_exponential_and_each_token_has_its_own() -> None:
    ids_C = torch.arange(100_000)
    variates_C = variates(7, 3, ids_C)
    assert torch.equal(variates(7, 3, ids_C[5::7]), variates_C[5::7])
    word = int(philox(words(3, 2, 0, 0), 7)[1, 0]) >> 1
    assert float(variates_C[9]) == pytest.approx(-math.log1p(-(word + 0.5) / 2**31), rel=1e-12)
    sorted_C = variates_C.sort().values
    shares_C = torch.arange(1, len(ids_C) + 1) / len(ids_C)
    # Kolmogorov and Smirnov, 99.9 %
    assert float((1 - torch.exp(-sorted_C) - shares_C).abs().max()) < 1.95 / math.sqrt(len(ids_C))
    assert len(set(map(float, torch.cat([variates(seed, 0, ids_C[:50]) for seed in (0, 1, 2**64 - 1)])))) == 150
