"""A tiny tokenizer and model that can chat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders as token_decoders

from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats import save_model
from tallow.tokenizer.chat import CHATML
from tallow.tokenizer.tokenizer import Tokenizer

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Bytes and control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = token_decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    return Tokenizer.from_backend(backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", chat_template=CHATML)


def tiny_model(vocab_size: int, seed: int = 0) -> Decoder:
    config = DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=96,
        max_positions=256,
    )
    model = Decoder(config)
    initialize(model, seed)
    with torch.no_grad():
        model.embed.weight.mul_(10.0)  # as large as trained ones, so that adapters alone can move the logits
    return model


@pytest.fixture
def model_directory(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_model(tiny_model(tokenizer.vocab_size), tokenizer, tmp_path / "base")
    return tmp_path / "base"
