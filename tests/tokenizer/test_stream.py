from __future__ import annotations

from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from tallow.tokenizer.tokenizer import StreamDecoder, Tokenizer

Backend = Callable[[], tokenizers.Tokenizer]


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip_special_tokens: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
    return [*(decoder.push(id) for id in ids), decoder.flush()]


def draw_ids(data: st.DataObject, tokenizer: Tokenizer) -> list[int]:
    """Any ids, among them those of bytes, of special tokens and of nothing."""
    few = st.sampled_from([*range(30), tokenizer.vocab_size - 1, tokenizer.vocab_size])
    any_id = st.integers(0, tokenizer.vocab_size)
    text = st.text(max_size=10).map(tokenizer.encode)
    runs = data.draw(st.lists(st.one_of(text, few.map(lambda id: [id]), any_id.map(lambda id: [id]))))
    return [id for run in runs for id in run]


@given(data=st.data(), skip=st.booleans())
def test_byte_level_pushes_make_up_the_text(data: st.DataObject, skip: bool, byte_level: Tokenizer) -> None:
    ids = draw_ids(data, byte_level)
    pieces = streamed(byte_level, ids, skip_special_tokens=skip)
    assert "".join(pieces) == byte_level.decode(ids, skip_special_tokens=skip)


@given(data=st.data(), skip=st.booleans())
def test_sentencepiece_pushes_make_up_the_text(data: st.DataObject, skip: bool, sentencepiece_backend: Backend) -> None:
    tokenizer = Tokenizer.from_backend(sentencepiece_backend())
    ids = draw_ids(data, tokenizer)
    pieces = streamed(tokenizer, ids, skip_special_tokens=skip)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=skip)


@given(data=st.data())
def test_unigram_pushes_make_up_the_text(data: st.DataObject, unigram_backend: Backend) -> None:
    tokenizer = Tokenizer.from_backend(unigram_backend())
    ids = draw_ids(data, tokenizer)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    "decoder",
    [None, decoders.WordPiece(), decoders.BPEDecoder(), decoders.Metaspace(), decoders.Fuse()],
    ids=lambda decoder: type(decoder).__name__,
)
@given(data=st.data())
def test_other_decoders(data: st.DataObject, decoder: decoders.Decoder | None) -> None:
    words = ["▁a", "b", "##c", "d</w>", "▁", ".", "'s", "x"]
    backend = tokenizers.Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, unk_token="x"))
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = Tokenizer.from_backend(backend)
    ids = data.draw(st.lists(st.integers(0, len(words) - 1)))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_comes_when_it_is_whole(byte_level: Tokenizer) -> None:
    ids = [byte_level.backend.token_to_id(character) for character in "ðŁĻĤ"]  # the four bytes of 🙂
    assert streamed(byte_level, [id for id in ids if id is not None]) == ["", "", "", "🙂", ""]


def test_text_comes_at_once(byte_level: Tokenizer, sentencepiece_backend: Backend) -> None:
    for tokenizer in (byte_level, Tokenizer.from_backend(sentencepiece_backend())):
        ids = tokenizer.encode("the and it was")
        assert all(streamed(tokenizer, ids)[1:-1])


def test_what_is_cut_off_comes_with_the_flush(byte_level: Tokenizer, sentencepiece_backend: Backend) -> None:
    first = byte_level.backend.token_to_id("ð")
    assert first is not None
    assert streamed(byte_level, [first]) == ["", "\ufffd"]
    sentencepiece = Tokenizer.from_backend(sentencepiece_backend())
    first, second = (sentencepiece.backend.token_to_id(token) for token in ("<0xF0>", "<0x9F>"))
    assert first is not None
    assert second is not None
    assert streamed(sentencepiece, [first, second]) == ["", "", "\ufffd\ufffd"]


def test_a_decoder_is_as_new_after_the_flush(byte_level: Tokenizer, sentencepiece_backend: Backend) -> None:
    for tokenizer in (byte_level, Tokenizer.from_backend(sentencepiece_backend())):
        decoder = StreamDecoder(tokenizer)
        ids = tokenizer.encode(" the 人")
        texts = ["".join([*(decoder.push(id) for id in ids), decoder.flush()]) for _ in range(2)]
        assert texts == [tokenizer.decode(ids)] * 2
