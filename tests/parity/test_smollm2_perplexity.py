"""What the engine's roundings cost SmolLM2 on WikiText-2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tallow.engine.language_model import LanguageModel, load
from tallow.engine.make_runner import make_runner
from tallow.evaluate.perplexity import perplexity, read_text
from tallow.models.formats import load_model
from tallow.models.quantization import dequantize_modules, quantize_modules

pytestmark = [pytest.mark.smollm2, pytest.mark.shared_data]
WINDOW = 512
TOKENS = 2048


@pytest.fixture(scope="module")
def text(shared_data: Callable[..., Path]) -> list[str]:
    return read_text(shared_data("wikitext2", "wiki.valid.raw"))


@pytest.fixture(scope="module")
def exact(smollm2_gguf: Path, text: list[str]) -> float:
    return perplexity(load(smollm2_gguf, "fp32"), text, WINDOW, TOKENS).perplexity


def test_bf16(smollm2_gguf: Path, text: list[str], exact: float) -> None:
    assert perplexity(load(smollm2_gguf, "bf16"), text, WINDOW, TOKENS).perplexity == pytest.approx(exact, rel=0.001)


def test_8_bits(smollm2_gguf: Path, text: list[str], exact: float) -> None:
    assert perplexity(load(smollm2_gguf, "q8"), text, WINDOW, TOKENS).perplexity == pytest.approx(exact, rel=0.005)


def test_4_bits_lose_what_their_quantizer_loses(smollm2_gguf: Path, text: list[str], exact: float) -> None:
    unpacked = dequantize_modules(quantize_modules(load_model(smollm2_gguf, dtype=torch.float32), 4, 32), torch.float32)
    engine = load(smollm2_gguf, "q4")
    alone = LanguageModel(make_runner(unpacked, "fp32"), engine.tokenizer, smollm2_gguf)
    quantizer = perplexity(alone, text, WINDOW, TOKENS).perplexity
    assert 1.15 * exact < quantizer < 1.27 * exact
    assert perplexity(engine, text, WINDOW, TOKENS).perplexity == pytest.approx(quantizer, rel=0.01)
