from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from tallow.errors import DataError, UsageError
from tallow.kernels.text.word_counts import split_pattern
from tallow.recipe import parse_section
from tallow.run import StageRun
from tallow.tokenizer.chat import CHATML, encode_chat
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.tokenizer.train import SPECIAL_TOKENS, TokenizerConfig, train_tokenizer
from tallow.tokenizer.trainers import TRAINERS, Algorithm

WORDS = (
    "the quick brown fox jumps over a lazy dog and 1234567 other words, isn't it? Съешь ещё этих мягких булок. 天地玄黄"
)
MAIN = """
import sys
from pathlib import Path
from tallow.run import StageRun
from tallow.tokenizer.train import TokenizerConfig, train_tokenizer
from tallow.tokenizer.trainers import TRAINERS
for algorithm in TRAINERS:
    config = TokenizerConfig(documents=Path(sys.argv[1]), vocab_size=600, algorithm=algorithm)
    train_tokenizer(config, StageRun(Path(sys.argv[2]) / algorithm))
"""


def write_documents(directory: Path, texts: list[str | None], split: str = "train", part: int = 0) -> Path:
    (directory / split).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), directory / split / f"part-{part:05}.parquet")
    return directory


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    words = WORDS.split()
    texts = [" ".join(words[place:] + words[:place]) * 5 for place in range(len(words))]
    write_documents(tmp_path / "documents", [*texts[:8], None, ""])
    write_documents(tmp_path / "documents", [*texts[8:]], part=1)
    return write_documents(tmp_path / "documents", ["the lazy dog 12345"], "validation")


def train(tmp_path: Path, **settings: Any) -> tuple[Tokenizer, dict[str, Any]]:
    result = train_tokenizer(TokenizerConfig(**settings), StageRun(tmp_path / "run"))
    return Tokenizer.load(tmp_path / "run" / "tokenizer"), result


