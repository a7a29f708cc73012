from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as dequantize_blocks

from tallow.kernels.blocks import BlockWeight, unpack_blocks
from tallow.kernels.dispatch import using
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats import Precision, load_model, open_model, save_gguf
from tallow.models.quantization import dequantized_state, quantize_modules

CONFIG = DecoderConfig(
    vocab_size=96, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=96, max_positions=64
)


@pytest.mark.parametrize(
    ("bits", "group_size", "embedding_bits", "precision"),
    [
        (4, 32, 6, "q4_0"),
        (4, 32, 8, "q4_0"),
        (4, 32, 4, "q4_0"),
        (8, 32, 8, "q8_0"),
        (6, 64, 6, "q8_0"),
        (8, 64, 4, "q8_0"),
        (4, 32, 6, "q8_0"),
    ],
)
def test_export_loses_nothing(
    tmp_path: Path, bits: int, group_size: int, embedding_bits: int, precision: Precision
) -> None:
    model = Decoder(CONFIG)
    initialize(model, seed=0)
    quantize_modules(model, bits, group_size, embedding_bits=embedding_bits)
    save_gguf(model, None, tmp_path / "model.gguf", precision)
    loaded = load_model(tmp_path / "model.gguf").state_dict()
    expected = dequantized_state(model)
    assert set(loaded) == set(expected)
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_tables_of_6_bits_are_blocks_of_8(tmp_path: Path, tied: bool) -> None:
    """With scales below zero, which llama.cpp's own quantizer does not make, but every reader multiplies with."""
    model = Decoder(CONFIG.model_copy(update={"tied_embeddings": tied}))
    initialize(model, seed=0)
    quantize_modules(model, 4, 32)
    save_gguf(model, None, tmp_path / "model.gguf", "q4_0")
    stored = open_model(tmp_path / "model.gguf")
    expected = dequantized_state(model)
    for name in ("embed.weight",) if tied else ("embed.weight", "lm_head.weight"):
        weight = stored.read(name)
        if isinstance(weight, BlockWeight):  # where the C++ kernels are built
            assert weight.kind == GGMLQuantizationType.Q8_0
            scales = weight.blocks.contiguous().view(-1, 34)[:, :2].contiguous().view(torch.float16)
            assert (scales < 0).any()
            assert torch.equal(unpack_blocks(weight), expected[name])
            with using("reference"):
                assert torch.equal(unpack_blocks(weight), expected[name])
            values = dequantize_blocks(weight.blocks.numpy(), GGMLQuantizationType.Q8_0)
            assert np.array_equal(values, expected[name].numpy())
        else:
            assert torch.equal(weight, expected[name])
