"""Weights that are rounded to 4 bits here, of models whose channels have been made alike before."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import make_model, tiny
from tests.engine.lora import merged, random_adapter
from torch import Tensor

from tallow.engine.engine import Engine
from tallow.engine.make_runner import make_runner
from tallow.engine.native_runner import NativeRunner
from tallow.engine.packed_store import find_packed
from tallow.engine.run_packed import run_packed
from tallow.engine.torch_runner import TorchRunner
from tallow.kernels import cpu
from tallow.kernels.dispatch import using
from tallow.models.decoder import Decoder
from tallow.models.formats import open_model, save_gguf, save_model
from tallow.models.formats.adapters import write_adapter
from tallow.tokenizer.tokenizer import Tokenizer

IDS = list(range(5, 65))


@pytest.fixture(scope="module")
def model() -> Decoder:
    """With a few channels behind norms that are many times as large as the others."""
    model = make_model(tiny(hidden_size=64, intermediate_size=96))
    with torch.no_grad():
        for index in range(model.config.num_layers):
            for name in ("attention_norm", "feed_forward_norm"):
                model.get_parameter(f"layers.{index}.{name}.weight")[3:5] = 15.0
    return model


def error(found: Engine, exact: Decoder, adapter: str | None = None) -> float:
    """Of log-probabilities, on average."""

    def log_probs(engine: Engine, adapter: str | None = None) -> Tensor:
        return torch.from_numpy(engine.log_probs(IDS, adapter=adapter))

    return float((log_probs(found, adapter) - log_probs(Engine(TorchRunner(exact), None))).abs().mean())


@pytest.mark.parametrize("kind", ["reference", "native", "native, packed before"])
def test_adapters(kind: str, model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """With an adapter an engine is as near to the model in fp32 that has it merged in as without."""
    adapter = random_adapter(model.config, seed=1)
    save_model(model, tokenizer, tmp_path / "model")
    write_adapter(adapter, model.config, tmp_path / "adapter", "model")
    if kind == "reference":
        with using("reference"):
            runner = make_runner(open_model(tmp_path / "model"), "q4")
    elif cpu.native() is None:
        pytest.skip("the C++ kernels are not built")
    else:
        runner = make_runner(open_model(tmp_path / "model"), "q4", "mapped", cache_precision="fp32")
    if kind == "native, packed before":
        packed = find_packed(tmp_path / "model", "q4")
        assert packed is not None
        runner = run_packed(packed, "memory", "fp32")
    assert isinstance(runner, TorchRunner if kind == "reference" else NativeRunner)
    engine = Engine(runner, None)
    engine.load_adapter("one", tmp_path / "adapter")
    changed = error(engine, copy.deepcopy(model), "one")
    assert changed > 1, "it is not the adapter's model"
    plain, adapted = error(engine, model), error(engine, merged(model, adapter), "one")
    assert plain > 0.01
    assert adapted < 1.5 * plain


def test_codes_of_4_bits_stay(model: Decoder, tmp_path: Path) -> None:
    for precision in ("q4_0", "q8_0"):
        save_gguf(model, None, tmp_path / f"{precision}.gguf", precision)
    assert not make_runner(open_model(tmp_path / "q4_0.gguf"), "q4").factors
    assert not make_runner(open_model(tmp_path / "q8_0.gguf"), "q8").factors
    assert make_runner(open_model(tmp_path / "q8_0.gguf"), "bf16").factors == {}
