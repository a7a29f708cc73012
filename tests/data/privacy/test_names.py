"""Names that a model finds: a toy that has learned to tell them by their capitals."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tallow.data.config import PrepareConfig
from tallow.data.manifest import load_document_manifest
from tallow.data.prepare import prepare
from tallow.data.privacy import PrivacyConfig, names
from tallow.data.privacy.config import NameConfig
from tallow.data.privacy.names import NameTagger
from tallow.data.privacy.scrub import scrub
from tallow.errors import DataError, UsageError
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.encoder import initialize_encoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.formats import save_model
from tallow.models.tagger import Tagger
from tallow.recipe import parse_section
from tallow.run import StageRun
from tallow.stages import input_paths
from tallow.tokenizer.tokenizer import Tokenizer

FIRST, LATER, SMALL = "ABCDE", "VWXYZ", "abcdevwxyz"
"""Capitals with which names begin, capitals with which they go on, and all other letters."""

MARKS = (".", ",", "-", "字", "🙂")
LABELS = ("O", "B-PER", "I-PER", "B-LOC")


def make_tokenizer() -> Tokenizer:
    """A WordPiece of letters: each is a token, and `##` stands before those within a word."""
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *FIRST,
        *LATER,
        *SMALL,
        *(f"##{c}" for c in SMALL),
        ".",
        ",",
        "-",
        "字",
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False, strip_accents=True)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return Tokenizer.from_backend(backend, pad_token="[PAD]", unk_token="[UNK]")


def make_words(chance: random.Random, count: int) -> list[str]:
    return [
        chance.choice(FIRST + LATER + SMALL) + "".join(chance.choices(SMALL, k=chance.randrange(4)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger that has learned from random words which begin a name, which go on with one, and which are none."""
    tokenizer, chance = make_tokenizer(), random.Random(0)
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_positions=32,
    )
    model = Tagger(shape, LABELS)
    initialize_encoder(model, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        texts = [" ".join(word + chance.choice(["", *MARKS]) for word in make_words(chance, 20)) for _ in range(16)]
        rows = [tokenizer.encode(text, add_special_tokens=True)[:24] for text in texts]
        inputs_BT = torch.tensor(rows)
        pieces = [tokenizer.backend.id_to_token(id) or "" for id in inputs_BT.flatten().tolist()]
        wanted = [1 if p in FIRST else 2 if p in LATER else -100 if p.startswith("##") else 0 for p in pieces]
        logits_BTL = model.logits(model(inputs_BT, BidirectionalContext.plain(16, 24)))
        F.cross_entropy(logits_BTL.flatten(0, 1), torch.tensor(wanted)).backward()
        optimizer.step()
        optimizer.zero_grad()
    place = tmp_path_factory.mktemp("tagger") / "model"
    save_model(model, tokenizer, place)
    return place


def found(tagger: NameTagger, text: str) -> list[str]:
    return [text[start:end] for start, end in tagger([text])[0]]


def config_of(directory: Path, **changes: object) -> NameConfig:
    return parse_section(NameConfig, {"model": str(directory), "window": 24, "overlap": 8, **changes}, "name")


def test_what_was_learned_is_found_in_texts_of_any_length(directory: Path) -> None:
    tagger, chance = NameTagger(directory, config_of(directory)), random.Random(1)
    for count in (0, 1, 5, 11, 300):
        words = make_words(chance, count)
        wanted: list[str] = []
        for before, word in zip(["", *words], words, strict=False):
            if word[0] in LATER and before[:1] and before[0] in FIRST + LATER:
                wanted[-1] += f" {word}"
            elif word[0] in FIRST + LATER:
                wanted.append(word)
        assert found(tagger, " ".join(words)) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("  Abba Vxa ", ["Abba Vxa"]),
        ("Abba\nVxa Aa", ["Abba", "Vxa", "Aa"]),  # lines stay lines
        ("字Abba字Bea", ["Abba", "Bea"]),
        ("🙂 Ééa, 🙂 Aa", ["Ééa", "Aa"]),
        ("Abbe\u0301 bb", ["Abbe\u0301"]),
        ("aAbba", []),  # no token at the beginning of a word
        ("[SEP] Abba [PAD]", ["Abba"]),
        ("A" + "b" * 200 + " Bea", ["Bea"]),  # too long for a word of the vocabulary
        (" \n\t", []),
    ],
)
def test_spans_end_where_characters_do(directory: Path, text: str, wanted: list[str]) -> None:
    assert found(NameTagger(directory, config_of(directory)), text) == wanted


