"""BERT against `transformers`: both directions, fp32, eager attention, token types and padding included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.parity.conftest import SIZES, VOCAB_SIZE, randomize
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForTokenClassification, PreTrainedModel

from tallow.data.batch import PADDING_DOCUMENT
from tallow.errors import DataError
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.encoder import Encoder
from tallow.models.formats import load_encoder, load_tagger, save_model

TOLERANCE = 5e-5
SHOWS = 1e-2
CASES = {
    "plain": ({}, {"norm_eps": 1.0}),
    "tanh": ({"hidden_act": "gelu_new", "layer_norm_eps": 1e-2}, {"activation": "silu"}),
    "types": ({"type_vocab_size": 3, "num_attention_heads": 2}, {"num_heads": 4}),
}


def make_reference(**options: Any) -> PreTrainedModel:
    sizes = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
    config = AutoConfig.for_model("bert", **{**sizes, "vocab_size": VOCAB_SIZE, **options})
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()
    randomize(model)
    return model


def reference_logits(model: PreTrainedModel, ids_BT: Tensor, **inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=ids_BT, **inputs).logits


def our_logits(
    model: Encoder, ids_BT: Tensor, types_BT: Tensor | None = None, context: BidirectionalContext | None = None
) -> Tensor:
    context = context or BidirectionalContext.plain(len(ids_BT), ids_BT.shape[1])
    with torch.inference_mode():
        return model.logits(model(ids_BT, context, types_BT))


@pytest.mark.parametrize("name", CASES)
def test_parity(name: str, ids_BT: Tensor, tmp_path: Path) -> None:
    options, other = CASES[name]
    reference = make_reference(**options)
    reference.save_pretrained(tmp_path / "theirs")
    types_BT = torch.arange(40).expand(2, 40) % reference.config.type_vocab_size
    wanted_BTV = reference_logits(reference, ids_BT, token_type_ids=types_BT)
    assert wanted_BTV.std() > 0.3

    model = load_encoder(tmp_path / "theirs")
    got_BTV = our_logits(model, ids_BT, types_BT)
    assert (got_BTV - wanted_BTV).abs().max() < TOLERANCE
    untyped_BTV = our_logits(model, ids_BT)
    assert (untyped_BTV - reference_logits(reference, ids_BT)).abs().max() < TOLERANCE
    assert (untyped_BTV - got_BTV).abs().max() > SHOWS

    save_model(model, None, tmp_path / "ours")
    back = AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert (reference_logits(back, ids_BT, token_type_ids=types_BT) - wanted_BTV).abs().max() < TOLERANCE
    assert torch.equal(our_logits(load_encoder(tmp_path / "ours"), ids_BT, types_BT), got_BTV)

    changed = Encoder(model.config.model_copy(update=other))
    changed.load_state_dict(model.state_dict())
    assert (our_logits(changed, ids_BT, types_BT) - wanted_BTV).abs().max() > SHOWS


def test_padding(ids_BT: Tensor, tmp_path: Path) -> None:
    reference = make_reference()
    reference.save_pretrained(tmp_path)
    real_BT = torch.ones_like(ids_BT)
    real_BT[1, 25:] = 0
    wanted_BTV = reference_logits(reference, ids_BT, attention_mask=real_BT)
    documents_BT = torch.where(real_BT.bool(), 0, PADDING_DOCUMENT)
    context = BidirectionalContext(torch.arange(40).expand(2, 40), documents_BT)
    got_BTV = our_logits(load_encoder(tmp_path), ids_BT, context=context)
    assert (got_BTV - wanted_BTV)[real_BT.bool()].abs().max() < TOLERANCE
    assert (our_logits(load_encoder(tmp_path), ids_BT) - wanted_BTV)[1, :25].abs().max() > SHOWS


def test_names_of_converted_checkpoints(ids_BT: Tensor, tmp_path: Path) -> None:
    """As bert-base-uncased has them, with parts that a masked language model does not need."""
    make_reference().save_pretrained(tmp_path)
    wanted_BTV = our_logits(load_encoder(tmp_path), ids_BT)
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.clone()
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    extra = {"bert.pooler.dense.weight": torch.zeros(32, 32), "cls.seq_relationship.bias": torch.zeros(2)}
    save_file({**tensors, **extra}, tmp_path / "model.safetensors")
    assert any(name.endswith("gamma") for name in tensors)
    assert torch.equal(our_logits(load_encoder(tmp_path), ids_BT), wanted_BTV)


def test_hidden_states_need_no_head(ids_BT: Tensor, tmp_path: Path) -> None:
    """Encoders for embeddings are saved without what a masked language model has behind its layers."""
    reference = make_reference()
    base = reference.base_model
    assert isinstance(base, PreTrainedModel)
    reference.save_pretrained(tmp_path / "whole")
    base.save_pretrained(tmp_path / "base")
    with torch.inference_mode():
        wanted_BTD = base(input_ids=ids_BT).last_hidden_state
    with pytest.raises(DataError, match=r"no tensor cls\."):
        load_encoder(tmp_path / "base")
    for name in ("whole", "base"):
        model = load_encoder(tmp_path / name, head=False)
        with torch.inference_mode():
            hidden_BTD = model(ids_BT, BidirectionalContext.plain(len(ids_BT), ids_BT.shape[1]))
        assert (hidden_BTD - wanted_BTD).abs().max() < TOLERANCE
        assert wanted_BTD.std() > 0.3
        assert model.head is None


LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}


def make_tagger() -> PreTrainedModel:
    sizes = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
    config = AutoConfig.for_model("bert", **{**sizes, "vocab_size": VOCAB_SIZE, "id2label": LABELS})
    model = AutoModelForTokenClassification.from_config(config, attn_implementation="eager").eval()
    randomize(model)
    return model


def test_labels_of_tokens(ids_BT: Tensor, tmp_path: Path) -> None:
    reference = make_tagger()
    reference.save_pretrained(tmp_path / "theirs")
    real_BT = torch.ones_like(ids_BT)
    real_BT[1, 25:] = 0
    wanted_BTL = reference_logits(reference, ids_BT, attention_mask=real_BT)
    assert wanted_BTL.std() > 0.3

    model = load_tagger(tmp_path / "theirs")
    assert model.labels == ("O", "B-PER", "I-PER")
    documents_BT = torch.where(real_BT.bool(), 0, PADDING_DOCUMENT)
    context = BidirectionalContext(torch.arange(40).expand(2, 40), documents_BT)
    got_BTL = our_logits(model, ids_BT, context=context)
    assert got_BTL.shape == (2, 40, 3)
    assert (got_BTL - wanted_BTL)[real_BT.bool()].abs().max() < TOLERANCE
    assert (our_logits(model, ids_BT) - wanted_BTL)[1, :25].abs().max() > SHOWS

    save_model(model, None, tmp_path / "ours")
    back = AutoModelForTokenClassification.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert back.config.id2label == LABELS
    again_BTL = reference_logits(back, ids_BT, attention_mask=real_BT)
    assert (again_BTL - wanted_BTL)[real_BT.bool()].abs().max() < TOLERANCE


def test_an_encoder_without_labels_is_no_tagger(tmp_path: Path) -> None:
    make_reference().save_pretrained(tmp_path / "masked")
    with pytest.raises(DataError, match="what labels tokens get"):
        load_tagger(tmp_path / "masked")
