from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tallow.errors import UsageError
from tallow.kernels import dispatch
from tallow.kernels.dispatch import Operation, using


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TALLOW_KERNELS", raising=False)
    dispatch._default_versions.cache_clear()
    yield
    dispatch._default_versions.cache_clear()


def make_operation() -> Operation[..., str]:
    @Operation
    def repeat(_x: Tensor, _times: int) -> str:
        return "reference"

    @repeat.fast("cpu", torch.float32)
    def _few_times(_x: Tensor, _times: int) -> str | None:
        return "fast" if _times < 10 else None

    return repeat


def test_device_dtype_and_the_version_itself_choose() -> None:
    operation = make_operation()
    assert operation(torch.zeros(1), 1) == "fast"
    assert operation(torch.zeros(1), 10) == "reference"
    assert operation(torch.zeros(1, dtype=torch.float64), 1) == "reference"
    assert operation(torch.zeros(1, device="meta"), 1) == "reference"


def test_reference_can_be_forced_and_nesting_restores() -> None:
    operation, x = make_operation(), torch.zeros(1)
    with using("reference"):
        assert operation(x, 1) == "reference"
        with using("fast"):
            assert operation(x, 1) == "fast"
        assert operation(x, 1) == "reference"
    assert operation(x, 1) == "fast"


@pytest.mark.parametrize(("value", "expected"), [("reference", "reference"), ("fast", "fast")])
def test_environment_sets_the_default(monkeypatch: pytest.MonkeyPatch, value: str, expected: str) -> None:
    monkeypatch.setenv("TALLOW_KERNELS", value)
    assert make_operation()(torch.zeros(1), 1) == expected


def test_unknown_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLOW_KERNELS", "slow")
    with pytest.raises(UsageError, match="slow"):
        make_operation()(torch.zeros(1), 1)
