"""Small tokenizers of each kind that models come with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tallow.kernels.text.word_counts import split_pattern
from tallow.tokenizer.chat import CHATML
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.tokenizer.train import SPECIAL_TOKENS

TEXT = """\
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.
The user asks and the assistant answers: what is 12345 plus 678? I'll say it's 13023, don't you think?
def main(argument):\n    return [argument * 2 for _ in range(10)]\n
Мой дядя самых честных правил, когда не в шутку занемог, он уважать себя заставил и лучше выдумать не мог.
بنی آدم اعضای یک پیکرند که در آفرینش ز یک گوهرند. 人生自古谁无死，留取丹心照汗青。🙂🙃 émigré naïve façade
system user assistant tool think im_start im_end inst sys turn header end of text
"""
Backend = Callable[[], tokenizers.Tokenizer]


@pytest.fixture(scope="session")
def byte_level_backend() -> Backend:
    """Byte-level BPE, trained; its special tokens are in the vocabulary. Behind them an added token that is not one."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(2)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    backend.add_special_tokens(["<s>", "[INST]", "[/INST]", "<|eot_id|>"])
    backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    state = backend.to_str()
    return lambda: tokenizers.Tokenizer.from_str(state)


@pytest.fixture(scope="session")
def byte_level(byte_level_backend: Backend) -> Tokenizer:
    return Tokenizer.from_backend(
        byte_level_backend(), eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def sentencepiece_vocabulary() -> list[str]:
    """As sentencepiece orders it: control tokens, bytes, then pieces with ▁ for a space."""
    characters = sorted({character for character in TEXT.replace(" ", "▁") if character not in "\n🙂人"})
    return ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]


def build_sentencepiece(space: str) -> tokenizers.Tokenizer:
    """BPE as in Llama 2 with byte fallback and a BOS; the space before the text by a normalizer or a pre-tokenizer."""
    pieces = sentencepiece_vocabulary()
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("▁", "▁"), ("и", "т")]
    vocabulary = {piece: id for id, piece in enumerate([*pieces, *(a + b for a, b in merges)])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if space == "normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_special_tokens(["[INST]", "[/INST]"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


def build_unigram() -> tokenizers.Tokenizer:
    """Unigram as in T5, whose model itself would read `</s>` as the end token."""
    pieces = [(piece, -10.0 if index > 2 else 0.0) for index, piece in enumerate(sentencepiece_vocabulary())]
    backend = tokenizers.Tokenizer(models.Unigram([*pieces, ("▁the", -2.0)], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="always"), decoders.Fuse()]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return backend


@pytest.fixture(scope="session", params=["normalizer", "metaspace"])
def sentencepiece_backend(request: pytest.FixtureRequest) -> Backend:
    return partial(build_sentencepiece, request.param)


@pytest.fixture(scope="session")
def unigram_backend() -> Backend:
    return build_unigram


@pytest.fixture(params=["byte_level", "normalizer", "metaspace", "unigram"])
def any_tokenizer(request: pytest.FixtureRequest, byte_level_backend: Backend) -> Tokenizer:
    """A fresh tokenizer of each kind."""
    if request.param == "byte_level":
        return Tokenizer.from_backend(
            byte_level_backend(), bos_token="<s>", eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    backend = build_unigram() if request.param == "unigram" else build_sentencepiece(request.param)
    return Tokenizer.from_backend(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>")
