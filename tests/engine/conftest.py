"""Tiny models and a tiny tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from torch import Tensor

from tallow.engine.native_runner import NativeRunner
from tallow.engine.packed_model import CacheNumber, Number
from tallow.engine.packing import pack
from tallow.engine.runner import Scores
from tallow.models.config import DecoderConfig, Rotary
from tallow.models.decoder import Decoder
from tallow.tokenizer.chat import CHATML
from tallow.tokenizer.tokenizer import Tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BYTE_TOKENS = len(SPECIAL_TOKENS)
"""The id of byte b is `BYTE_TOKENS + b`."""
VOCAB_SIZE = BYTE_TOKENS + 256


def tiny(**choices: Any) -> DecoderConfig:
    """A small model with these choices."""
    shape = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48}
    return DecoderConfig(**{**shape, "vocab_size": VOCAB_SIZE, "max_positions": 96, **choices})


CONFIGS = {
    "llama": tiny(),
    "all heads": tiny(num_kv_heads=4, tied_embeddings=False),
    "one kv head": tiny(num_kv_heads=1, qkv_bias=True, qk_norm="head"),
    "sliding window": tiny(window=5),
    "alternating windows, soft caps": tiny(
        window=7,
        sliding_layers=(True, False, True),
        attention_softcap=3.0,
        logit_softcap=5.0,
        norm_placement="both",
        norm_offset=True,
        embedding_scale=True,
        local_rotary=Rotary(theta=100.0),
    ),
    "learned positions": tiny(num_kv_heads=4, positions="learned", norm="layer", gated=False, activation="gelu_tanh"),
    "parallel, partial rotary": tiny(parallel_residual=True, rotary=Rotary(fraction=0.5)),
}


def make_model(config: DecoderConfig, seed: int = 0) -> Decoder:
    """Random weights, large enough that the next token depends on all tokens before."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
            else:
                center = 0.0 if name.endswith("bias") else 1.0
                parameter.normal_(center, 0.2, generator=generator)
    return model.eval()


def native_runner(
    model: Decoder, weights: Number = "bfloat16", cache: CacheNumber = "bfloat16", **choices: Any
) -> NativeRunner:
    """The C++ decoder of a model in memory."""
    return NativeRunner(pack(model, weights), cache, **choices)


def logits(scores: Scores) -> Tensor:
    """A copy of all logits, R V."""
    return torch.tensor(scores.logits_RV)


@pytest.fixture(scope="session", params=CONFIGS, ids=lambda name: name.replace(" ", "-"))
def any_model(request: pytest.FixtureRequest) -> Decoder:
    return make_model(CONFIGS[request.param])


@pytest.fixture(scope="session")
def model() -> Decoder:
    return make_model(CONFIGS["llama"])


def make_tokenizer(chat_template: str | None = CHATML) -> Tokenizer:
    """A token for each byte, in the letters that byte-level tokenizers write them with."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + index) for index, byte in enumerate(others)}
    vocab = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    vocab |= {letters[byte]: BYTE_TOKENS + byte for byte in range(256)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return Tokenizer.from_backend(backend, eos_token=SPECIAL_TOKENS[0], chat_template=chat_template)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer() -> Tokenizer:
    return make_tokenizer(chat_template=None)
