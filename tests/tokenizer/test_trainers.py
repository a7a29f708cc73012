"""Each algorithm: any text comes back as it was, other programs read the file, and what is learned is the best."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, trainers
from transformers import AutoTokenizer

from tallow.data.builtin import builtin
from tallow.kernels.dispatch import using
from tallow.kernels.text.word_counts import WordCounter, WordCounts
from tallow.tokenizer.tokenizer import StreamDecoder, Tokenizer
from tallow.tokenizer.trainers import TRAINERS, Algorithm
from tallow.tokenizer.trainers.characters import cover
from tallow.tokenizer.trainers.settings import TrainerSettings
from tallow.tokenizer.trainers.wordpiece import LONGEST_WORD

from .conftest import TEXT

SPECIAL = ("<|end|>", "ing", "<unk>")  # one of which is a part of words
STRANGE = (
    "",
    "▁ ▁a▁▁b ▁",
    "\x10\x100\x101▁0 ▁1\x10▁\x10",
    "<0x41> <unk> <|end|> ##ing [UNK] sing",
    " a  b\r\n\n\t \u3000",
    "नमस्ते 🙂🙃 é e\u0301 \U0010ffff \x00",
    "x" * 200 + "🙂" * 50,
)
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


def count(texts: Sequence[str]) -> WordCounts:
    counter = WordCounter(1)
    for text in texts:
        counter.add(pa.array([text]))
    return counter.counts()


def learn(algorithm: Algorithm, words: WordCounts, vocab_size: int, **other: Any) -> tokenizers.Tokenizer:
    values = {"special_tokens": SPECIAL, "min_frequency": None, "max_digits": 1, "character_coverage": 1.0, **other}
    backend = TRAINERS[algorithm].train(words, TrainerSettings(vocab_size=vocab_size, **values))
    backend.add_special_tokens(list(values["special_tokens"]))
    return backend


@pytest.fixture(scope="module")
def diary() -> list[str]:
    with lzma.open(builtin("tallow:pepys"), "rt", encoding="utf-8") as file:
        return [json.loads(file.readline())["text"] for _ in range(250)]


@pytest.fixture(scope="module")
def tokenizer_of() -> Callable[[Algorithm], Tokenizer]:
    """Of 460 tokens, with some of the text's characters."""
    words = count([TEXT])
    made = {
        algorithm: Tokenizer.from_backend(learn(algorithm, words, 460, character_coverage=0.97), eos_token="<|end|>")
        for algorithm in ALGORITHMS
    }
    return made.__getitem__


@pytest.mark.parametrize("algorithm", ALGORITHMS)
class TestEach:
    @settings(max_examples=60, deadline=None)
    @given(text=st.one_of(st.text(), st.lists(st.sampled_from([*STRANGE, "the ", " a", "▁", "\x10"])).map("".join)))
    def test_any_text_comes_back(
        self, tokenizer_of: Callable[[Algorithm], Tokenizer], algorithm: Algorithm, text: str
    ) -> None:
        tokenizer = tokenizer_of(algorithm)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not tokenizer.special_ids & set(ids)
        stream = StreamDecoder(tokenizer)
        assert "".join(map(stream.push, ids)) + stream.flush() == text

    def test_the_file_is_read_by_others(
        self, tokenizer_of: Callable[[Algorithm], Tokenizer], algorithm: Algorithm, tmp_path: Path
    ) -> None:
        tokenizer = tokenizer_of(algorithm)
        tokenizer.save(tmp_path)
        again, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for text in (TEXT, *STRANGE):
            assert again.encode(text) == tokenizer.encode(text)
            ids = tokenizer.encode(text, parse_special=True)
            assert theirs.encode(text) == ids
            assert library.encode(text).ids == ids
            assert theirs.decode(ids) == library.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.encode("<|end|>", parse_special=True) == [0]
        assert again.fingerprint == tokenizer.fingerprint

    def test_order_and_parts_of_the_text_change_nothing(self, diary: list[str], algorithm: Algorithm) -> None:
        lines = diary[:60]
        shuffled = list(lines)
        random.Random(3).shuffle(shuffled)
        assert learn(algorithm, count(lines), 700).to_str() == learn(algorithm, count(shuffled), 700).to_str()

    def test_without_the_extension_too(self, algorithm: Algorithm) -> None:
        fast = learn(algorithm, count([TEXT]), 340)
        with using("reference"):
            slow = learn(algorithm, count([TEXT]), 340)
        assert fast.to_str() == slow.to_str()

    def test_counts_beyond_32_bits(self, algorithm: Algorithm) -> None:
        # In 32 bits "ab" would count 5, and as signed ones "ef" less than none. WordPiece wants the rarest of them.
        words = ["ab", "cd", "ef"]
        counts = np.array([2**32 + 5, 2**20, 2**31 + 9])
        given = WordCounts("".join(words).encode(), np.array([2, 4, 6]), counts)
        base = 256 + len(SPECIAL) + (0 if algorithm in ("bpe", "wordpiece") else 6)
        backend = learn(algorithm, given, base + 1, min_frequency=2**31)
        found = {word for word in words if word in backend.get_vocab()}
        assert found == ({"ef"} if algorithm == "wordpiece" else {"ab"})

    def test_little_text(self, algorithm: Algorithm) -> None:
        for text in ("a", "▁", "🙂\x10"):
            backend = learn(algorithm, count([text]), 259 + 1)
            assert backend.decode(backend.encode(f"a {text} b").ids) == f"a {text} b"
            assert backend.get_vocab_size() <= 260


