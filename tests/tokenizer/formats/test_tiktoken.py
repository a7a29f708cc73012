"""tiktoken's vocabularies give tiktoken's ids."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.errors import DataError, UsageError
from tallow.kernels.text.bpe import O200K, cl100k_pattern
from tallow.kernels.text.word_counts import GPT2
from tallow.tokenizer.formats.pairs import last_pairs
from tallow.tokenizer.formats.tiktoken import (
    CL100K_ATOMIC,
    GPT2_ATOMIC,
    from_ranks,
    read_tiktoken,
    write_tiktoken,
)
from tallow.tokenizer.tokenizer import Tokenizer

HERE = Path("vocabulary")
TOKENS = [b"th", b"the", b" the", b"in", b"ing", b"  ", b"    ", b"\n\n", b"ab", b"abab", b"aa", b"aaaa", b"12", b"'s"]
TOKENS += ["é".encode(), "中".encode()[:2], "中".encode(), " я".encode(), b" y", b"he", b"er"]
PIECES = [
    "the",
    " the",
    "ing",
    "a",
    "b",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "1",
    "23",
    "'s",
    "'ſ",
    "'RE",
    "é",
    "中",
    "я",
    "Я",
]
PIECES += ["A", "/", ".", "!?", "\u0301", "ǅ", "ʰ", "🙂", "\u3000", "\u0085", "<|endoftext|>", "٣", "½"]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
PATTERNS = {
    "gpt2": GPT2,
    "gpt2 now": GPT2_ATOMIC,
    "cl100k": cl100k_pattern(3),
    "cl100k now": CL100K_ATOMIC,
    "o200k": O200K,
}


def small_ranks() -> dict[bytes, int]:
    tokens = [*(bytes([byte]) for byte in range(256)), *TOKENS]
    return {token: rank for rank, token in enumerate(tokens)}


def theirs(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int]) -> Any:
    module = pytest.importorskip("tiktoken")
    return module.Encoding("x", pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special))


@cache
def pair(name: str) -> tuple[Tokenizer, Any]:
    special = {"<|endoftext|>": 300}
    pattern = PATTERNS[name]
    return from_ranks(small_ranks(), pattern, special, HERE), theirs(small_ranks(), pattern, special)


@pytest.mark.parametrize("name", PATTERNS)
@given(text=TEXTS)
def test_small_vocabularies(name: str, text: str) -> None:
    tokenizer, reference = pair(name)
    expected = reference.encode_ordinary(text)
    assert tokenizer.encode(text) == expected
    assert tokenizer.encode_texts(pa.array([text]))[0].tolist() == expected
    assert tokenizer.encode(text, parse_special=True) == reference.encode(text, allowed_special="all")
    assert tokenizer.decode(expected) == text


@given(text=st.text(alphabet="abc ", max_size=30))
def test_tokens_that_merges_do_not_reach(text: str) -> None:
    """`abc` comes after `bc`, but no token is `ab`, and `ca` goes first: only as a whole piece, or of `a` and `bc`."""
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"bc": 256, b"ca": 257, b"cab": 258, b"abca": 259}
    assert last_pairs(ranks) is None
    tokenizer = from_ranks(ranks, GPT2, {}, HERE)
    assert tokenizer.encode(text) == theirs(ranks, GPT2, {}).encode_ordinary(text)
    assert tokenizer.encode_texts(pa.array([text]))[0].tolist() == tokenizer.encode(text)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
def test_real_vocabularies_on_every_corpus(
    name: str, shared_data: Callable[..., Path], corpora: Mapping[str, str]
) -> None:
    path = shared_data("tokenizers", f"tiktoken_{name}.json.gz")
    tokenizer = Tokenizer.load(path)
    state = json.loads(gzip.decompress(path.read_bytes()))
    lines = [line.split(" ") for line in state["bpe_ranks"].split("\n") if line]
    ranks = {base64.b64decode(t): int(line[1]) + i for line in lines for i, t in enumerate(line[2:])}
    reference = theirs(ranks, state["pat_str"], state["special_tokens"])
    ids, lengths = tokenizer.encode_texts(pa.array(corpora.values()))
    expected = reference.encode_ordinary_batch(list(corpora.values()), num_threads=1)
    assert lengths.tolist() == [len(some) for some in expected]
    assert ids.tolist() == [id for some in expected for id in some]
    assert tokenizer.eos_id == reference.eot_token


@pytest.mark.shared_data
def test_gpt2_s_own_files_are_the_same_vocabulary(
    shared_data: Callable[..., Path], corpora: Mapping[str, str], tmp_path: Path
) -> None:
    merges = Tokenizer.load(shared_data("tokenizers", "gpt2_vocab.bpe.gz"))
    write_tiktoken(merges, tmp_path / "gpt2.json")
    original = json.loads(gzip.decompress(shared_data("tokenizers", "tiktoken_gpt2.json.gz").read_bytes()))
    assert json.loads((tmp_path / "gpt2.json").read_text())["bpe_ranks"] == original["bpe_ranks"]
    write_tiktoken(merges, tmp_path / "gpt2.tiktoken")
    again = Tokenizer.load(tmp_path / "gpt2.tiktoken")  # known by the number of its tokens
    text = "".join(corpora.values())[::7]
    assert again.encode(text) == merges.encode(text)
    assert again.special_tokens == merges.special_tokens


def test_json_is_read_as_it_is_written(tmp_path: Path) -> None:
    ranks = {token: rank if rank < 260 else rank + 5 for token, rank in small_ranks().items()}
    written = from_ranks(ranks, O200K, {"<|endoftext|>": 300, "<|b|>": 261}, HERE)
    write_tiktoken(written, tmp_path / "v.json")
    assert Tokenizer.load(tmp_path / "v.json").fingerprint == written.fingerprint


def test_other_tokenizers_are_refused(any_tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tiktoken has no such tokenizer: it"):
        write_tiktoken(any_tokenizer, tmp_path / "x.tiktoken")
    assert not list(tmp_path.iterdir())


RUN = "! 0 " + " ".join(base64.b64encode(bytes([byte])).decode() for byte in range(256))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "YQ== 0\nYg==\n",
        "YQ== 0\n!!!! 1\n",
        "YQ== 0\nYg== -1\n",
        "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256)),
        "{",
        "[" * 100_000,
        '{"bpe_ranks": 5}',
        '{"pat_str": "a", "special_tokens": {}, "bpe_ranks": "! x YQ=="}',
        '{"pat_str": "a", "special_tokens": {}, "bpe_ranks": "!"}',
        '{"pat_str": "a", "special_tokens": {}, "bpe_ranks": "! 0 YQ=="}',
        json.dumps({"pat_str": "a", "special_tokens": {"x": 5}, "bpe_ranks": RUN}),
        json.dumps({"pat_str": "a", "special_tokens": {"x": 1 << 40}, "bpe_ranks": RUN}),
        json.dumps({"pat_str": "a", "special_tokens": [], "bpe_ranks": RUN}),
        json.dumps({"pat_str": "a{1,3}+", "special_tokens": {}, "bpe_ranks": RUN}),
        json.dumps({"pat_str": r"\s+$", "special_tokens": {}, "bpe_ranks": RUN}),
        json.dumps({"pat_str": "(", "special_tokens": {}, "bpe_ranks": RUN}),
    ],
)
def test_broken_files(content: str) -> None:
    with pytest.raises(DataError):
        read_tiktoken(content.encode(), HERE)
