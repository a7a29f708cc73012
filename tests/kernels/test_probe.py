from __future__ import annotations

import pytest
import torch

from tallow.kernels import cpu, matmul_peak, preferred_training_dtype, probe, read_bandwidth


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_BUDGET_S", 0.0)
    monkeypatch.setattr(probe, "_MATMUL_SIZE", 256)
    for measured in (read_bandwidth, matmul_peak, preferred_training_dtype):
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


@pytest.mark.parametrize(
    ("float32_s", "bfloat16_s", "expected"),
    [(1.0, 0.5, torch.bfloat16), (1.0, 0.95, torch.float32), (1.0, 3.0, torch.float32)],
)
def test_bfloat16_must_earn_its_rounding(
    monkeypatch: pytest.MonkeyPatch, float32_s: float, bfloat16_s: float, expected: torch.dtype
) -> None:
    times = {torch.float32: float32_s, torch.bfloat16: bfloat16_s}
    monkeypatch.setattr(probe, "_training_time", lambda dtype, _device: times[dtype])
    assert preferred_training_dtype() == expected
    preferred_training_dtype.cache_clear()


def test_training_is_timed_in_both_types() -> None:
    assert 0 < probe._training_time(torch.float32, "cpu") < 60
    assert 0 < probe._training_time(torch.bfloat16, "cpu") < 60