class TestCharacters:
    def test_rare_ones_are_said_in_bytes(self) -> None:
        words = count(["aaaa bbb c"] * 100 + ["z中"])
        covered = cover(words, 0.998, 100)
        assert covered.alphabet == ["▁", "a", "b", "c"]
        assert covered.symbols.dtype == np.int32
        for algorithm in ("byte_fallback_bpe", "unigram"):
            backend = learn(algorithm, words, 300, character_coverage=0.998)
            assert backend.encode("z中").tokens == ["<0x7A>", "<0xE4>", "<0xB8>", "<0xAD>"]
            assert "z" in learn(algorithm, words, 300, character_coverage=1.0).get_vocab()

    def test_words_are_cut_where_these_are(self) -> None:
        words = count(["ab中ab中", "中", "ab", "b中"])
        covered = cover(words, 0.75, 100)  # 4 b, 4 中, 3 a: the first of them cover eight of eleven
        assert covered.alphabet == ["a", "b", "中"]
        covered = cover(words, 0.5, 100)
        assert covered.alphabet == ["b", "中"]
        parts = np.split(covered.symbols, covered.ends[:-1])
        found = ["".join(covered.alphabet[symbol] for symbol in part) for part in parts]
        assert sorted(zip(found, covered.counts.tolist(), strict=True)) == [
            ("b", 1), ("b中", 1), ("b中", 1), ("b中", 1), ("中", 1)
        ]  # fmt: skip

    def test_no_more_than_there_is_place_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cover(count(["aaabbc"]), 1.0, 2).alphabet == ["a", "b"]
        assert "only 2 of the 3 characters" in capsys.readouterr().err


class TestWordPiece:
    def test_it_differs_from_bpe(self) -> None:
        # "e" is everywhere, so that "qu" is together more often than could be expected, unlike the more frequent "ee"
        words = count(["ee", "es", "et", "te", "se", "en", "ne"] * 20 + ["qu"] * 15 + ["ee"] * 5)
        found = {
            algorithm: set(learn(algorithm, words, 260, min_frequency=10).get_vocab()) & {"ee", "qu"}
            for algorithm in ("bpe", "wordpiece")
        }
        assert found == {"bpe": {"ee"}, "wordpiece": {"qu"}}

    def test_the_highest_minimum_that_fills_the_vocabulary(self, diary: list[str]) -> None:
        words, text = count(diary), "".join(diary)
        tokens = {
            minimum: len(learn("wordpiece", words, 1000, min_frequency=minimum).encode(text)) for minimum in (2, None)
        }
        assert tokens[None] < 0.7 * tokens[2]
        assert learn("wordpiece", words, 1000, special_tokens=()).get_vocab_size() == 1000

    def test_greedy_longest_match(self) -> None:
        backend = learn("wordpiece", count(["abab"] * 9 + ["abc"] * 9), 264, min_frequency=1)
        assert {"ab", "abab", "abc"} <= backend.get_vocab().keys()
        assert backend.encode("ababab").tokens == ["abab", "ab"]

    def test_words_are_cut_when_they_are_long(self) -> None:
        backend = learn("wordpiece", count(["a" * 1000]), 400, min_frequency=1)
        assert max(map(len, backend.get_vocab())) == LONGEST_WORD
        assert [len(token) for token in backend.encode("a" * 150).tokens] == [64, 64, 16, 4, 2]


class TestUnigram:
    def test_pieces_that_the_text_was_made_of(self) -> None:
        draw = random.Random(5)
        pieces = ["abcd", "be", "cfa", "dd"]
        words = count(["".join(draw.choices(pieces, k=draw.randint(1, 4))) + " " for _ in range(400)])
        backend = learn("unigram", words, 256 + len(SPECIAL) + 7 + len(pieces))  # the letters and the space
        learned = [piece for piece in backend.get_vocab() if len(piece) > 1 and piece.isalpha() and piece != "ing"]
        assert sorted(learned) == sorted(pieces)

    def test_fewer_bits_than_the_library_with_as_many_pieces(self, diary: list[str]) -> None:
        ours = learn("unigram", count(diary), 1259, special_tokens=("<unk>",))
        theirs = tokenizers.Tokenizer(models.Unigram())
        theirs.pre_tokenizer = ours.pre_tokenizer
        trainer = trainers.UnigramTrainer(
            vocab_size=1003, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
        theirs.train_from_iterator(diary, trainer)
        bits = [self.bits(backend, diary) for backend in (ours, theirs)]
        assert ours.get_vocab_size() - 256 == theirs.get_vocab_size() == 1003
        assert bits[0] < 0.98 * bits[1]

    @staticmethod
    def bits(backend: tokenizers.Tokenizer, texts: list[str]) -> float:
        scores = np.array([score for _, score in json.loads(backend.to_str())["model"]["vocab"]])
        ids = np.concatenate([encoding.ids for encoding in backend.encode_batch(texts)])
        assert backend.token_to_id("<unk>") not in ids.tolist()
        return float(-scores[ids].sum() / np.log(2))
