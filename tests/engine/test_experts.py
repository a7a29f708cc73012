"""Models with experts generate by the reference runner; what cannot compute them says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine.conftest import VOCAB_SIZE, make_model, make_tokenizer, tiny
from transformers import AutoModelForCausalLM

import tallow
from tallow.engine.make_runner import make_runner
from tallow.engine.request import SamplingParams
from tallow.engine.tensor_parallel import check_divisible
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import DataError, UsageError
from tallow.models.decoder import Decoder
from tallow.models.formats import load_model, save_gguf, save_model
from tallow.models.formats.gguf_config import write_metadata
from tallow.models.quantization import quantize_modules

CONFIG = tiny(family="mixtral", num_experts=4, tied_embeddings=False)
PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def mixture() -> Decoder:
    return make_model(CONFIG)


@pytest.fixture(scope="module")
def saved(mixture: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral") / "model"
    save_model(mixture, make_tokenizer(), path)
    return path


def test_greedy_generation_is_that_of_transformers(saved: Path) -> None:
    theirs: Any = AutoModelForCausalLM.from_pretrained(saved)
    expected = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=24, do_sample=False, pad_token_id=0)
    ids = tallow.load(saved, device="cpu").generate(PROMPT, SamplingParams(max_new_tokens=24)).ids
    assert ids == expected[0, len(PROMPT) :].tolist()
    assert len(set(ids)) > 5  # else it would prove little


def test_the_reference_runner_is_chosen(mixture: Decoder) -> None:
    for precision in ("auto", "fp32"):
        assert isinstance(make_runner(mixture, precision), TorchRunner)
    assert TorchRunner(mixture).config.vocab_size == VOCAB_SIZE


def test_what_is_refused(mixture: Decoder, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="experts cannot be quantized"):
        quantize_modules(mixture, 8, 32)
    with pytest.raises(UsageError, match="experts cannot be quantized"):
        tallow.load(saved, "q4", device="cpu")
    with pytest.raises(UsageError, match="experts cannot be spread"):
        check_divisible(CONFIG, 2)
    with pytest.raises(UsageError, match="experts cannot be written as GGUF"):
        save_gguf(mixture, None, tmp_path / "model.gguf")
    with pytest.raises(UsageError, match="mapped"):
        tallow.load(saved, weights="mapped", device="cpu")


def test_gguf_files_with_experts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "tallow.models.formats.gguf"
    monkeypatch.setattr(f"{module}.write_metadata", lambda config: write_metadata(config) | {"llama.expert_count": 8})
    monkeypatch.setattr(f"{module}.refuse_inexpressible", lambda *_: None)
    save_gguf(make_model(tiny()), None, tmp_path / "model.gguf")
    with pytest.raises(DataError, match="GGUF models with experts are not supported"):
        load_model(tmp_path / "model.gguf")
