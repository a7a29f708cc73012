"""A small tokenizer for model files."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tallow.models.formats.gguf_splits import SPLIT_RULES, pre_tokenizer
from tallow.tokenizer.tokenizer import Tokenizer

TEXT = [
    "the cat sat on the mat, and the dog ran over the hill again and again.",
    "In 1984, 12345 people paid $3.50; don't we'll I'M they'RE",
    "def f(x):\n\treturn x**2  # naïve café 日本語 🤗 привет мир",
]


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Tokenizer]:
    """`make_tokenizer(rule)`: a byte-level tokenizer that cuts text into words by a rule of llama.cpp's."""

    def make(rule: str = "gpt-2", vocab_size: int = 320) -> Tokenizer:
        backend = tokenizers.Tokenizer(models.BPE(ignore_merges=SPLIT_RULES[rule].whole_words))
        backend.pre_tokenizer = pre_tokenizer(SPLIT_RULES[rule])
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        )
        backend.train_from_iterator(TEXT * 3, trainer)
        return Tokenizer.from_backend(
            backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )

    return make
