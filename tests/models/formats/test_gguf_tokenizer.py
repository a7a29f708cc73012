"""Tokenizers in GGUF files: the same ids on the way in and out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tallow.errors import DataError, UsageError
from tallow.kernels.text.word_counts import MaxDigits, split_pattern
from tallow.models.formats.gguf_splits import SPLIT_RULES, find_rule
from tallow.models.formats.gguf_tokenizer import WHOLE, read_tokenizer, write_tokenizer
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.tokenizer.train import TokenizerConfig

PATH = Path("model.gguf")
TEXT = [
    "the cat sat on the mat, and the dog ran over the hill again and again.",
    "In 1984, 12345 people paid $3.50; don't we'll I'M they'RE",
    "def f(x):\n\treturn x**2  # naïve café 日本語 🤗 привет мир",
]
TEXTS = [
    *TEXT,
    "",
    "  leading, trailing  and   between \n\n\n \t x ",
    "1234567890 ½ Ⅷ १२३४",
    "I'LL don't WE'RE it's x=3.14159e-10;y[0]={'k':\"v\"}//\r\n",
    "<|im_start|>user\nHi<|im_end|>",
    "Ünïcödé ПРИВЕТ 日本語のテキスト 🤗🤗  CamelCaseWord ALLCAPS",
]


def reread(tokenizer: Tokenizer) -> Tokenizer:
    return read_tokenizer(write_tokenizer(tokenizer, tokenizer.vocab_size), PATH)


def assert_same_ids(ours: Tokenizer, theirs: Tokenizer) -> None:
    for text in TEXTS:
        for options in ({}, {"add_special_tokens": True}, {"parse_special": True}):
            ids = ours.encode(text, **options)
            assert ids == theirs.encode(text, **options), (text, options)
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("rule", SPLIT_RULES)
def test_byte_level(make_tokenizer: Callable[..., Tokenizer], rule: str) -> None:
    tokenizer = make_tokenizer(rule)
    metadata = write_tokenizer(tokenizer, tokenizer.vocab_size)
    written = SPLIT_RULES[metadata["tokenizer.ggml.pre"]]
    assert (written.patterns, written.whole_words) == (SPLIT_RULES[rule].patterns, SPLIT_RULES[rule].whole_words)
    assert_same_ids(tokenizer, read_tokenizer(metadata, PATH))
    assert WHOLE not in metadata


def test_named_tokens_and_template(make_tokenizer: Callable[..., Tokenizer]) -> None:
    backend = make_tokenizer().backend
    template = "{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    tokenizer = Tokenizer.from_backend(
        backend, bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<|endoftext|>", chat_template=template
    )
    loaded = reread(tokenizer)
    names = ("bos_id", "eos_id", "pad_id", "unk_id", "special_ids", "vocab_size")
    assert [getattr(loaded, name) for name in names] == [1, 2, None, 0, frozenset({0, 1, 2}), 320]
    assert loaded.chat_template is not None
    assert loaded.chat_template.render([{"role": "user", "content": "Hi"}]) == "Hi<|im_end|>"


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True), (False, False)])
def test_begin_and_end_tokens_around_a_text(
    make_tokenizer: Callable[..., Tokenizer], before: bool, after: bool
) -> None:
    """The flags of the file count, and are written as the tokenizer behaves."""
    tokenizer = make_tokenizer()
    metadata = write_tokenizer(tokenizer, 320)
    metadata |= {"tokenizer.ggml.add_bos_token": before, "tokenizer.ggml.add_eos_token": after}
    loaded = read_tokenizer(metadata, PATH)
    plain = tokenizer.encode("the cat")
    expected = [1] * before + plain + [2] * after
    assert loaded.encode("the cat", add_special_tokens=True) == expected
    assert loaded.encode("the cat") == plain
    assert reread(loaded).encode("the cat", add_special_tokens=True) == expected


def test_begin_token_is_the_default_of_some_rules(make_tokenizer: Callable[..., Tokenizer]) -> None:
    for rule, expected in (("llama-bpe", True), ("tekken", True), ("gpt-2", False), ("qwen2", False)):
        metadata = write_tokenizer(make_tokenizer(rule), 320)
        del metadata["tokenizer.ggml.add_bos_token"]
        ids = read_tokenizer(metadata, PATH).encode("a", add_special_tokens=True)
        assert (ids[0] == 1) == expected


def test_user_defined_tokens(make_tokenizer: Callable[..., Tokenizer]) -> None:
    """Tokens that are whole in any text, without being control tokens."""
    tokenizer = make_tokenizer()
    tokenizer.backend.add_tokens(["<think>", "the cat"])
    loaded = reread(tokenizer)
    ids = loaded.encode("<think>the cat sat")
    assert ids[:2] == [320, 321]
    assert ids == tokenizer.encode("<think>the cat sat")
    assert loaded.special_ids == tokenizer.special_ids


def test_ids_beyond_the_tokenizer_are_unused(make_tokenizer: Callable[..., Tokenizer]) -> None:
    tokenizer = make_tokenizer()
    metadata = write_tokenizer(tokenizer, 352)
    assert metadata["tokenizer.ggml.tokens"][351] == "[PAD351]"
    assert metadata["tokenizer.ggml.token_type"][319:321] == [1, 5]
    loaded = read_tokenizer(metadata, PATH)
    assert loaded.vocab_size == 320
    assert_same_ids(tokenizer, loaded)
    with pytest.raises(UsageError, match="320 tokens"):
        write_tokenizer(tokenizer, 319)


def with_split(tokenizer: Tokenizer, pattern: str, normalizer: Any = None) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    if normalizer is not None:
        backend.normalizer = normalizer
    return Tokenizer.from_backend(backend, bos_token="<|im_start|>", eos_token="<|im_end|>")


def test_two_digits_travel_as_the_whole_tokenizer(
    make_tokenizer: Callable[..., Tokenizer], capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp has no name for it; it gets the nearest, we get all, the user gets told."""
    tokenizer = with_split(make_tokenizer(), split_pattern(2))
    metadata = write_tokenizer(tokenizer, 320)
    assert metadata["tokenizer.ggml.pre"] == "dbrx"
    assert "max_digits 1 or 3" in capsys.readouterr().err
    loaded = read_tokenizer(metadata, PATH)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert_same_ids(tokenizer, loaded)


