from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.tiny import CONFIG
from torch import Tensor

from tallow.compress.quantize import CompressConfig, compress
from tallow.data.batch import PADDING_DOCUMENT
from tallow.engine.language_model import load
from tallow.errors import DataError, UsageError
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.decoder import Decoder, initialize
from tallow.models.encoder import Encoder, initialize_encoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.formats import load_encoder, load_model, save_model
from tallow.models.formats.convert import convert
from tallow.run import StageRun

SHAPE = EncoderConfig(
    vocab_size=31, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=24, max_positions=16, pad_id=3
)


def make_model(**changes: Any) -> Encoder:
    model = Encoder(SHAPE.model_copy(update=changes))
    initialize_encoder(model, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that everything shows
            parameter.mul_(10) if parameter.ndim == 2 else parameter.add_(0.1)
    return model.eval()


def logits(model: Encoder, ids_BT: Tensor, context: BidirectionalContext | None = None) -> Tensor:
    with torch.no_grad():
        return model.logits(model(ids_BT, context or BidirectionalContext.plain(len(ids_BT), ids_BT.shape[1])))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(make_model(), None, tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_token_sees_what_comes_after_it() -> None:
    model = make_model()
    ids_BT = torch.arange(8)[None]
    changed_BT = ids_BT.clone()
    changed_BT[0, -1] = 30
    assert not torch.allclose(logits(model, ids_BT)[:, 0], logits(model, changed_BT)[:, 0], atol=1e-3)


def test_packed_and_padded_rows_equal_their_documents() -> None:
    model = make_model()
    one, two = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[10, 11, 12]])
    packed_BT = torch.cat((one, two, torch.tensor([[3, 3, 3]])), dim=1)
    documents_BT = torch.tensor([[0] * 5 + [1] * 3 + [PADDING_DOCUMENT] * 3])
    positions_BT = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2]])
    packed = logits(model, packed_BT, BidirectionalContext(positions_BT, documents_BT))
    torch.testing.assert_close(packed[:, :5], logits(model, one), rtol=0, atol=1e-5)
    torch.testing.assert_close(packed[:, 5:8], logits(model, two), rtol=0, atol=1e-5)
    assert packed.isfinite().all()
    unmasked = logits(model, packed_BT, BidirectionalContext(positions_BT))
    assert (unmasked[:, :5] - packed[:, :5]).abs().max() > 1e-2


def test_round_trip(directory: Path) -> None:
    loaded = load_encoder(directory)
    assert loaded.config == SHAPE
    torch.testing.assert_close(dict(loaded.state_dict()), dict(make_model().state_dict()), rtol=0, atol=0)
    assert {parameter.dtype for parameter in load_encoder(directory, dtype=torch.bfloat16).parameters()} == {
        torch.bfloat16
    }
    assert not (directory / "generation_config.json").exists()


def test_initial_weights_follow_from_the_seed() -> None:
    models = [Encoder(SHAPE) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        initialize_encoder(model, seed)
    weights = [torch.cat([parameter.flatten() for parameter in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="not a multiple of num_heads"):
        EncoderConfig(hidden_size=30, num_heads=4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_decoder": True}, "is_decoder"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"tie_word_embeddings": False}, "output matrix of their own"),
        ({"hidden_act": "relu"}, "relu"),
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"num_hidden_layers": 3}, "no tensor bert.encoder.layer.2"),
        ({"num_hidden_layers": 1}, "bert.encoder.layer.1"),
        ({"hidden_size": 18}, "shape"),
        ({"quantization_config": {"quant_method": "tallow", "modules": ["embed"]}}, "quantized encoder"),
    ],
)
def test_what_cannot_be_read_is_refused(directory: Path, changes: dict[str, Any], words: str) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=words):
        load_encoder(directory)


def test_a_model_without_the_masked_head_is_refused(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in tensors.items() if not name.startswith("cls.")}
    save_file(kept, directory / "model.safetensors")
    with pytest.raises(DataError, match=r"cls\.predictions"):
        load_encoder(directory)


def test_each_kind_is_refused_where_the_other_is_wanted(tmp_path: Path, directory: Path) -> None:
    tries = (
        lambda: load_model(directory),
        lambda: load(directory),
        lambda: convert(directory, "gguf", tmp_path / "model.gguf"),
        lambda: compress(CompressConfig(model=directory, bits=8), StageRun(tmp_path / "run")),
    )
    for attempt in tries:
        with pytest.raises(UsageError, match=r"is an encoder \(bert\): it fills in masked tokens") as raised:
            attempt()
        assert "\n" not in raised.value.message
    decoder = Decoder(CONFIG)
    initialize(decoder, seed=0)
    save_model(decoder, None, tmp_path / "decoder")
    with pytest.raises(UsageError, match=r"of type llama and no encoder"):
        load_encoder(tmp_path / "decoder")
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UsageError, match="encoders are directories"):
        load_encoder(tmp_path / "model.gguf")
