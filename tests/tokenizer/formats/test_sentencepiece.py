"""sentencepiece's models give sentencepiece's ids."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallow.errors import DataError, UsageError
from tallow.tokenizer.formats.sentencepiece import BPE, UNIGRAM, Kind, SentencePieces, read_sentencepiece
from tallow.tokenizer.formats.sentencepiece import write_sentencepiece as write
from tallow.tokenizer.formats.wire import fields
from tallow.tokenizer.tokenizer import Tokenizer

HERE = Path("model")
LINES = [
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
    "Мой дядя самых честных правил, когда не в шутку занемог",
    "人生自古谁无死，留取丹心照汗青。",
    "émigré naïve façade 12345 678 the theme there then",
    "don't you think? I'll say it's 13023! the  two  spaces",
] * 4
PIECES = [
    "the",
    "a",
    "It",
    " ",
    "  ",
    "\n",
    "\t",
    "é",
    "e\u0301",
    "Мой",
    "人生",
    "中",
    "🙂",
    "①",
    "ﬁ",
    "1",
    ".",
    "▁",
    "</s>",
]
PIECES += ["<tool>", "▁▁"]
TEXTS = st.one_of(st.text(max_size=20), st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
SETTINGS = [
    (kind, fallback, spaces, before)
    for kind in ("bpe", "unigram")
    for fallback in (True, False)
    for spaces, before in ((True, True), (False, True), (False, False))
]


@cache
def trained(
    kind: str, fallback: bool, one_space: bool, before: bool, rule: str = "identity", defined: str = ""
) -> bytes:
    model = io.BytesIO()
    pytest.importorskip("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        model_type=kind,
        vocab_size=400 if fallback else 140,
        byte_fallback=fallback,
        normalization_rule_name=rule,
        remove_extra_whitespaces=one_space,
        add_dummy_prefix=before,
        user_defined_symbols=[defined] if defined else [],
        hard_vocab_limit=False,
        minloglevel=3,
    )
    return model.getvalue()


@cache
def pair(content: bytes) -> tuple[Tokenizer, Any]:
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor
    return read_sentencepiece(content, HERE), processor(model_proto=content)


@pytest.mark.parametrize(("kind", "fallback", "one_space", "before"), SETTINGS)
@settings(max_examples=30)
@given(text=TEXTS)
def test_ids_are_those_of_sentencepiece(kind: str, fallback: bool, one_space: bool, before: bool, text: str) -> None:
    tokenizer, reference = pair(trained(kind, fallback, one_space, before))
    expected = reference.encode(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode_batch([text]) == [expected]
    if fallback and "▁" not in text:  # which is a space, and at the beginning not written
        assert tokenizer.decode(expected) == reference.decode(expected)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=st.lists(st.sampled_from([piece for piece in PIECES if piece != "\t"]), max_size=20).map("".join))
def test_text_is_composed_as_by_sentencepiece(kind: str, text: str) -> None:
    tokenizer, reference = pair(trained(kind, True, True, True, "nmt_nfkc"))
    assert tokenizer.encode(text) == reference.encode(text)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=st.lists(st.sampled_from(["<tool>", "<", "the", " ", "  ", "é", "tool>"]), max_size=12).map("".join))
def test_pieces_that_a_user_has_defined(kind: str, text: str) -> None:
    tokenizer, reference = pair(trained(kind, True, False, False, defined="<tool>"))
    assert tokenizer.encode(text) == reference.encode(text)


@pytest.mark.parametrize(("kind", "fallback", "one_space", "before"), SETTINGS)
def test_what_is_written_is_the_same_model(
    kind: str, fallback: bool, one_space: bool, before: bool, tmp_path: Path
) -> None:
    content = trained(kind, fallback, one_space, before, "nmt_nfkc")
    tokenizer = read_sentencepiece(content, HERE)
    write(tokenizer, tmp_path / "tokenizer.model")
    again = Tokenizer.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.special_tokens == tokenizer.special_tokens
    processor = pytest.importorskip("sentencepiece").SentencePieceProcessor
    ours, theirs = processor(model_file=str(tmp_path / "tokenizer.model")), processor(model_proto=content)
    for line in [*LINES, "①  e\u0301 🙂 "]:
        assert ours.encode(line) == theirs.encode(line)
        assert ours.decode(ours.encode(line)) == theirs.decode(theirs.encode(line))


def test_control_pieces_in_text_are_text() -> None:
    tokenizer, _ = pair(small(BPE))
    for text in ("</s>", "a</s>b", "<unk>", " <s> "):
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("a</s>b", parse_special=True).count(2) == 1


def small(model: int, *more: tuple[str, float, int]) -> bytes:
    control = [("<unk>", 0.0, Kind.UNKNOWN), ("<s>", 0.0, Kind.CONTROL), ("</s>", 0.0, Kind.CONTROL)]
    pieces = [*control, *((f"<0x{byte:02X}>", 0.0, Kind.BYTE) for byte in range(256))]
    pieces += [("a", -3.0, Kind.NORMAL), ("b", -4.0, Kind.NORMAL), ("ab", -1.0, Kind.NORMAL), ("▁", -2.0, Kind.NORMAL)]
    return SentencePieces([*pieces, *more], model, byte_fallback=True, one_space=False).message()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x0a\x7f\x0a",
        b"\x0a\x03\x0a\x01\xff",
        b"\x0a\x02\x18\x63",
        small(3),
        small(BPE, ("c", 0.0, Kind.UNUSED)),
        small(UNIGRAM, ("a", 0.0, Kind.NORMAL)),
        SentencePieces(
            [("a", 0.0, 1), ("<unk>", 0.0, 2)], named=(-1, -1, -1), charsmap=b"\xff\xff\xff\x7fabc"
        ).message(),
    ],
)
def test_broken_models(content: bytes) -> None:
    with pytest.raises(DataError):
        read_sentencepiece(content, HERE).encode("b")


@pytest.mark.parametrize("model", [BPE, UNIGRAM])
def test_cut_short_anywhere(model: int) -> None:
    whole = small(model)
    for length in range(1, len(whole), 97):
        try:
            read_sentencepiece(whole[:length], HERE)
        except DataError:
            continue
        assert sum(1 for _ in fields(whole[:length])) < sum(1 for _ in fields(whole))  # cut between two fields


@given(content=st.binary(max_size=60))
def test_any_bytes(content: bytes) -> None:
    with suppress(DataError):
        read_sentencepiece(content, HERE)


def test_byte_level_tokenizers_are_refused(byte_level: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="made of bytes, not of characters"):
        write(byte_level, tmp_path / "x.model")
    assert not list(tmp_path.iterdir())
