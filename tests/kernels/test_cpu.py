from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch

from tallow.engine.make_runner import make_runner
from tallow.engine.torch_runner import TorchRunner
from tallow.kernels import cpu
from tallow.kernels.dispatch import using
from tallow.kernels.quantized import quantize_groups, quantized_linear
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    cpu.native.cache_clear()
    with monkeypatch.context() as patched, using("fast"):
        patched.setattr(importlib, "import_module", missing)
        yield
    cpu.native.cache_clear()


@pytest.mark.usefixtures("without_extension")
def test_without_the_extension_the_references_run_and_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    config = DecoderConfig(
        vocab_size=32, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32, max_positions=16
    )
    for _ in range(3):
        assert isinstance(make_runner(Decoder(config).eval(), "q4"), TorchRunner)
    weight, x_BI = quantize_groups(torch.randn(24, 64), 4), torch.randn(1, 64)
    assert torch.equal(quantized_linear(x_BI, weight), quantized_linear.reference(x_BI, weight))
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "without its C++ kernels" in output.err
