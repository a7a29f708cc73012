from __future__ import annotations

import json
import lzma
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tallow.data.quality.ngram import NgramConfig, load_ngrams, train_ngrams
from tallow.errors import DataError

TAUGHT = ["the cat sat on the mat", "the dog sat on the rug", "a cat and a dog", "the mat is on the rug"]
SMALL = NgramConfig(order=3)


def test_what_is_like_what_was_read_surprises_less() -> None:
    model = train_ngrams([pa.array(TAUGHT[:2]), pa.array(TAUGHT[2:])], SMALL)
    assert model.words == sum(len(text.split()) + 1 for text in TAUGHT)
    texts = ["the cat sat on the rug", "rug the on sat cat the", "quantum flux", "", None]
    known, shuffled, foreign, empty, null = model.perplexities(pa.array(texts, pa.string()))
    assert known < shuffled
    assert known < foreign
    assert np.isnan(empty)
    assert np.isnan(null)


def test_it_is_saved_and_read(tmp_path: Path) -> None:
    model, path = train_ngrams([pa.array(TAUGHT)], SMALL), tmp_path / "model"
    model.save(path)
    loaded, texts = load_ngrams(path), pa.array([*TAUGHT, "a rug sat"])
    np.testing.assert_array_equal(loaded.perplexities(texts), model.perplexities(texts))
    assert loaded.words == model.words
    raw, settings = (path / "ngram.safetensors").read_bytes(), json.loads((path / "ngram.json").read_text())
    for name, broken in [
        ("ngram.safetensors", raw[:-3]),
        ("ngram.safetensors", raw[:-4] + b"\xff\xff\xff\x7f"),  # not a number
        ("ngram.json", json.dumps(settings | {"orders": 4}).encode()),
        ("ngram.json", json.dumps(settings | {"unknown": "x"}).encode()),
    ]:
        whole = (path / name).read_bytes()
        (path / name).write_bytes(broken)
        with pytest.raises(DataError, match="damaged"):
            load_ngrams(path)
        (path / name).write_bytes(whole)
    load_ngrams(path)


def random_texts(count: int) -> list[str]:
    generator = random.Random(0)
    return [" ".join(f"{generator.randrange(3000)}" for _ in range(50)) for _ in range(count)]


def test_its_training_keeps_to_its_memory() -> None:
    config, texts = NgramConfig(order=5, memory_mb=4), pa.array(random_texts(600))
    tracemalloc.start()
    try:
        model = train_ngrams([texts], config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0.9 * config.most_words() < model.words <= config.most_words()
    assert peak < config.memory_mb << 20


def test_which_texts_are_taken_depends_on_what_they_say() -> None:
    config, texts = NgramConfig(order=2, memory_mb=1), random_texts(200)
    first = train_ngrams([pa.array(texts)], config)
    second = train_ngrams([pa.array(texts[100::-1]), pa.array(texts[:100:-1])], config)
    assert first.words < 200 * 51
    assert all((a.keys == b.keys).all() for a, b in zip(first.tables, second.tables, strict=True))


def test_without_words_there_is_no_model() -> None:
    with pytest.raises(DataError, match="no text"):
        train_ngrams([pa.array(["", " "])], SMALL)
    with pytest.raises(DataError, match="no text"):
        train_ngrams([], SMALL)


@pytest.mark.shared_data
def test_real_prose_beside_the_same_words_shuffled(shared_data: Callable[..., Path]) -> None:
    with lzma.open(shared_data("corpus_english_books", "pepys_diary.en.jsonl.xz"), "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    days = [text[at : at + 600] for text in texts for at in range(0, len(text), 600)][200:700]
    model = train_ngrams([pa.array(days[:450])], NgramConfig(order=5, memory_mb=64))
    shuffled = [" ".join(random.Random(0).sample(day.split(), len(day.split()))) for day in days[450:]]
    prose = model.perplexities(pa.array(days[450:]))
    assert (prose < model.perplexities(pa.array(shuffled))).mean() > 0.95
