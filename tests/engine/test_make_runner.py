"""Each precision is what it says, in the reference and in the C++ decoder."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import make_model, tiny
from torch import Tensor

import tallow
from tallow.engine import make_runner as making
from tallow.engine.choices import CACHE_PRECISIONS, PRECISIONS, CachePrecision, Precision
from tallow.engine.engine import Engine
from tallow.engine.make_runner import BITS, make_runner
from tallow.engine.native_runner import NativeRunner
from tallow.engine.runner import Runner
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import UsageError
from tallow.kernels import cpu
from tallow.kernels.dispatch import using
from tallow.kernels.quantized import dequantize, quantize_groups
from tallow.models.decoder import Decoder
from tallow.models.formats import load_model, save_model
from tallow.models.quantization import TABLE_BITS, dequantized_state, quantize_modules, quantized_modules
from tallow.tokenizer.tokenizer import Tokenizer

IDS = list(range(5, 45))
needs_native = pytest.mark.skipif(cpu.native() is None, reason="the C++ kernels are not built")


def log_probs(runner: Runner) -> Tensor:
    return torch.from_numpy(Engine(runner, None).log_probs(IDS))


def reference(model: Decoder, precision: Precision) -> TorchRunner:
    with using("reference"):
        runner = make_runner(model, precision)
    assert isinstance(runner, TorchRunner)
    return runner


@pytest.fixture(scope="module")
def model() -> Decoder:
    return make_model(tiny(hidden_size=64, intermediate_size=96))


@pytest.fixture(scope="module", params=[4, 8])
def quantized(
    request: pytest.FixtureRequest, model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A stored model of 4 or 8 bits."""
    path = tmp_path_factory.mktemp("quantized") / "model"
    save_model(quantize_modules(copy.deepcopy(model), request.param, 32), tokenizer, path)
    return path


@needs_native
@pytest.mark.parametrize("precision", PRECISIONS)
def test_native_is_near_the_reference(model: Decoder, precision: Precision) -> None:
    runner = make_runner(copy.deepcopy(model), precision)
    assert isinstance(runner, NativeRunner)
    expected = log_probs(reference(copy.deepcopy(model), precision))
    difference = (log_probs(runner) - expected).abs().mean()
    # fp32 differs by the order of summation, the others by where values are rounded
    assert difference < {"auto": 1e-5, "fp32": 1e-5, "bf16": 0.05, "q8": 0.1, "q4": 0.1}[precision]


@pytest.mark.parametrize("precision", ["q8", "q4"])
def test_rounded_weights(model: Decoder, precision: Precision) -> None:
    runner = reference(copy.deepcopy(model), precision)
    assert quantized_modules(runner.model)["layers.0.attention.q_proj"].weight.bits == BITS[precision]
    difference = (log_probs(runner) - log_probs(TorchRunner(model))).abs().mean()
    assert 0 < difference < (0.1 if precision == "q8" else 1.0)