LLAMA_CPP = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The expression in its src/llama-vocab.cpp."""


@pytest.mark.parametrize(
    ("max_digits", "name", "digits"), [(1, "deepseek-r1-qwen", r"\p{N}"), (3, "dbrx", r"\p{N}{1,3}")]
)
def test_tokenizers_of_the_recipe_are_those_of_llama_cpp(
    make_tokenizer: Callable[..., Tokenizer],
    max_digits: MaxDigits,
    name: str,
    digits: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pattern = LLAMA_CPP.replace("DIGITS", digits)
    assert split_pattern(max_digits) == pattern
    assert SPLIT_RULES[name].patterns == (pattern,)
    tokenizer = with_split(make_tokenizer(), pattern)
    metadata = write_tokenizer(tokenizer, 320)
    assert metadata["tokenizer.ggml.pre"] == name
    assert WHOLE not in metadata
    assert not capsys.readouterr().err
    assert_same_ids(tokenizer, read_tokenizer(metadata, PATH))


def test_the_default_tokenizer_is_one_that_llama_cpp_has() -> None:
    assert TokenizerConfig.model_fields["max_digits"].default in (1, 3)


def test_unknown_ways_to_cut_words_are_refused(make_tokenizer: Callable[..., Tokenizer]) -> None:
    with pytest.raises(UsageError, match="no name for the way"):
        write_tokenizer(with_split(make_tokenizer(), r"\w+|\W+"), 320)
    with pytest.raises(UsageError, match="no name for the way"):
        write_tokenizer(with_split(make_tokenizer(), SPLIT_RULES["gpt-2"].patterns[0], normalizers.Lowercase()), 320)
    metadata = write_tokenizer(make_tokenizer(), 320) | {"tokenizer.ggml.pre": "klingon"}
    with pytest.raises(DataError, match="unknown rule 'klingon'"):
        read_tokenizer(metadata, PATH)


def test_missing_rule_is_said(make_tokenizer: Callable[..., Tokenizer], capsys: pytest.CaptureFixture[str]) -> None:
    metadata = write_tokenizer(make_tokenizer("default"), 320)
    del metadata["tokenizer.ggml.pre"]
    assert_same_ids(make_tokenizer("default"), read_tokenizer(metadata, PATH))
    assert "does not say" in capsys.readouterr().err


def test_spellings_of_a_rule() -> None:
    """The forms in which published tokenizer.json files have the same rules."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    bytes_only = {**byte_level, "use_regex": False}
    after_contractions = LLAMA_CPP.replace("DIGITS", r"\p{N}").partition(")")[2]
    any_case = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + after_contractions
    split = {"type": "Split", "pattern": {"Regex": any_case}, "behavior": "Isolated"}
    qwen2 = {"type": "Sequence", "pretokenizers": [split, bytes_only]}
    assert find_rule(qwen2, whole_words=False, nfc=True) == ("qwen2", True)
    smollm = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    assert find_rule(byte_level, whole_words=False, nfc=False) == ("gpt-2", True)
    assert find_rule(byte_level, whole_words=False, nfc=True) == ("olmo", True)
    assert find_rule(smollm, whole_words=False, nfc=False) == ("smollm", True)
    assert find_rule({**byte_level, "add_prefix_space": True}, whole_words=False, nfc=False) is None
    assert find_rule(None, whole_words=False, nfc=False) is None


