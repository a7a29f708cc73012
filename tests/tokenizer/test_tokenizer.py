from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers
from transformers import AutoTokenizer

from tallow.errors import DataError
from tallow.tokenizer.chat import CHATML
from tallow.tokenizer.sealed import SHORT
from tallow.tokenizer.tokenizer import Tokenizer

Backend = Callable[[], tokenizers.Tokenizer]
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces\n\n\tand a tab ",
    "don't 12345 I'LL",
    "Мой дядя самых честных правил",
    "بنی‌آدم اعضای یک پیکرند",
    "人生自古谁无死 🙂 👩‍👩‍👧",
    "e\u0301 é ﬁ \u200b\ufeff",
    "a<|im_end|>b <s> </s>[INST]",
    "<think>\nhm</think>",
]


def write_config(directory: Path, config: dict[str, Any]) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


class TestSaveAndLoad:
    def test_transformers_encodes_and_decodes_alike(self, any_tokenizer: Tokenizer, tmp_path: Path) -> None:
        any_tokenizer.save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        ours = Tokenizer.load(tmp_path)
        for text in TEXTS:
            for add in (False, True):
                ids = ours.encode(text, add_special_tokens=add, parse_special=True)
                assert ids == theirs.encode(text, add_special_tokens=add)
                assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
                assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
        assert (ours.bos_id, ours.eos_id, ours.pad_id) == (
            theirs.bos_token_id,
            theirs.eos_token_id,
            theirs.pad_token_id,
        )
        assert len(theirs) == ours.vocab_size
        assert "token_type_ids" not in theirs("Hello")

    @pytest.mark.parametrize("model_type", ["llama", "qwen3", "gpt2", "gemma2", "gpt_neox"])
    def test_transformers_reads_it_beside_a_model(
        self, any_tokenizer: Tokenizer, model_type: str, tmp_path: Path
    ) -> None:
        any_tokenizer.save(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        for text in TEXTS:
            assert any_tokenizer.encode(text, parse_special=True) == theirs.encode(text, add_special_tokens=False)

    def test_round_trip_keeps_everything(self, any_tokenizer: Tokenizer, tmp_path: Path) -> None:
        any_tokenizer.save(tmp_path)
        loaded = Tokenizer.load(tmp_path)
        assert loaded.fingerprint == any_tokenizer.fingerprint
        assert loaded.special_tokens == any_tokenizer.special_tokens
        assert loaded.special_ids == any_tokenizer.special_ids
        assert loaded.vocab_size == any_tokenizer.vocab_size
        assert loaded.chat_template is None

    def test_fingerprint_sees_a_changed_vocabulary(self, byte_level_backend: Backend) -> None:
        changed = byte_level_backend()
        changed.add_tokens(["another"])
        before, after = Tokenizer.from_backend(byte_level_backend()), Tokenizer.from_backend(changed)
        assert before.fingerprint != after.fingerprint

    def test_files_of_any_formatting_have_one_fingerprint(self, byte_level: Tokenizer, tmp_path: Path) -> None:
        byte_level.save(tmp_path)
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
        assert Tokenizer.load(tmp_path).fingerprint == byte_level.fingerprint

    def test_truncation_and_padding_of_the_file_are_ignored(self, byte_level_backend: Backend, tmp_path: Path) -> None:
        backend = byte_level_backend()
        backend.enable_truncation(4)
        backend.enable_padding(length=8)
        backend.save(str(tmp_path / "tokenizer.json"))
        assert len(Tokenizer.load(tmp_path).encode("it was the best of times, it was the worst")) > 8


class TestConfiguration:
    @pytest.fixture
    def directory(self, byte_level_backend: Backend, tmp_path: Path) -> Path:
        byte_level_backend().save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    def test_tokens_as_text_and_as_descriptions(self, directory: Path) -> None:
        description = {"content": "<|im_end|>", "lstrip": False, "__type": "AddedToken"}
        write_config(
            directory, {"bos_token": "<s>", "eos_token": description, "pad_token": None, "add_bos_token": True}
        )
        tokenizer = Tokenizer.load(directory)
        assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "<|im_end|>"}
        assert tokenizer.eos_id == tokenizer.encode("<|im_end|>", parse_special=True)[0]
        assert tokenizer.pad_id is None

    def test_special_tokens_map(self, directory: Path) -> None:
        (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|eot_id|>"}}))
        tokenizer = Tokenizer.load(directory)
        assert tokenizer.special_tokens == {"eos_token": "<|eot_id|>"}
        assert tokenizer.eos_id == AutoTokenizer.from_pretrained(directory).eos_token_id

    def test_tokens_that_only_the_configuration_knows(self, directory: Path) -> None:
        size = Tokenizer.load(directory).vocab_size
        write_config(
            directory,
            {
                "pad_token": "<pad>",
                "tokenizer_class": "PreTrainedTokenizerFast",
                "added_tokens_decoder": {str(size): {"content": "<tool>", "special": False}},
                "additional_special_tokens": ["<extra>"],
            },
        )
        ours, theirs = Tokenizer.load(directory), AutoTokenizer.from_pretrained(directory)
        text = "a<tool>b<pad>c<extra>"
        assert ours.vocab_size == size + 3
        assert ours.decode(ours.encode(text, parse_special=True)) == "a<tool>bc"
        assert sorted(ours.encode(text, parse_special=True)) == sorted(theirs.encode(text))

    @pytest.mark.parametrize("form", ["text", "list", "file", "both"])
    def test_forms_of_the_chat_template(self, directory: Path, form: str) -> None:
        named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "tools"}]
        config = {"text": CHATML, "list": named, "both": "another"}.get(form)
        write_config(directory, {"chat_template": config} if config else {})
        if form in ("file", "both"):
            (directory / "chat_template.jinja").write_text(CHATML)
        template = Tokenizer.load(directory).chat_template
        assert template is not None
        assert template.source == CHATML
        assert template.tool_source == ("tools" if form == "list" else None)

    def test_the_template_for_tools_is_kept(self, directory: Path, tmp_path: Path) -> None:
        named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools[0].name }}"}]
        write_config(directory, {"chat_template": named})
        Tokenizer.load(directory).save(tmp_path / "saved")
        template = Tokenizer.load(tmp_path / "saved").chat_template
        assert template is not None
        message = [{"role": "user", "content": "Hi"}]
        assert template.render(message, tools=[{"name": "search"}]) == "search"
        theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert theirs.apply_chat_template(message, tools=[{"name": "search"}], tokenize=False) == "search"


