"""RWKV's vocabularies: the longest token that fits."""

from __future__ import annotations

import ast
import gzip
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tallow.errors import DataError, UsageError
from tallow.kernels.dispatch import using
from tallow.kernels.text.longest_match import LongestMatch
from tallow.tokenizer.formats.rwkv import read_rwkv, write_rwkv
from tallow.tokenizer.tokenizer import Tokenizer

HERE = Path("vocabulary")
BYTES = "".join(f"{byte + 1} {bytes([byte])!r} 1\n" for byte in range(256))
TOKENS = ["ab", "abc", "abcdef", "  ", " \n ", "\n\n", " a", " the", "é", "中国", "aaaa", "a" * 40, "\t\t", "<|end"]
TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from([*TOKENS, "a", "b", "中", " ", "\n", "<|endoftext|>"]), max_size=20).map("".join),
)


def small_vocabulary() -> bytes:
    some = [(token, len(token.encode())) for token in TOKENS] + [("中".encode()[:2], 2)]
    return (BYTES + "".join(f"{id} {token!r} {size}\n" for id, (token, size) in enumerate(some, 300))).encode()


@cache
def small() -> Tokenizer:
    return read_rwkv(small_vocabulary(), HERE)


class ReferenceTokenizer:
    """As RWKV's own: tokens by their first two bytes, the longest tried first."""

    def __init__(self, content: bytes) -> None:
        self.ids: dict[bytes, int] = {}
        self.starting: dict[bytes, list[bytes]] = {}
        for line in content.decode().splitlines():
            token = ast.literal_eval(line[line.index(" ") + 1 : line.rindex(" ")])
            token = token.encode() if isinstance(token, str) else token
            self.ids[token] = int(line[: line.index(" ")])
            self.starting.setdefault(token[:2], []).append(token)
        for tokens in self.starting.values():
            tokens.sort(key=len, reverse=True)

    def encode(self, text: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            longer = (token for token in self.starting.get(text[at : at + 2], ()) if text.startswith(token, at))
            token = next(longer, text[at : at + 1])
            ids.append(self.ids[token])
            at += len(token)
        return ids


@given(text=TEXTS)
def test_the_longest_token_is_taken(text: str) -> None:
    expected = ReferenceTokenizer(small_vocabulary()).encode(text.encode())
    tokenizer = small()
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode_batch([text, text]) == [expected, expected]
    assert tokenizer.encode_texts(pa.array([text]))[0].tolist() == expected
    assert tokenizer.decode(expected) == text


@given(texts=st.lists(TEXTS, max_size=3), end=st.sampled_from([None, 7]))
def test_the_fast_version_is_the_reference(texts: list[str], end: int | None) -> None:
    tokens = {bytes([byte]): byte for byte in range(256)} | {token.encode(): i for i, token in enumerate(TOKENS, 300)}
    fast = LongestMatch(tokens, ["<|endoftext|>"]).encode(pa.array(texts, pa.string()), end)
    with using("reference"):
        reference = LongestMatch(tokens, ["<|endoftext|>"]).encode(pa.array(texts, pa.string()), end)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(fast, reference, strict=True))
    assert [array.dtype for array in fast] == [array.dtype for array in reference]


@given(text=TEXTS)
def test_other_programs_read_the_same_from_tokenizer_json(text: str) -> None:
    backend = tokenizers.Tokenizer.from_str(small().backend.to_str())
    parts = text.split("<|endoftext|>")
    expected = [[0, *small().encode(part)] for part in parts]
    assert backend.encode(text).ids == [id for part in expected for id in part][1:]
    assert small().encode(text, parse_special=True) == backend.encode(text).ids


@pytest.mark.shared_data
def test_the_real_vocabulary_on_every_corpus(
    shared_data: Callable[..., Path], corpora: Mapping[str, str], tmp_path: Path
) -> None:
    path = shared_data("tokenizers", "rwkv_vocab_v20230424.txt.gz")
    content = gzip.decompress(path.read_bytes())
    tokenizer, reference = Tokenizer.load(path), ReferenceTokenizer(content)
    ids, lengths = tokenizer.encode_texts(pa.array(corpora.values()))
    expected = [reference.encode(text.encode()) for text in corpora.values()]
    assert lengths.tolist() == [len(some) for some in expected]
    assert ids.tolist() == [id for some in expected for id in some]
    write_rwkv(tokenizer, tmp_path / "rwkv.txt")
    assert (tmp_path / "rwkv.txt").read_bytes() == content.replace(b"\r\n", b"\n")


@pytest.mark.parametrize("text", ["a" * 300_000, " " * 300_000, "é" * 100_000, "\n" * 300_000])
def test_long_runs_take_no_square(text: str) -> None:
    for encode in (small().encode, lambda text: small().encode_batch([text])[0]):
        assert small().decode(encode(text)) == text


def test_long_conversations_take_no_square() -> None:
    """The library would take minutes for the second piece."""
    ids, mask = small().sealed.encode_pieces([("<|endoftext|>", False), ("é" * 100_000, True), (" a", False)], "\x1a")
    assert ids == [0, *small().encode("é" * 100_000 + " a")]
    assert mask == [False, *[True] * 100_000, False]
    assert small().encode("<|endoftext|>" + "é" * 100_000, parse_special=True)[0] == 0


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    small().save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode("abcd the 中") == small().encode("abcd the 中")
    assert isinstance(loaded.sealed.direct, LongestMatch)
    assert loaded.eos_id == 0


def test_other_tokenizers_are_refused(any_tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="RWKV has no such tokenizer: it"):
        write_rwkv(any_tokenizer, tmp_path / "x.txt")


@pytest.mark.parametrize(
    "line",
    ["300", "300 'ab' 3", "300 ab 2", "300 'ab", "300 5 1", "x 'ab' 2", "300 '' 0", "0 'ab' 2", "300 'a' 1", "9 'ab' 2",
     f"{1 << 40} 'ab' 2", "300 " + "(" * 9000 + " 2", "300 '" + "a" * 20_000 + "' 20000", "300 __import__('os') 2"],
)  # fmt: skip
def test_broken_lines(line: str) -> None:
    with pytest.raises(DataError):
        read_rwkv((BYTES + line).encode(), HERE)
    with pytest.raises(DataError, match="lacks"):
        read_rwkv(b"1 'a' 1\n", HERE)
