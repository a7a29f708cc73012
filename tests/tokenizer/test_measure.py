"""Figures of a tokenizer are those of what it makes of texts."""

from __future__ import annotations

import pyarrow as pa
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tallow.tokenizer import measure
from tallow.tokenizer.measure import PATTERNS, Measurement, encode_hard_texts
from tallow.tokenizer.tokenizer import Tokenizer

TEXTS = ["it was the best of times", "人生自古谁无死", "", "x " * 60]


def test_figures_are_those_of_the_texts(byte_level: Tokenizer) -> None:
    measurement = Measurement(byte_level)
    measurement.add("one", pa.array(TEXTS[:2]))
    measurement.add("one", pa.array(["none", *TEXTS[2:]]).slice(1))
    measurement.add("two", pa.array(TEXTS[:1]))
    one, two, total = measurement.codings()["one"], measurement.codings()["two"], measurement.total()
    ids = [byte_level.encode(text) for text in TEXTS]
    assert (one.documents, one.bytes, one.characters) == (4, *map(sum, zip(*sizes(TEXTS), strict=True)))
    assert one.tokens == sum(map(len, ids))
    assert one.words == 6 + 7 + 0 + 60
    assert one.used == len({id for some in ids for id in some})
    assert one.longest == max(map(len, ids))
    assert one.densest == pytest.approx(120 / len(ids[3]))
    assert two.densest is None  # too short a text to be typical of anything
    assert (total.tokens, total.used) == (one.tokens + two.tokens, one.used)
    values = one.as_json(byte_level.vocab_size)
    assert values["bytes_per_token"] == one.bytes / one.tokens
    assert values["tokens_per_word"] == one.tokens / 73
    assert values["vocabulary_used"] == one.used / byte_level.vocab_size


def sizes(texts: list[str]) -> list[tuple[int, int]]:
    return [(len(text.encode()), len(text)) for text in texts]


def test_hard_texts_are_no_square(byte_level: Tokenizer) -> None:
    found = encode_hard_texts(byte_level)
    assert {hard.name for hard in found} == PATTERNS.keys()
    speeds = [hard.bytes / hard.seconds for hard in found]
    assert speeds == sorted(speeds)
    assert not any(hard.quadratic for hard in found)


def test_a_square_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """WordPiece tries all ends of a word that is none."""
    monkeypatch.setattr(measure, "SIZES", (1 << 9, 1 << 11))
    monkeypatch.setattr(measure, "PATTERNS", {"one letter": "a"})
    vocabulary = {"[UNK]": 0, "b": 1, "##a": 2, "a": 3}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1 << 30))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece()
    (hard,) = encode_hard_texts(Tokenizer.from_backend(backend))
    assert hard.quadratic
    assert hard.tokens == 1 << 11