class TestBrokenFiles:
    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"tokenizer\.json does not exist"):
            Tokenizer.load(tmp_path)
        with pytest.raises(DataError, match="does not exist"):
            Tokenizer.load(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{}",
            b"[]",
            b"\x00\xff\xfe",
            b"[" * 100_000,
            b'{"model": null}',
            b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[["a","b"]]},"added_tokens":[]}',
            b'{"version":"1.0","model":{"type":"Unigram","unk_id":5,"vocab":[["a",0.0]]},"added_tokens":[]}',
            b'{"version":"1.0","model":{"type":"Magic"},"added_tokens":[]}',
        ],
    )
    def test_tokenizer_file(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(DataError, match="tokenizer"):
            Tokenizer.load(tmp_path)

    def test_truncated_anywhere(self, byte_level: Tokenizer, tmp_path: Path) -> None:
        whole = byte_level.backend.to_str().encode()
        for length in range(0, len(whole) - 1, len(whole) // 20):
            (tmp_path / "tokenizer.json").write_bytes(whole[:length])
            with pytest.raises(DataError):
                Tokenizer.load(tmp_path)

    @pytest.mark.parametrize(
        "config",
        [
            "[]",
            "{",
            '{"added_tokens_decoder": 5}',
            '{"added_tokens_decoder": {"x": {}}}',
            '{"added_tokens_decoder": {"1": {"content": 5}}}',
            '{"additional_special_tokens": 5}',
            '{"chat_template": 5}',
            '{"chat_template": [{"name": "default"}]}',
            '{"chat_template": {"default": 5}}',
        ],
    )
    def test_configuration(self, config: str, byte_level: Tokenizer, tmp_path: Path) -> None:
        byte_level.backend.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(config)
        with pytest.raises(DataError):
            Tokenizer.load(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
                    "pair": [],
                    "special_tokens": {},
                }
            },
            {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "missing"}},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_what_the_library_stumbles_over_later(
        self, change: dict[str, Any], byte_level: Tokenizer, tmp_path: Path
    ) -> None:
        """The first three make it fail an internal check, which it reports by an exception outside of `Exception`."""
        state = json.loads(byte_level.backend.to_str()) | change
        (tmp_path / "tokenizer.json").write_text(json.dumps(state))
        with pytest.raises(DataError):
            Tokenizer.load(tmp_path).encode("b", add_special_tokens=True)

    def test_huge_padding_is_not_applied(self, byte_level_backend: Backend, tmp_path: Path) -> None:
        backend = byte_level_backend()
        backend.enable_padding(length=10**9)
        backend.save(str(tmp_path / "tokenizer.json"))
        assert len(Tokenizer.load(tmp_path).encode("a")) == 1

    def test_long_texts_are_done_as_short_ones(self, any_tokenizer: Tokenizer) -> None:
        text = "".join(TEXTS) * 50
        assert len(text) > SHORT
        ids = any_tokenizer.encode(text)
        assert ids == any_tokenizer.sealed.ids(any_tokenizer.sealed._backend.encode(text, add_special_tokens=False))
        assert any_tokenizer.decode(ids) == any_tokenizer.backend.decode(ids)

    def test_no_token_stands_for_more_than_the_longest(self, any_tokenizer: Tokenizer) -> None:
        for text in TEXTS:
            assert len(text.encode()) <= len(any_tokenizer.encode(text)) * any_tokenizer.longest_token_bytes

    def test_ids_that_are_none(self, byte_level: Tokenizer) -> None:
        assert byte_level.decode([byte_level.vocab_size + 1]) == ""
        assert byte_level.token_bytes(byte_level.vocab_size + 1) == b""
        for id in (-1, 2**32):
            with pytest.raises(DataError, match="cannot be decoded"):
                byte_level.decode([id])

    def test_half_a_surrogate_pair(self, byte_level: Tokenizer) -> None:
        for encode in (byte_level.encode, lambda text: byte_level.encode_batch([text])):
            with pytest.raises(DataError, match="cannot be encoded"):
                encode("a\ud800b")