@given(st.integers(1, 400), st.integers(8, 40), st.integers(0, 20))
def test_each_token_is_judged_where_it_lies_deep_in_a_window(count: int, window: int, overlap: int) -> None:
    """A model whose probability of a name says how far a place is from the nearer end of its window."""
    tagger = object.__new__(NameTagger)
    tagger._size, tagger._overlap = window, min(overlap, window // 2)
    tagger._before = tagger._after = torch.zeros(0, dtype=torch.int64)
    tagger._wanted_L, tagger._first_L = torch.tensor([False, True]), torch.tensor([False, True])
    seen = []

    def logits(inputs_BT: torch.Tensor) -> torch.Tensor:
        assert inputs_BT.shape[1] <= window
        seen.extend(inputs_BT.flatten().tolist())
        places = torch.arange(inputs_BT.shape[1])
        depth_T = torch.minimum(places, places.flip(0)).double()
        scores_T = (depth_T + 1) / 1000
        return torch.stack([torch.log(1 - scores_T), torch.log(scores_T)], dim=1).expand(len(inputs_BT), -1, -1)

    tagger._logits = logits
    scores_N, _ = tagger._judge(torch.arange(count))
    depth_N = (scores_N * 1000 - 1).round()
    places = torch.arange(count)
    to_the_end_N = torch.minimum(places, places.flip(0))
    half = tagger._overlap // 2
    assert (depth_N >= torch.minimum(to_the_end_N, torch.tensor(half)) - 1).all()
    assert set(seen) == set(range(count))
    assert len(seen) <= count + tagger._overlap * -(-count // (window - tagger._overlap))


def test_names_depend_on_nothing_but_their_text(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(2)
    texts = [" ".join(make_words(chance, count)) for count in (3, 250, 0, 40)]
    tagger = NameTagger(directory, config_of(directory))
    together = tagger(texts)
    assert sum(map(len, together)) > 50
    assert [tagger([text])[0] for text in reversed(texts)] == together[::-1]
    tokens = torch.from_numpy(tagger._tokens(texts[1]).ids)
    with torch.inference_mode():
        whole = tagger._judge(tokens)[0]
    monkeypatch.setattr(names, "PIECE", 100)
    monkeypatch.setattr(names, "SEARCHED", 50)
    assert tagger(texts) == together
    assert torch.equal(torch.from_numpy(tagger._tokens(texts[1]).ids), tokens)
    monkeypatch.setattr(names, "BATCH", 1)
    with torch.inference_mode():
        torch.testing.assert_close(tagger._judge(tokens)[0], whole, atol=1e-6, rtol=0)
    assert not list(names._pieces(""))
    monkeypatch.setattr(names, "PIECE", 7)
    monkeypatch.setattr(names, "SEARCHED", 5)
    assert [text for a, b in names._pieces("x" * 20) if (text := "x" * (b - a))] == ["x" * 7, "x" * 7, "x" * 6]


def test_more_is_found_where_less_suffices(directory: Path) -> None:
    text = " ".join(make_words(random.Random(3), 100))
    counts = [
        len(found(NameTagger(directory, config_of(directory, min_score=score)), text))
        for score in (1e-9, 0.5, 0.9999999)
    ]
    assert counts[0] != counts[1] != counts[2] == 0
    everything = NameTagger(directory, config_of(directory, min_score=1e-9))
    assert "".join("".join(found(everything, text)).split()) == "".join(text.split())


def test_a_recipe_replaces_names(directory: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    texts = ["abe Aa Vee, Bea aa Aa  Vee. a@x.org", "aa bb", "Aa bb Bb cc Cc dd Dd"]
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    moved = tmp_path / "moved"
    shutil.copytree(directory, moved)
    written, stamps = [], []
    for model in (directory, moved):
        values = {"name": {"model": str(model), "drop_beyond": 3}}
        privacy = parse_section(PrivacyConfig, values, "privacy")
        config = PrepareConfig(sources=(source,), validation_fraction=0, privacy=privacy)
        assert input_paths(config)["privacy.name.model"] == model
        prepare(config, StageRun(tmp_path / "run"))
        files = sorted((tmp_path / "run" / "documents" / "train").glob("*.parquet"))
        written.append(sorted(text for file in files for text in pq.read_table(file)["text"].to_pylist()))
        stamps.append({file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "work").glob("*.arrow")})
    assert written[0] == written[1] == ["aa bb", "abe <NAME_1>, <NAME_2> aa <NAME_1>. <EMAIL_1>"]
    assert stamps[0] == stamps[1], "the same model elsewhere is the same model"
    assert load_document_manifest(tmp_path / "run" / "documents").dropped == {"privacy.name": 1}
    assert "| name | 3 | replace |" in (tmp_path / "run" / "documents" / "card.md").read_text()

    privacy = parse_section(PrivacyConfig, {"name": {"model": str(moved), "drop_beyond": 2}}, "privacy")
    weights = load_file(moved / "model.safetensors")
    save_file({**weights, "classifier.bias": torch.tensor([1e3, 0, 0, 0])}, moved / "model.safetensors")
    prepare(PrepareConfig(sources=(source,), validation_fraction=0, privacy=privacy), StageRun(tmp_path / "run"))
    assert load_document_manifest(tmp_path / "run" / "documents").dropped == {}, "another model finds other names"


def test_names_are_counted_and_a_finder_of_the_caller_goes_first(directory: Path) -> None:
    config = PrivacyConfig(name=config_of(directory, action="count"))
    texts = pa.array(["Aa bb Cc", None, "bb"])
    result = scrub(texts, config)
    assert result.texts == texts
    assert result.counts["name"].tolist() == [2, 0, 0]
    given = scrub(texts, config, lambda texts: [[(3, 5)] if text == "Aa bb Cc" else [] for text in texts])
    assert given.counts["name"].tolist() == [1, 0, 0]
    assert "name" not in scrub(texts, PrivacyConfig()).counts


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("B-PER", ("B", "PER")),
        ("i_person", ("I", "PERSON")),
        ("B-FIRST_NAME", ("B", "FIRST_NAME")),
        ("PER", ("", "PER")),
        ("first_name", ("", "FIRST_NAME")),
        ("O", ("", "O")),
    ],
)
def test_labels_are_read_in_their_spellings(label: str, expected: tuple[str, str]) -> None:
    assert names._kind(label) == expected


def test_what_cannot_find_names_is_refused(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"privacy\.name\.model is required"):
        parse_section(PrivacyConfig, {"name": {"action": "count"}}, "privacy")
    with pytest.raises(UsageError, match="more than half of a window"):
        config_of(directory, overlap=13)
    with pytest.raises(DataError, match="has no label PERSON, but O, B-PER, I-PER, B-LOC"):
        NameTagger(directory, config_of(directory, labels=["PERSON"]))
    with pytest.raises(DataError, match="no model 'nowhere'"):
        scrub(pa.array(["a"]), PrivacyConfig(name=config_of(Path("nowhere"))))
    small = Tagger(EncoderConfig(vocab_size=9, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8), LABELS)
    save_model(small, make_tokenizer(), tmp_path / "small")
    with pytest.raises(DataError, match="tokens, the model 9"):
        NameTagger(tmp_path / "small", config_of(tmp_path / "small"))
    assert [len(found(NameTagger(directory, config_of(directory, labels=["loc"])), "Aa bb"))] == [0]
