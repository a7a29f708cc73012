"""What a file is, its content tells."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from tallow.errors import DataError, UsageError
from tallow.kernels.text.word_counts import GPT2, WordCounter
from tallow.tokenizer.formats import TokenizerFormat, convert_tokenizer
from tallow.tokenizer.formats.tiktoken import from_ranks
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.tokenizer.trainers import TRAINERS, Algorithm
from tallow.tokenizer.trainers.settings import TrainerSettings


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257, b" the": 258}
    return from_ranks(ranks, GPT2, {"<|endoftext|>": 259}, Path("here"))


def test_gpt2_s_two_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    result = convert_tokenizer(tokenizer, "gpt2", tmp_path / "gpt2")
    assert (result["format"], result["vocab_size"]) == ("gpt2", 260)
    for place in (tmp_path / "gpt2", tmp_path / "gpt2" / "merges.txt"):
        loaded = Tokenizer.load(place)
        assert loaded.encode("the the<|endoftext|>") == tokenizer.encode("the the<|endoftext|>")
        assert loaded.special_tokens == tokenizer.special_tokens
    (tmp_path / "gpt2" / "vocab.json").unlink()
    with pytest.raises(DataError, match="vocab"):
        Tokenizer.load(tmp_path / "gpt2" / "merges.txt")


@pytest.mark.parametrize("packed", [False, True])
def test_files_packed_or_not(tokenizer: Tokenizer, tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "vocabulary"
    convert_tokenizer(tokenizer, "tiktoken", tmp_path / "v.json")
    content = (tmp_path / "v.json").read_bytes()
    path.write_bytes(gzip.compress(content) if packed else content)
    assert Tokenizer.load(path).encode("the") == tokenizer.encode("the")


def test_tokenizer_json_as_a_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path / "tokenizer.json").encode("the the") == tokenizer.encode("the the")


TRUNCATED = gzip.compress(b"YQ== 0\n", mtime=0)[:-9]


@pytest.mark.parametrize("content", [b"", b"what is this", b"\xff\xfe", b"{}", TRUNCATED])
def test_unknown_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError):
        Tokenizer.load(tmp_path / "file")


@pytest.mark.parametrize("vocabulary", ["[]", "{", '{"a": "b"}', '{"a": 0}'])
def test_broken_merges(vocabulary: str, tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "vocab.json").write_text(vocabulary)
    with pytest.raises(DataError):
        Tokenizer.load(tmp_path)


def test_merges_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b</w>\n")
    (tmp_path / "vocab.json").write_text('{"a": 0, "b</w>": 1, "ab</w>": 2}')
    with pytest.raises(DataError, match="ends of words"):
        Tokenizer.load(tmp_path)


def test_what_is_there_is_not_written_over_by_another_kind(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        convert_tokenizer(tokenizer, "gpt2", tmp_path / "file")
    with pytest.raises(UsageError, match="is a directory"):
        convert_tokenizer(tokenizer, "tiktoken", tmp_path)


def test_gpt2_s_files_hold_no_other_rule(tokenizer: Tokenizer, tmp_path: Path) -> None:
    state = json.loads(tokenizer.backend.to_str())
    state["normalizer"] = {"type": "Lowercase"}
    other = Tokenizer.from_json(json.dumps(state).encode(), tmp_path)
    with pytest.raises(UsageError, match=r"it changes text first \(Lowercase\)"):
        convert_tokenizer(other, "gpt2", tmp_path / "x")


WORDS = "it cuts text into words"
ESCAPED = "it escapes a ▁"
CHARACTERS = "its tokens are made of characters, rare ones said in bytes, not of bytes"
DIFFERENCES: dict[Algorithm, dict[TokenizerFormat, list[str]]] = {
    "bpe": {
        "sentencepiece": ["made of bytes, not of characters", WORDS],
        "gpt2": ["it cuts text by a rule with at most 2 digits in a word, not by GPT-2's, with numbers of any length"],
        "tiktoken": [],
        "rwkv": ["it is BPE (merges), not WordPiece", WORDS],
    },
    "byte_fallback_bpe": {
        "sentencepiece": [WORDS, ESCAPED],
        "gpt2": [CHARACTERS, ESCAPED, WORDS],
        "tiktoken": [CHARACTERS, ESCAPED, WORDS],
        "rwkv": ["it is BPE (merges), not WordPiece", CHARACTERS, ESCAPED, WORDS],
    },
    "wordpiece": {
        "sentencepiece": ["it is WordPiece", "made of bytes, not of characters", WORDS],
        "gpt2": ["it is WordPiece", WORDS],
        "tiktoken": ["it is WordPiece", WORDS],
        "rwkv": [WORDS],
    },
    "unigram": {
        "sentencepiece": [WORDS, ESCAPED],
        "gpt2": ["it is Unigram", CHARACTERS, ESCAPED, WORDS],
        "tiktoken": ["it is Unigram", CHARACTERS, ESCAPED, WORDS],
        "rwkv": ["it is Unigram", CHARACTERS, ESCAPED, WORDS],
    },
}
"""Of each kind that tallow trains, why which format cannot hold it."""


@pytest.mark.parametrize("algorithm", DIFFERENCES)
def test_what_is_in_the_way_is_named(algorithm: Algorithm, tmp_path: Path) -> None:
    trainer = TRAINERS[algorithm]
    counter = WordCounter(2)
    counter.add(pa.array(["the quick brown fox ran in 1999 over the lazy dog, again and again " * 9]))
    special = tuple(token for token in ("<|endoftext|>", trainer.unknown) if token is not None)
    backend = trainer.train(counter.counts(), TrainerSettings(special, 300, 2, 2, 0.999))
    backend.add_special_tokens(list(special))
    tokenizer = Tokenizer.from_backend(backend, eos_token="<|endoftext|>", unk_token=trainer.unknown)
    for to, differences in DIFFERENCES[algorithm].items():
        out = tmp_path / f"{to}.json"
        if not differences:
            convert_tokenizer(tokenizer, to, out)
            assert Tokenizer.load(out).encode("the quick 1999") == tokenizer.encode("the quick 1999")
            continue
        with pytest.raises(UsageError) as refused:
            convert_tokenizer(tokenizer, to, out)
        said = refused.value.message.partition(": ")[2].split("; ")
        missing = [each for each in differences if not any(each in one for one in said)]
        assert not missing, said
        assert not out.exists()