class TestSpecialTokensInText:
    def test_are_text_unless_asked(self, any_tokenizer: Tokenizer) -> None:
        special = any_tokenizer.special_ids - {any_tokenizer.unk_id}
        for id in special:
            spelling = any_tokenizer.backend.id_to_token(id)
            assert spelling is not None
            for text in (spelling, f"a{spelling}b", f" {spelling} ", spelling * 3, f"\n{spelling}"):
                assert special.isdisjoint(any_tokenizer.encode(text)), text
                assert special.isdisjoint(any_tokenizer.encode_batch([text])[0]), text
                assert id in any_tokenizer.encode(text, parse_special=True)
                assert spelling in any_tokenizer.decode(any_tokenizer.encode(text))

    @given(
        pieces=st.lists(st.sampled_from(["<|im_", "end|>", "<|im_end|>", "<s>", "</s", "<", "|", ">", "a", " ", "\n"]))
    )
    def test_never_in_any_combination(self, pieces: list[str], byte_level: Tokenizer) -> None:
        text = "".join(pieces)
        ids = byte_level.encode(text)
        assert byte_level.special_ids.isdisjoint(ids)
        assert byte_level.decode(ids) == text

    def test_without_special_tokens_in_it_a_text_is_encoded_as_ever(self, any_tokenizer: Tokenizer) -> None:
        for text in TEXTS[:9]:
            expected = any_tokenizer.backend.encode(text, add_special_tokens=True).ids
            assert any_tokenizer.encode(text, add_special_tokens=True) == expected
            assert any_tokenizer.encode_batch([text]) == [any_tokenizer.encode(text)]

    def test_what_the_tokenizer_adds_is_added(self, sentencepiece_backend: Backend) -> None:
        tokenizer = Tokenizer.from_backend(sentencepiece_backend(), bos_token="<s>")
        assert tokenizer.encode("the", add_special_tokens=True) == [1, *tokenizer.encode("the")]
        assert tokenizer.encode("<s>the", add_special_tokens=True).count(1) == 1

    def test_a_special_token_of_one_letter_stays_readable(self, byte_level_backend: Backend) -> None:
        tokenizer = Tokenizer.from_backend(byte_level_backend(), pad_token="!")
        assert tokenizer.encode("a!") == tokenizer.encode("a!", parse_special=True)
        assert tokenizer.decode(tokenizer.encode("a!"), skip_special_tokens=False) == "a!"

    def test_whole_words_that_the_model_knows(self) -> None:
        backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "[END]": 1, "a": 2}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = Tokenizer.from_backend(backend, eos_token="[END]", unk_token="[UNK]")
        assert tokenizer.encode("a [END] a") == [2, 0, 2]
        assert tokenizer.encode("a [END] a", parse_special=True) == [2, 1, 2]

    def test_a_merge_that_makes_a_special_token(self) -> None:
        vocabulary = {"<": 0, "e": 1, ">": 2, "<e": 3, "<e>": 4, "<e>e": 5}
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("<", "e"), ("<e", ">"), ("<e>", "e")]))
        tokenizer = Tokenizer.from_backend(backend, eos_token="<e>")
        assert tokenizer.encode("<e>e") == [3, 2, 1]
        assert tokenizer.encode("<e>e", parse_special=True) == [4, 1]

    def test_added_tokens_with_gaps_in_their_numbers(self) -> None:
        vocabulary = {"a": 0, "<e>": 7, "<": 1, "e": 2, ">": 3}  # 4 to 6 are nobody's
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
        backend.add_tokens(["<tool>"])
        tokenizer = Tokenizer.from_backend(backend, eos_token="<e>", pad_token="<p>")
        for text in ("a<tool>a", "aa"):
            assert tokenizer.encode(text) == tokenizer.encode(text, parse_special=True)
        assert tokenizer.encode("a<e>") == [0, 1, 2, 3]


