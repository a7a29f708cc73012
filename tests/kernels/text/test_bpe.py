"""Our own byte-level BPE gives the ids of the library, on any text."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from tallow.kernels.dispatch import using
from tallow.kernels.text import native
from tallow.kernels.text.bpe import O200K, SPLIT_RULES
from tallow.kernels.text.word_counts import split_pattern
from tallow.tokenizer.direct import direct_encoder
from tallow.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(native() is None, reason="needs the C++ kernels")

PIECES = (
    "'s", "'S", "'ſ", "'t", "'re", "'RE", "'vE", "'ll", "'LL", "'m", "'d", "'", "ſ", "a", "b", "abc", "the", "The",
    "THE", "é", "E\u0301", "\u0301", "ǅ", "ʰ", "ª", "中", "국", "א", "ب", "я", "Я", "1", "23", "4567", "٣", "½",
    "Ⅷ", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u0085", "\u2028", "\x1c", "\x0b", ".", "...", "/",
    "//\n", "!?", "🙂", "\0", "\u200d", "_", "-", "<|end|>", "<think>", "ab" * 50, "a" * 70, " " * 40,
    "\U00031350", "\U0001ccf0", "\u1c89",
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
CORPUS = (
    "the cat's abc ababab THE Café, don't 123 4567 the  the\n\n\nthe/the//\n aaaa aaaaaaaa 中国 中国 я Я яЯ é é\r\n" * 3
)


def trained(pattern: str | None, ignore_merges: bool = False) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = pre_tokenizers.Split(Regex(pattern or "."), behavior="isolated")
    backend.pre_tokenizer = whole if pattern is None else pre_tokenizers.Sequence([split, whole])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    backend.add_tokens([AddedToken("<think>", normalized=False)])
    return backend


@pytest.fixture(scope="module", params=[None, *SPLIT_RULES])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_backend(trained(request.param), eos_token="<|end|>")


@given(texts=st.lists(TEXTS, max_size=4), end=st.sampled_from([None, 0]))
def test_ids_are_those_of_the_library(texts: list[str], end: int | None, tokenizer: Tokenizer) -> None:
    assert tokenizer.sealed.direct is not None
    ids, lengths = tokenizer.encode_texts(pa.array(texts, pa.string()), end=end)
    expected = [encoded + ([] if end is None else [end]) for encoded in tokenizer.encode_batch(texts)]
    assert lengths.tolist() == [len(encoded) for encoded in expected]
    assert ids.tolist() == [id for encoded in expected for id in encoded]
    with using("reference"):
        reference = Tokenizer(tokenizer.backend, {}).encode_texts(pa.array(texts, pa.string()), end=end)
    assert np.array_equal(ids, reference[0])
    assert np.array_equal(lengths, reference[1])
    assert (ids.dtype, lengths.dtype) == (reference[0].dtype, reference[1].dtype) == (np.uint32, np.int64)


@pytest.mark.parametrize("pattern", [split_pattern(1), O200K])
def test_every_character_is_of_the_library_s_class(pattern: str) -> None:
    """Each among a letter, a digit, a space and a mark, so that another class would cut elsewhere."""
    tokenizer = Tokenizer.from_backend(trained(pattern), eos_token="<|end|>")
    some = np.random.default_rng().choice(np.r_[0x100:0xD800, 0xE000:0x33480, 0xE0000:0xE0200], 2000).tolist()
    codes = [*range(0x100), *some]
    text = "".join(f"A{chr(code)}a1{chr(code)} {chr(code)}.\u0301{chr(code)}\n" for code in codes)
    ids, _ = tokenizer.encode_texts(pa.array([text]))
    assert ids.tolist() == tokenizer.encode(text)


def test_tokens_that_merges_do_not_reach() -> None:
    """A model that ignores merges takes a piece that it knows as it is."""
    state = trained(None, ignore_merges=True)
    alphabet = {token: id for token, id in state.get_vocab().items() if len(token) == 1}
    backend = tokenizers.Tokenizer(models.BPE({**alphabet, "abc": 400, "bc": 401}, [("b", "c")], ignore_merges=True))
    backend.pre_tokenizer = state.pre_tokenizer
    tokenizer = Tokenizer.from_backend(backend, eos_token="<|end|>")
    assert tokenizer.sealed.direct is not None
    ids, _ = tokenizer.encode_texts(pa.array(["abc abc"]))
    assert ids.tolist() == [400, alphabet["Ġ"], alphabet["a"], 401] == tokenizer.encode("abc abc")


@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "ab" * 500_000, "\n" * 1_000_000, "aé" * 300_000])
def test_long_pieces_take_no_square(text: str) -> None:
    """A square would take an hour."""
    tokenizer = Tokenizer.from_backend(trained(None), eos_token="<|end|>")
    ids, _ = tokenizer.encode_texts(pa.array([text]))
    assert tokenizer.decode(ids.tolist()) == text


def test_threads_share_an_encoder() -> None:
    tokenizer = Tokenizer.from_backend(trained(None), eos_token="<|end|>")
    texts = [pa.array([CORPUS[start:], "<think>" * (start % 3)]) for start in range(100)]
    with ThreadPoolExecutor(4) as pool:
        found = [ids.tolist() for ids, _ in pool.map(tokenizer.encode_texts, texts)]
    assert found == [[*chain(*tokenizer.encode_batch(pair.to_pylist()))] for pair in texts]


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("normalizer", {"type": "Lowercase"}),
        ("pre_tokenizer", None),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}),
        ("pre_tokenizer", {"type": "Whitespace"}),
    ],
)
def test_other_tokenizers_are_left_to_the_library(part: str, value: object) -> None:
    state = json.loads(trained(None).to_str()) | {part: value}
    assert direct_encoder(tokenizers.Tokenizer.from_str(json.dumps(state)), {}, []) is None


def test_a_vocabulary_without_some_bytes_is_left_to_the_library() -> None:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert direct_encoder(backend, {}, []) is None