def test_stored_codes_stay(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = load_model(quantized).state_dict()
    bits = quantized_modules(load_model(quantized))["layers.0.attention.q_proj"].weight.bits
    for precision in ("auto", "q4" if bits == 4 else "q8"):
        kept = reference(load_model(quantized), precision).model.state_dict()
        torch.testing.assert_close(kept, stored, rtol=0, atol=0)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_stored_codes_are_unpacked(
    quantized: Path, precision: Precision, dtype: torch.dtype, model: Decoder, capsys: pytest.CaptureFixture[str]
) -> None:
    by_hand = Decoder(model.config).eval()
    by_hand.load_state_dict(dict(dequantized_state(load_model(quantized))))
    runner = reference(load_model(quantized), precision)
    assert "does not come back" in capsys.readouterr().err
    torch.testing.assert_close(runner.model.state_dict(), by_hand.to(dtype).state_dict(), rtol=0, atol=0)
    if cpu.native() is not None and precision == "fp32":
        torch.testing.assert_close(
            log_probs(make_runner(load_model(quantized), precision)), log_probs(runner), atol=2e-5, rtol=1e-5
        )


def test_stored_codes_are_rounded_anew(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = quantized_modules(load_model(quantized))
    bits = 12 - stored["layers.0.attention.q_proj"].weight.bits
    rounded = quantized_modules(reference(load_model(quantized), "q4" if bits == 4 else "q8").model)
    assert "does not come back" in capsys.readouterr().err
    assert list(rounded) == list(stored)
    for name, module in rounded.items():
        expected = quantize_groups(dequantize(stored[name].weight), TABLE_BITS[bits] if name == "embed" else bits, 32)
        assert module.weight.bits == expected.bits
        assert torch.equal(module.codes, expected.codes)
        assert torch.equal(module.scales, expected.scales)


@pytest.mark.parametrize("native_bf16", [True, False])
def test_auto_precision(model: Decoder, native_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 where weights and processor have it; fp16 is computed in fp32."""
    monkeypatch.setattr(making, "native_bf16", lambda: native_bf16)
    bf16 = torch.bfloat16 if native_bf16 else torch.float32
    for stored, dtype in {torch.float32: torch.float32, torch.bfloat16: bf16, torch.float16: torch.float32}.items():
        runner = reference(copy.deepcopy(model).to(stored), "auto")
        assert {parameter.dtype for parameter in runner.model.parameters()} == {dtype}
        log_probs(runner)


@needs_native
def test_the_cache_is_what_was_asked_for(model: Decoder) -> None:
    runners = {cache: make_runner(copy.deepcopy(model), "fp32", cache_precision=cache) for cache in CACHE_PRECISIONS}
    assert runners["q8"].precision == "float32 weights, int8 cache"
    sizes = {cache: runner.block_bytes for cache, runner in runners.items()}
    assert sizes["auto"] == sizes["fp32"] == 2 * sizes["bf16"]
    assert sizes["q8"] < 0.7 * sizes["bf16"]  # heads are so small here that scales take a lot
    scores = {cache: log_probs(runner) for cache, runner in runners.items()}
    assert 0 < (scores["bf16"] - scores["fp32"]).abs().mean() < 0.01
    assert 0 < (scores["q8"] - scores["fp32"]).abs().mean() < 0.03
    usual = {precision: make_runner(copy.deepcopy(model), precision).block_bytes for precision in ("bf16", "q8", "q4")}
    assert usual == {"bf16": sizes["bf16"], "q8": sizes["bf16"], "q4": sizes["q8"]}
    assert make_runner(copy.deepcopy(model), "q4", cache_precision="bf16").block_bytes == sizes["bf16"]


@pytest.mark.parametrize(("precision", "held"), [("fp32", "fp32"), ("bf16", "bf16"), ("q8", "fp32")])
def test_the_reference_has_only_the_cache_that_it_computes(
    model: Decoder, precision: Precision, held: CachePrecision
) -> None:
    usual = reference(copy.deepcopy(model), precision).block_bytes
    for cache in CACHE_PRECISIONS:
        with using("reference"):
            if cache in ("auto", held):
                assert make_runner(copy.deepcopy(model), precision, cache_precision=cache).block_bytes == usual
            else:
                with pytest.raises(UsageError, match=f"has no cache in {cache}"):
                    make_runner(copy.deepcopy(model), precision, cache_precision=cache)


@needs_native
def test_memory_of_weights(model: Decoder) -> None:
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    sizes = {precision: make_runner(copy.deepcopy(model), precision).weight_bytes for precision in PRECISIONS}
    # the vocabulary is filled up to whole panels of 32
    assert weights * 4 <= sizes["fp32"] == sizes["auto"] < weights * 4.5
    assert sizes["bf16"] <= (0.5 if cpu.operation_set() == "portable" else 0.4) * sizes["fp32"]
    assert sizes["q8"] < 0.29 * sizes["fp32"]
    assert sizes["q4"] < 0.8 * sizes["q8"]


def test_devices_that_are_not_there(quantized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        tallow.load(quantized, device="cuda")
    assert tallow.load(quantized).engine.runner.device == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_is_near_the_reference(model: Decoder, precision: Precision) -> None:
    runner = make_runner(copy.deepcopy(model), precision, device="cuda")
    assert runner.device == "cuda"
    difference = (log_probs(runner) - log_probs(reference(copy.deepcopy(model), precision))).abs().mean()
    assert difference < {"auto": 1e-4, "fp32": 1e-4, "bf16": 0.05, "q8": 1e-4, "q4": 1e-4}[precision]