class TestIds:
    def test_vocab_size_is_one_more_than_the_highest_id(self, any_tokenizer: Tokenizer) -> None:
        ids = any_tokenizer.backend.get_vocab().values()
        assert any_tokenizer.vocab_size == max(ids) + 1
        backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 9}, unk_token="a"))
        assert Tokenizer.from_backend(backend).vocab_size == 10

    def test_special_ids_are_not_all_added_ones(self, byte_level: Tokenizer) -> None:
        spellings = {byte_level.backend.id_to_token(id) for id in byte_level.special_ids}
        assert spellings == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "[INST]", "[/INST]", "<|eot_id|>"}


class TestTokenBytes:
    @given(text=st.text(max_size=40))
    def test_make_up_the_text(self, text: str, byte_level: Tokenizer) -> None:
        assert b"".join(map(byte_level.token_bytes, byte_level.encode(text))) == text.encode()

    @given(text=st.text(max_size=40).filter(lambda text: "▁" not in text))
    def test_make_up_the_text_after_the_first_space(self, text: str, sentencepiece_backend: Backend) -> None:
        tokenizer = Tokenizer.from_backend(sentencepiece_backend())
        joined = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text)))
        assert text.encode() in (joined, joined.removeprefix(b" "))

    @given(data=st.data())
    def test_decode_is_their_lossy_reading(self, data: st.DataObject, byte_level: Tokenizer) -> None:
        ids = data.draw(st.lists(st.integers(0, byte_level.vocab_size + 5), max_size=30))
        joined = b"".join(map(byte_level.token_bytes, ids))
        assert joined.decode("utf-8", "replace") == byte_level.decode(ids, skip_special_tokens=False)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "corpus_handbook/handbook.en-US.jsonl.xz",
        "corpus_handbook/handbook.ru-RU.jsonl.xz",
        "corpus_persian_modern/persianqa_contexts.fa.jsonl.xz",
        "corpus_handbook/handbook.zh-CN.jsonl.xz",
    ],
)
def test_real_text_comes_back(name: str, byte_level: Tokenizer, shared_data: Callable[..., Path]) -> None:
    with lzma.open(shared_data(name), "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(20), strict=False)]
    assert len(texts) == 20
    for text, ids in zip(texts, byte_level.encode_batch(texts), strict=True):
        assert byte_level.decode(ids) == text
        assert b"".join(map(byte_level.token_bytes, ids)) == text.encode()
