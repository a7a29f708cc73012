from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from tallow.kernels.text import native
from tallow.tokenizer.sealed import SealedTokenizer

Backend = Callable[[], tokenizers.Tokenizer]
MARKER = "\ue000"


def words(*special: AddedToken) -> tokenizers.Tokenizer:
    """One token for each letter of "a b c < >", and special tokens behind."""
    vocabulary = {character: id for id, character in enumerate("abc <>ABC")}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.add_special_tokens(list(special))
    return backend


def pieces_of(backend: tokenizers.Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """Ids of rendered text by the sealed tokenizer, and by the original."""
    return SealedTokenizer(backend).encode_pieces([(text, False)], MARKER)[0], backend.encode(
        text, add_special_tokens=False
    ).ids


@pytest.mark.parametrize("lstrip", [False, True])
@pytest.mark.parametrize("rstrip", [False, True])
@pytest.mark.parametrize("single_word", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
@given(text=st.lists(st.sampled_from(["<a>", "<b>", "a", " ", "  ", "<", ">", "<a", "c<a>c"])).map("".join))
def test_flags_of_special_tokens_hold(
    lstrip: bool, rstrip: bool, single_word: bool, normalized: bool, text: str
) -> None:
    token = AddedToken("<a>", lstrip=lstrip, rstrip=rstrip, single_word=single_word, normalized=normalized)
    ours, theirs = pieces_of(words(token, AddedToken("<b>", special=True)), text)
    assert ours == theirs


@given(text=st.lists(st.sampled_from(["<a>", "<a><b>", "<ab", "b>", "a", " "])).map("".join))
def test_the_longest_of_overlapping_tokens_counts(text: str) -> None:
    backend = words(*(AddedToken(content, special=True) for content in ("<a>", "<a><b>", "<ab", "b>")))
    ours, theirs = pieces_of(backend, text)
    assert ours == theirs


def test_tokens_behind_a_normalizer() -> None:
    backend = words(AddedToken("<A>", special=True, normalized=False))
    backend.normalizer = normalizers.Lowercase()
    ours, theirs = pieces_of(backend, "A<A>B")
    assert ours == theirs
    assert len(ours) == 3


@given(
    text=st.lists(st.sampled_from(["<a>", "<a><b>", "<ab", "b>", "a", "<", "b", ">", "<a><", MARKER])).map("".join),
    rest=st.sampled_from(["", "b>", ">", "<b>", "a>", "ab"]),
)
def test_marked_text_spells_nothing_even_with_what_follows(text: str, rest: str) -> None:
    special = ("<a>", "<a><b>", "<ab", "b>")
    sealed = SealedTokenizer(words(*(AddedToken(content, special=True) for content in special)))
    marked = sealed.mark(text, MARKER)
    assert marked.replace(MARKER, "") == text.replace(MARKER, "")
    found = [content for content in special if content in marked + rest]
    assert found == [content for content in special if content in rest]


def test_flagged_pieces_cover_their_tokens(byte_level_backend: Backend) -> None:
    sealed = SealedTokenizer(byte_level_backend())
    ids, mask = sealed.encode_pieces([("<s>it ", False), ("was🙂", True), ("", True), ("<|im_end|>", True)], MARKER)
    backend = byte_level_backend()
    assert ids == backend.encode("<s>it was🙂<|im_end|>").ids
    learned = [id for id, flag in zip(ids, mask, strict=True) if flag]
    assert backend.decode(learned, skip_special_tokens=False) == " was🙂<|im_end|>"  # the space is part of " was"


def test_a_word_of_the_model_that_is_special() -> None:
    """A pre-tokenizer that leaves words whole lets a model of words read them as special tokens."""
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "[CLS]": 1, "a": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["[CLS]", "[UNK]"])
    sealed = SealedTokenizer(backend)
    assert sealed.encode_batch(["[CLS] a"]) == [[0, 2]]
    assert sealed.encode_pieces([("[CLS] a", False)], MARKER)[0] == [1, 2]


def test_the_original_stays_as_it_was(byte_level_backend: Backend) -> None:
    backend = byte_level_backend()
    before = backend.to_str()
    SealedTokenizer(backend).encode("<s>")
    assert backend.to_str() == before


PIECES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["<s>", "<think>", "it was", " the", "🙂", "中", "é", "\n", "<", "12"])).map("".join),
        st.booleans(),
    ),
    max_size=5,
)


@given(pieces=PIECES, written=st.booleans())
def test_our_own_code_does_what_the_library_does(
    pieces: list[tuple[str, bool]], written: bool, byte_level_backend: Backend
) -> None:
    fast = SealedTokenizer(byte_level_backend())
    assert native() is None or fast.direct is not None
    text = "".join(piece for piece, _ in pieces)
    marked = [(piece if written else fast.mark(piece, MARKER), flag) for piece, flag in pieces]
    with patch("tallow.tokenizer.sealed.LONG", -1):
        ours = fast.parse(text), fast.encode_ids(text), fast.encode_batch([text]), fast.encode_pieces(marked, MARKER)
    library = SealedTokenizer(byte_level_backend())
    ids = library.encode_ids(text)
    assert ours == (library.parse(text), ids, [ids], library.encode_pieces(marked, MARKER))
    assert "direct" not in library.__dict__  # nobody has asked for it