# ---- sentencepiece ---------------------------------------------------------------------------------


def make_sentencepiece(prefix: bool = True) -> Tokenizer:
    """As the hub has Llama 2's (with the space before the first word) and Gemma's (without)."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=520, show_progress=False, special_tokens=special)
    backend.train_from_iterator(TEXT * 3, trainer)
    parts = json.loads(backend.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
    parts["pre_tokenizer"] = None
    backend = tokenizers.Tokenizer.from_str(json.dumps(parts))
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return Tokenizer.from_backend(backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool) -> None:
    tokenizer = make_sentencepiece(prefix)
    metadata = write_tokenizer(tokenizer, tokenizer.vocab_size)
    assert metadata["tokenizer.ggml.model"] == "llama"
    assert metadata["tokenizer.ggml.token_type"][:5] == [2, 3, 3, 6, 6]
    loaded = read_tokenizer(metadata, PATH)
    assert_same_ids(tokenizer, loaded)
    assert loaded.decode(loaded.encode("日本 the cat")) == "日本 the cat"


def test_sentencepiece_defaults() -> None:
    """Files from before these keys: ids 1, 2 and 0, and a begin token before each text."""
    metadata = write_tokenizer(make_sentencepiece(), 520)
    for key in (
        "bos_token_id",
        "eos_token_id",
        "unknown_token_id",
        "add_bos_token",
        "add_eos_token",
        "add_space_prefix",
    ):
        metadata.pop(f"tokenizer.ggml.{key}", None)
    loaded = read_tokenizer(metadata, PATH)
    assert (loaded.bos_id, loaded.eos_id, loaded.unk_id) == (1, 2, 0)
    assert loaded.encode("the cat", add_special_tokens=True) == [1, *make_sentencepiece().encode("the cat")]


def test_better_scores_merge_first() -> None:
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "bc", "abc", "  "]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 1, 1, 1, 4],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -1000.0],
        "tokenizer.ggml.add_space_prefix": False,
    }
    spelled = {id: token for token, id in read_tokenizer(metadata, PATH).backend.get_vocab().items()}
    assert [spelled[id] for id in read_tokenizer(metadata, PATH).encode("abc")] == ["abc"]
    metadata["tokenizer.ggml.tokens"] = [*tokens[:8], "abd", *tokens[9:]]
    assert [spelled[id] for id in read_tokenizer(metadata, PATH).encode("abc")] == ["a", "bc"]
    metadata["tokenizer.ggml.scores"][6:8] = [-1.0, -2.0]
    assert [spelled[id] for id in read_tokenizer(metadata, PATH).encode("abc")] == ["ab", "c"]
    metadata["tokenizer.ggml.tokens"] = [*tokens[:9], "▁"]
    metadata["tokenizer.ggml.tokens"][8] = "   "  # Gemma's spelling of a run of spaces
    metadata["tokenizer.ggml.token_type"][8:] = [4, 1]
    assert read_tokenizer(metadata, PATH).backend.token_to_id("▁▁▁") == 8


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"model": "bert"}, "unknown kind 'bert'"),
    "no tokens": ({"tokens": None}, "list of distinct tokens"),
    "tokens that are numbers": ({"tokens": [1, 2]}, "list of distinct tokens"),
    "twice a token": ({"tokens": ["a"] * 320}, "list of distinct tokens"),
    "few types": ({"token_type": [1]}, "a type"),
    "merge of unknown tokens": ({"merges": ["xyzzy q"]}, "is broken"),
    "few scores": ({"model": "llama", "scores": [1.0]}, "a score"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tokenizers(make_tokenizer: Callable[..., Tokenizer], case: str) -> None:
    changes, complaint = BROKEN[case]
    metadata = write_tokenizer(make_tokenizer(), 320)
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(DataError, match=complaint):
        read_tokenizer(metadata, PATH)


def test_broken_whole_tokenizer(make_tokenizer: Callable[..., Tokenizer]) -> None:
    with pytest.raises(DataError, match="is broken"):
        read_tokenizer(write_tokenizer(make_tokenizer(), 320) | {WHOLE: "{"}, PATH)


@pytest.fixture(scope="module")
def pair(make_tokenizer: Callable[..., Tokenizer]) -> tuple[Tokenizer, Tokenizer]:
    tokenizer = make_tokenizer("smollm")
    return tokenizer, reread(tokenizer)


@given(text=st.text())
def test_any_text(pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    before, after = pair
    ids = before.encode(text)
    assert after.encode(text) == ids
    assert after.decode(ids) == text
