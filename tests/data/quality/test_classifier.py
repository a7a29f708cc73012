from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tallow.data.quality.classifier import ClassifierConfig, load_classifier, train_classifier
from tallow.errors import DataError

SMALL = ClassifierConfig(bits=12)
GOOD_WORDS = ["the", "house", "stands", "by", "a", "quiet", "river"]
BAD_WORDS = ["click", "here", "buy", "now", "free", "cash"]


def sentences(words: list[str], count: int, seed: int) -> pa.StringArray:
    generator = random.Random(seed)
    return pa.array([" ".join(generator.choices(words, k=8)) for _ in range(count)])


def test_it_tells_what_it_was_taught() -> None:
    classifier = train_classifier(sentences(GOOD_WORDS, 60, 0), sentences(BAD_WORDS, 90, 1), SMALL)
    assert classifier.report.auc == 1
    assert classifier.report.positives + classifier.report.negatives < 60
    probabilities = classifier.probabilities(pa.array(["by the river", "free cash now", ""]))
    assert probabilities[0] > 0.7
    assert probabilities[1] < 0.3
    assert abs(probabilities[2] - 0.5) < 0.2


def test_the_same_examples_in_another_order_give_nearly_the_same() -> None:
    good, bad = sentences(GOOD_WORDS, 60, 0), sentences(BAD_WORDS, 60, 1)
    classifier = train_classifier(good, bad, SMALL)
    again = train_classifier(good, bad, SMALL)
    assert (classifier.weights == again.weights).all()
    turned = train_classifier(good.take(pa.array(range(59, -1, -1))), bad, SMALL)
    np.testing.assert_allclose(turned.weights, classifier.weights, atol=0.05)
    assert turned.report.positives == classifier.report.positives


def test_it_is_saved_and_read(tmp_path: Path) -> None:
    classifier = train_classifier(sentences(GOOD_WORDS, 40, 0), sentences(BAD_WORDS, 40, 1), SMALL)
    classifier.save(tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    assert loaded.report == classifier.report
    texts = sentences(GOOD_WORDS + BAD_WORDS, 20, 2)
    np.testing.assert_array_equal(loaded.probabilities(texts), classifier.probabilities(texts))
    raw = (tmp_path / "classifier" / "classifier.safetensors").read_bytes()
    settings = json.loads((tmp_path / "classifier" / "classifier.json").read_text())
    (tmp_path / "classifier" / "classifier.safetensors").write_bytes(raw[:-5])
    with pytest.raises(DataError, match="damaged"):
        load_classifier(tmp_path / "classifier")
    (tmp_path / "classifier" / "classifier.safetensors").write_bytes(raw)
    settings["config"]["bits"] = 13
    (tmp_path / "classifier" / "classifier.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match="damaged"):
        load_classifier(tmp_path / "classifier")


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(DataError, match="of 1 bad examples"):
        train_classifier(sentences(GOOD_WORDS, 40, 0), pa.array(["one"]), SMALL)
    with pytest.raises(DataError, match="of 0 good examples"):
        train_classifier(pa.array([], pa.string()), sentences(BAD_WORDS, 40, 0), SMALL)


@pytest.mark.shared_data
def test_encyclopedia_and_web(shared_data: Callable[..., Path]) -> None:
    with gzip.open(shared_data("c4_wiki_demo", "c4_demo.jsonl.gz"), "rt") as file:
        web = [json.loads(line)["text"][:400] for line in file][:150]
    with gzip.open(shared_data("c4_wiki_demo", "wiki_demo.txt.gz"), "rt") as file:
        wiki = [line[at : at + 400] for line in file for at in range(0, len(line), 4000)][:150]
    classifier = train_classifier(pa.array(wiki), pa.array(web), ClassifierConfig(bits=16))
    assert classifier.report.auc > 0.9