class TestTraining:
    def test_product(self, documents: Path, tmp_path: Path) -> None:
        tokenizer, result = train(tmp_path, documents=documents, vocab_size=380)
        assert result["vocab_size"] == tokenizer.vocab_size == 380
        assert [tokenizer.backend.id_to_token(id) for id in range(3)] == list(SPECIAL_TOKENS)
        assert tokenizer.special_ids == {0, 1, 2}
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 0, 0)
        for text in (WORDS, "\x00\ud7ff 🙂 \r\n\t नमस्ते", ""):
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert tokenizer.encode(text, add_special_tokens=True) == tokenizer.encode(text)
        assert tokenizer.chat_template is not None
        assert tokenizer.chat_template.source == CHATML
        json.dumps(result)

    def test_bytes_per_token_is_that_of_held_out_text(self, documents: Path, tmp_path: Path) -> None:
        tokenizer, result = train(tmp_path, documents=documents, vocab_size=380)
        text = "the lazy dog 12345"
        assert result["measured_on"] == "validation"
        assert result["bytes_per_token"] == len(text) / len(tokenizer.encode(text))
        alone = write_documents(tmp_path / "alone", [WORDS * 3])
        _, result = train(tmp_path, documents=alone, vocab_size=300)
        assert result["measured_on"] == "train"
        assert result["bytes_per_token"] > 1

    def test_transformers_reads_it(self, documents: Path, tmp_path: Path) -> None:
        tokenizer, _ = train(tmp_path, documents=documents, vocab_size=380)
        theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
        assert theirs.encode(WORDS) == tokenizer.encode(WORDS)
        assert theirs.decode(theirs.encode(WORDS)) == WORDS
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "the dog"}]
        expected = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        assert encode_chat(tokenizer, messages) == (
            expected["input_ids"],
            [bool(flag) for flag in expected["assistant_masks"]],
        )
        assert (theirs.eos_token, theirs.pad_token, theirs.bos_token) == ("<|endoftext|>", "<|endoftext|>", None)

    def test_a_mask_token_if_wished(self, documents: Path, tmp_path: Path) -> None:
        tokenizer, _ = train(tmp_path, documents=documents, vocab_size=380, mask_token="<|mask|>")
        assert tokenizer.mask_id is not None
        assert tokenizer.backend.id_to_token(tokenizer.mask_id) == "<|mask|>"
        assert tokenizer.mask_id in tokenizer.special_ids
        assert AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer").mask_token_id == tokenizer.mask_id
        plain, _ = train(tmp_path / "plain", documents=documents, vocab_size=380)
        assert plain.mask_id is None
        adopted, _ = train(
            tmp_path / "adopted", pretrained=str(tmp_path / "plain" / "run" / "tokenizer"), mask_token="<|mask|>"
        )
        assert (adopted.vocab_size, adopted.mask_id, adopted.eos_id) == (381, 380, plain.eos_id)

    def test_the_same_file_in_every_process(self, documents: Path, tmp_path: Path) -> None:
        files = []
        for threads, seed in (("1", "1"), ("4", "2")):
            run = tmp_path / f"run{seed}"
            environment = os.environ | {
                "RAYON_NUM_THREADS": threads,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            subprocess.run([sys.executable, "-c", MAIN, str(documents), str(run)], check=True, env=environment)
            files.append([(run / name / "tokenizer" / "tokenizer.json").read_bytes() for name in TRAINERS])
        assert files[0] == files[1]
        assert len(set(files[0])) == len(TRAINERS)

    @pytest.mark.parametrize("algorithm", TRAINERS)
    def test_every_algorithm(self, algorithm: Algorithm, documents: Path, tmp_path: Path) -> None:
        tokenizer, result = train(tmp_path, documents=documents, vocab_size=340, algorithm=algorithm)
        assert result["vocab_size"] == 340
        assert result["bytes_per_token"] > 1
        assert [tokenizer.backend.id_to_token(id) for id in range(3)] == list(SPECIAL_TOKENS)
        assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 0, 0)
        assert (tokenizer.unk_id == 3) == (algorithm == "unigram")
        assert tokenizer.decode(tokenizer.encode(WORDS)) == WORDS
        theirs = AutoTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
        messages = [{"role": "user", "content": "a▁ b"}, {"role": "assistant", "content": "the  dog\x10▁1"}]
        expected = theirs.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        ids, learned = encode_chat(tokenizer, messages)
        assert (ids, learned) == (expected["input_ids"], [bool(flag) for flag in expected["assistant_masks"]])
        assert tokenizer.decode([id for id, mine in zip(ids, learned, strict=True) if mine]) == "the  dog\x10▁1"

    def test_little_text_gives_a_smaller_vocabulary_and_says_so(
        self, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tokenizer, result = train(tmp_path, documents=documents, vocab_size=50_000)
        assert 300 < result["vocab_size"] < 2000
        assert tokenizer.vocab_size == result["vocab_size"]
        out, err = capsys.readouterr()
        assert f"only {result['vocab_size']:,} tokens" in err
        assert out == ""

    def test_further_special_tokens(self, documents: Path, tmp_path: Path) -> None:
        tokenizer, _ = train(tmp_path, documents=documents, vocab_size=300, special_tokens=("<|tool|>",))
        assert tokenizer.backend.token_to_id("<|tool|>") == 3
        assert 3 in tokenizer.special_ids

    @pytest.mark.parametrize("digits", [1, 2, 3])
    def test_runs_of_digits(self, digits: int, documents: Path, tmp_path: Path) -> None:
        tokenizer, _ = train(tmp_path, documents=documents, vocab_size=2000, max_digits=digits)
        assert len(tokenizer.encode("1234567")) == -(-7 // digits)

    def test_text_beyond_max_bytes_is_sampled_evenly(self, tmp_path: Path) -> None:
        texts: list[str | None] = [f"{chr(97 + index // 100) * 5} " * 10 for index in range(1000)]
        documents = write_documents(tmp_path / "documents", texts)
        tokenizer, result = train(tmp_path, documents=documents, vocab_size=1000, max_bytes=6000)
        assert 6000 <= result["training_bytes"] <= 6000 + 60
        for letter in "abcdefghij":  # each tenth of the documents has left its trace
            assert len(tokenizer.encode(letter * 5)) == 1

    def test_a_long_document_counts_in_part(self, tmp_path: Path) -> None:
        documents = write_documents(tmp_path / "documents", ["word " * 100_000])
        _, result = train(tmp_path, documents=documents, vocab_size=300, max_bytes=1000)
        assert 1000 <= result["training_bytes"] < 100_000

    def test_training_again_replaces_the_product(self, documents: Path, tmp_path: Path) -> None:
        train(tmp_path, documents=documents, vocab_size=380)
        tokenizer, _ = train(tmp_path, documents=documents, vocab_size=300, chat_template="none")
        assert tokenizer.vocab_size == 300
        assert tokenizer.chat_template is None
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["tokenizer"]


class TestAdopting:
    def test_an_existing_tokenizer(self, byte_level: Tokenizer, documents: Path, tmp_path: Path) -> None:
        byte_level.save(tmp_path / "existing")
        tokenizer, result = train(tmp_path, pretrained=str(tmp_path / "existing"), documents=documents)
        assert tokenizer.fingerprint == byte_level.fingerprint
        assert result["vocab_size"] == byte_level.vocab_size
        assert result["training_bytes"] == 0
        assert result["bytes_per_token"] > 0
        _, result = train(tmp_path, pretrained=str(tmp_path / "existing"))
        assert "bytes_per_token" not in result

    def test_its_template_can_be_replaced(self, byte_level: Tokenizer, tmp_path: Path) -> None:
        byte_level.save(tmp_path / "existing")
        (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
        tokenizer, _ = train(tmp_path, pretrained=str(tmp_path / "existing"), chat_template=str(tmp_path / "own.jinja"))
        assert tokenizer.chat_template is not None
        assert tokenizer.chat_template.render([{"role": "user", "content": "Hi"}]) == "Hi"


class TestFailures:
    def check(self, tmp_path: Path, kind: type[Exception], match: str, **settings: Any) -> None:
        with pytest.raises(kind, match=match):
            train(tmp_path, **settings)
        assert not (tmp_path / "run" / "tokenizer").exists()

    def test_no_text_at_all(self, tmp_path: Path) -> None:
        self.check(tmp_path, UsageError, "has no text")

    def test_missing_documents(self, tmp_path: Path) -> None:
        self.check(tmp_path, DataError, "holds no documents", documents=tmp_path / "nowhere")

    def test_empty_documents(self, tmp_path: Path) -> None:
        documents = write_documents(tmp_path / "documents", ["", None])
        self.check(tmp_path, DataError, "hold no text", documents=documents)

    def test_documents_without_text(self, tmp_path: Path) -> None:
        (tmp_path / "documents" / "train").mkdir(parents=True)
        pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "documents" / "train" / "part-00000.parquet")
        self.check(tmp_path, DataError, "no column of strings", documents=tmp_path / "documents")

    def test_truncated_documents(self, documents: Path, tmp_path: Path) -> None:
        path = documents / "train" / "part-00001.parquet"
        path.write_bytes(path.read_bytes()[:-20])
        self.check(tmp_path, DataError, r"part-00001\.parquet are broken", documents=documents)

    def test_corrupt_page(self, documents: Path, tmp_path: Path) -> None:
        path = documents / "train" / "part-00000.parquet"
        raw = bytearray(path.read_bytes())
        raw[10:400] = bytes(390)
        path.write_bytes(raw)
        self.check(tmp_path, DataError, r"part-00000\.parquet", documents=documents)

    def test_too_small_a_vocabulary(self, documents: Path, tmp_path: Path) -> None:
        self.check(tmp_path, UsageError, "alone are 259", documents=documents, vocab_size=258)
        self.check(tmp_path, UsageError, "alone are 260", documents=documents, vocab_size=259, algorithm="unigram")
        for algorithm in TRAINERS:
            tokenizer, _ = train(tmp_path, documents=documents, vocab_size=260, algorithm=algorithm)
            assert tokenizer.decode(tokenizer.encode(WORDS)) == WORDS

    def test_broken_templates(self, documents: Path, tmp_path: Path) -> None:
        (tmp_path / "bad.jinja").write_text("{% for %}")
        for template, match in (("bad.jinja", "template is broken"), ("missing.jinja", "does not exist")):
            self.check(
                tmp_path, DataError, match, documents=documents, vocab_size=300, chat_template=str(tmp_path / template)
            )

    def test_settings_out_of_range(self) -> None:
        for settings in (
            {"vocab_size": 0},
            {"max_bytes": 0},
            {"max_digits": 4},
            {"unknown": 1},
            {"min_frequency": 0},
            {"algorithm": "tiktoken"},
            {"character_coverage": 0},
        ):
            with pytest.raises(UsageError, match=rf"tokenizer\.{next(iter(settings))}"):
                parse_section(TokenizerConfig, settings, "tokenizer")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm here", ["I", "'m", " here"]),
        ("a  b", ["a", " ", " b"]),
        ("x = foo(1234)", ["x", " =", " foo", "(", "12", "34", ")"]),
        ("end.\n\nNext", ["end", ".\n\n", "Next"]),
        ("你好，世界", ["你好", "，世界"]),
        ("don't stop", ["don", "'t", " stop"]),
        ("tab\tx  ", ["tab", "\tx", "  "]),
    ],
)
def test_where_text_is_cut(text: str, expected: list[str]) -> None:
    split = pre_tokenizers.Split(Regex(split_pattern(2)), behavior="isolated")
    assert [piece for piece, _ in split.pre_tokenize_str(text)] == expected


@pytest.mark.shared_data
def test_real_text(shared_data: Callable[..., Path], tmp_path: Path) -> None:
    text = shared_data("tinyshakespeare", "input.txt").read_text(encoding="utf-8")
    documents = write_documents(
        tmp_path / "documents", [text[place : place + 5000] for place in range(0, 300_000, 5000)]
    )
    write_documents(documents, [text[900_000:950_000]], "validation")
    tokenizer, result = train(tmp_path, documents=documents, vocab_size=2048)
    assert result["vocab_size"] == 2048
    assert 2.5 < result["bytes_per_token"] < 4
    assert tokenizer.decode(tokenizer.encode(text[:100_000])) == text[:100_000]
