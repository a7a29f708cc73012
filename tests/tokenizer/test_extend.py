"""A vocabulary that has grown cuts a text as before, and then joins pieces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tallow.errors import DataError, UsageError
from tallow.tokenizer.extend import Extension, extend_tokenizer
from tallow.tokenizer.tokenizer import Tokenizer

Backend = Callable[[], tokenizers.Tokenizer]
CHANT = ["tallow candles tallow candles, and candlelight\n", "свечи горели, свечи 蠟燭 蠟燭 蠟燭 🙂"]
WORDS = st.lists(
    st.sampled_from(["tallow", " candles", " candlelight", "свечи", "蠟燭", "🙂", " ", "\n", "and", "<|im_end|>", "7"]),
    max_size=12,
).map("".join)


def split(extension: Extension, ids: list[int]) -> list[int]:
    """New tokens as the old ones of which they are made."""
    return [old for id in ids for old in extension.pieces.get(id, [id])]


@pytest.fixture(scope="module")
def byte_level_extension(byte_level: Tokenizer) -> Extension:
    return extend_tokenizer(byte_level, CHANT, 15)


@given(text=WORDS)
def test_new_tokens_are_made_of_what_the_text_was_cut_into(
    text: str, byte_level: Tokenizer, byte_level_extension: Extension
) -> None:
    larger = byte_level_extension.tokenizer
    ids = larger.encode(text)
    assert split(byte_level_extension, ids) == byte_level.encode(text)
    assert larger.decode(ids) == text
    assert larger.special_ids.isdisjoint(ids)


def test_the_text_needs_fewer_tokens_and_old_ids_stay(byte_level: Tokenizer, byte_level_extension: Extension) -> None:
    larger, pieces = byte_level_extension.tokenizer, byte_level_extension.pieces
    assert list(pieces) == list(range(byte_level.vocab_size, byte_level.vocab_size + 15))
    assert len(larger.encode(CHANT[0])) < 0.8 * len(byte_level.encode(CHANT[0]))
    for id in range(byte_level.vocab_size):
        assert larger.backend.id_to_token(id) == byte_level.backend.id_to_token(id)
    assert larger.special_ids == byte_level.special_ids
    assert larger.special_tokens == byte_level.special_tokens
    assert larger.chat_template is byte_level.chat_template
    assert all(larger.token_bytes(id) == b"".join(map(larger.token_bytes, old)) for id, old in pieces.items())


def test_it_is_saved_and_read_by_transformers(byte_level_extension: Extension, tmp_path: Path) -> None:
    larger = byte_level_extension.tokenizer
    larger.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == larger.fingerprint
    for text in CHANT:
        assert theirs.encode(text, add_special_tokens=False) == larger.encode(text)
    assert theirs.convert_tokens_to_ids("<|im_end|>") == larger.backend.token_to_id("<|im_end|>")


def test_the_order_of_texts_is_of_no_account(byte_level: Tokenizer, byte_level_extension: Extension) -> None:
    assert extend_tokenizer(byte_level, CHANT[::-1], 15).pieces == byte_level_extension.pieces


def test_added_tokens_are_not_learned_as_text(byte_level: Tokenizer) -> None:
    """Else what a user has written would become a control token, or one that a template looks for."""
    texts = ["<think></think><|im_end|>"] * 9
    extension = extend_tokenizer(byte_level, texts, 50)
    larger = extension.tokenizer
    ids = larger.encode(texts[0])
    assert larger.backend.token_to_id("<|im_end|>") not in ids
    assert split(extension, ids) == byte_level.encode(texts[0])
    assert larger.backend.token_to_id("<think>") == byte_level.backend.token_to_id("<think>")


def test_of_a_sentencepiece_like_tokenizer_words_are_kept_apart(sentencepiece_backend: Backend) -> None:
    tokenizer = Tokenizer.from_backend(sentencepiece_backend(), bos_token="<s>", eos_token="</s>")
    texts = ["the crow and the 蠟 user " * 3] * 3
    extension = extend_tokenizer(tokenizer, texts, 60)
    new = [extension.tokenizer.backend.id_to_token(id) or "" for id in extension.pieces]
    assert "▁user" in new
    assert not any("▁" in token[1:] or "<0x" in token for token in new)
    ids = extension.tokenizer.encode(texts[0])
    assert split(extension, ids) == tokenizer.encode(texts[0])
    assert extension.tokenizer.decode(ids) == tokenizer.decode(tokenizer.encode(texts[0]))
    assert extension.tokenizer.encode("", add_special_tokens=True) == [1]


def test_merges_in_the_older_form(byte_level_backend: Backend) -> None:
    state = json.loads(byte_level_backend().to_str())
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    assert extend_tokenizer(Tokenizer.from_backend(backend), CHANT, 5).pieces


def test_what_cannot_be_extended_is_refused(unigram_backend: Backend, byte_level: Tokenizer) -> None:
    with pytest.raises(UsageError, match="type Unigram"):
        extend_tokenizer(Tokenizer.from_backend(unigram_backend()), CHANT, 5)
    with pytest.raises(DataError, match="no new token"):
        extend_tokenizer(byte_level, ["", "a b c"], 5)


def test_little_text_yields_fewer_and_says_so(byte_level: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    extension = extend_tokenizer(byte_level, ["xyz xyz"], 5)
    assert 0 < len(extension.pieces) < 5
    assert "yields only" in capsys.readouterr().err
