from __future__ import annotations

import time

import pytest
import torch

from tallow.kernels import cpu, probe
from tallow.kernels.probe import matmul_peak, read_bandwidth


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_BUDGET_S", 0.0)
    monkeypatch.setattr(probe, "_MATMUL_SIZE", 256)
    for measured in (read_bandwidth, matmul_peak):
        measured.cache_clear()


def test_bandwidth_is_that_of_memory() -> None:
    assert 1e8 < read_bandwidth() < 1e13
    assert read_bandwidth() == read_bandwidth()  # measured once


def test_every_word_is_read_once() -> None:
    extension = cpu.native()
    if extension is None:
        pytest.skip("installed without the C++ extension")
    words = torch.arange(100_003)
    for threads in (1, 2, 3):
        assert extension.read_memory(words.data_ptr(), words.numel(), threads) == words.sum()


def test_matmul_peak_is_plausible() -> None:
    assert 1e8 < matmul_peak(torch.float32) < 1e15


def test_a_peak_is_measured_soon_where_only_a_reference_computes() -> None:
    start = time.perf_counter()
    assert matmul_peak(torch.float8_e4m3fn) > 0
    assert time.perf_counter() - start < 30
