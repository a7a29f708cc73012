from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats import Precision, load_model, save_gguf
from tallow.models.quantization import dequantized_state, quantize_modules

CONFIG = DecoderConfig(
    vocab_size=96, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96, max_positions=64
)


@pytest.mark.parametrize(("bits", "precision"), [(4, "q4_0"), (8, "q8_0")])
def test_export_of_groups_of_32_loses_nothing(tmp_path: Path, bits: int, precision: Precision) -> None:
    model = Decoder(CONFIG)
    initialize(model, seed=0)
    quantize_modules(model, bits, 32, embedding_bits=8)
    save_gguf(model, None, tmp_path / "model.gguf", precision)
    loaded = load_model(tmp_path / "model.gguf").state_dict()
    expected = dequantized_state(model)
    assert set(loaded) == set(expected)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name]), name
