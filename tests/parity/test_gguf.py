"""GGUF files of ours as `transformers` reads them: an implementation of its own of names, row orders and offsets.

Its reader leaves much of the metadata aside (rotary scalings, most windows, sizes of heads, GPT-2's and StarCoder2's
vocabulary but for the tokenizer's), so the configurations here are such that its defaults are right. OLMo 2 and
GPT-NeoX it does not read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tallow.models.decoder import Decoder
from tallow.models.families import find_family
from tallow.models.formats import load_model, save_gguf
from tallow.tokenizer.tokenizer import Tokenizer

TOLERANCE = 5e-5
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = ["<|endoftext|>", "<s>", "</s>", *ALPHABET, "Ġt", "he", "Ġthe", "Ġa", "in"]
CASES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "rope_theta": 500000.0},
    "mistral": {"num_key_value_heads": 2, "sliding_window": None, "tie_word_embeddings": True},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 128},
    "gemma2": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 8},
    "gemma3_text": {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 8},
    "phi3": {"num_key_value_heads": 2},
    "gpt2": {"n_positions": 1024},
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": None, "norm_epsilon": 1e-4},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "a"), ("i", "n")]
    backend = tokenizers.Tokenizer(models.BPE({token: id for id, token in enumerate(VOCABULARY)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer.from_backend(backend, bos_token="<s>", eos_token="</s>", pad_token="<|endoftext|>")


@pytest.mark.parametrize("family", CASES)
def test_transformers_reads_the_same_model(
    tmp_path: Path,
    tokenizer: Tokenizer,
    make_reference: Callable[..., PreTrainedModel],
    reference_logits: Callable[[PreTrainedModel, Tensor], Tensor],
    our_logits: Callable[[Decoder, Tensor], Tensor],
    ids_BT: Tensor,
    family: str,
) -> None:
    original = make_reference(family, vocab_size=len(VOCABULARY), **CASES[family])
    model = Decoder(find_family(family).read_config(original.config.to_dict())).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if parameter.ndim == 1 else 1.5 * noise / parameter.shape[-1] ** 0.5)
    save_gguf(model, tokenizer, tmp_path / "model.gguf", "f32")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    expected = our_logits(model, ids_BT)
    torch.testing.assert_close(reference_logits(theirs.eval(), ids_BT), expected, rtol=0, atol=TOLERANCE)
    assert torch.equal(our_logits(load_model(tmp_path / "model.gguf"), ids_BT), expected)


def test_transformers_reads_the_same_tokenizer(
    tmp_path: Path, tokenizer: Tokenizer, make_reference: Callable[..., PreTrainedModel]
) -> None:
    original = make_reference("llama", vocab_size=len(VOCABULARY))
    model = Decoder(find_family("llama").read_config(original.config.to_dict()))
    save_gguf(model, tokenizer, tmp_path / "model.gguf", "f16")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("the cat in the hat", " a naïve\n\n  hen </s>", ""):
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text, parse_special=True)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 0)
