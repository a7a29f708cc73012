"""Which documents are kept depends on the corpus and the settings, not on how it is parted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallow.data.quality.ngram import NgramConfig, train_ngrams
from tallow.data.read import Document, ReadSettings
from tallow.data.selection.importance import KEY, LOG_WEIGHT, ImportanceConfig, count_buckets, gumbel, log_ratios
from tallow.data.steps.importance import weigh_importance
from tallow.data.steps.judge import JUDGE, JudgeConfig
from tallow.data.steps.measure import SCORES, SIZES, ScoreStep, SizesStep
from tallow.data.steps.ranks import Measure, keep_ranks, ordered
from tallow.data.steps.read import documents_table
from tallow.data.steps.tables import PART
from tallow.data.work.engines import LocalEngine
from tallow.data.work.step import Part, write_batches
from tallow.data.work.work import Work
from tallow.errors import DataError

Choose = Callable[[Work, list[Part], list[Part]], list[Part]]


def table(texts: Sequence[str]) -> pa.Table:
    return documents_table([Document.make(text, "source", offset) for offset, text in enumerate(texts)])


def run(directory: Path, texts: Sequence[str], cuts: Sequence[int], choose: Choose, processes: int = 1) -> list[str]:
    """The texts that are kept, sorted; those of less than two characters are dropped before."""
    documents = table(texts)
    with LocalEngine(processes) as engine:
        work = Work(directory, engine)
        parts = list[Part]()
        for begin, end in zip([0, *cuts], [*cuts, len(texts)], strict=True):
            piece = documents.slice(begin, end - begin).combine_chunks()
            path = directory / f"documents{begin}-{end}.arrow"
            write_batches(piece.to_batches() or [pa.RecordBatch.from_pylist([], schema=PART)], path)
            parts.append(Part(path, piece.num_rows))
        sizes = [made for [made] in work.each(SIZES, [(SizesStep(), [part]) for part in parts])]
        rules = JudgeConfig(min_chars=2)
        verdicts = [made for [made] in work.each(JUDGE, [(rules, [each]) for each in sizes])]
        verdicts = choose(work, parts, verdicts)
        stay = [verdict.read().column("dropped_by").is_null() for verdict in verdicts]
        kept = [part.read().filter(mask).column("text").to_pylist() for part, mask in zip(parts, stay, strict=True)]
    return sorted(text for each in kept for text in each)


@given(st.lists(st.floats(allow_nan=False)))
def test_whole_numbers_have_the_order_of_values(values: list[float]) -> None:
    array = np.array(values, dtype=np.float64)
    numbers = ordered(array)
    order = np.argsort(numbers, kind="stable")
    assert (array[order][1:] >= array[order][:-1]).all()
    assert len(np.unique(numbers)) == len(np.unique(array))


@pytest.mark.parametrize("measure", ["documents", "bytes"])
@pytest.mark.parametrize("kinds", [1, 7, 10**9])
def test_ranks(tmp_path: Path, kinds: int, measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against sorting all; with few kinds of values it takes ids to tell documents apart."""
    monkeypatch.setattr("tallow.data.steps.ranks.FEW", 3)
    chance = random.Random(kinds)
    values = [chance.randrange(kinds) * chance.choice((-1, 1)) / 7 for _ in range(300)]
    texts = [f"{number:03} {'x' * chance.randrange(30)}" for number in range(290)] + ["?"] * 10
    ids = {text: Document.make(text, "source", offset).id for offset, text in enumerate(texts)}
    by_text = dict(zip(texts, values, strict=True))
    by_text[texts[5]] = float("nan")
    ranked = sorted((t for t in texts[:290] if t != texts[5]), key=lambda text: (by_text[text], ids[text]))
    size: Callable[[str], int] = len if measure == "bytes" else lambda _: 1
    total = sum(map(size, ranked))
    low, high = round(0.2 * total), round(0.75 * total)
    expected, before = [], 0
    for text in ranked:
        if before + size(text) > low and before + size(text) <= high:
            expected.append(text)
        before += size(text)

    def choose(work: Work, parts: list[Part], verdicts: list[Part]) -> list[Part]:
        columns = list[Part]()
        for part in parts:
            column = [by_text[text] for text in part.read().column("text").to_pylist()]
            path = work.directory / f"v{part.path.name}"
            write_batches(pa.table({"v": pa.array(column, pa.float64())}).to_batches(), path)
            columns.append(Part(path, part.rows))
        return keep_ranks(work, parts, verdicts, columns, "v", 0.2, 0.75, "rank", measure)

    for number, cuts in enumerate(([], [10, 150], [299])):
        assert run(tmp_path / str(number), texts, cuts, choose) == sorted(expected)


def test_those_like_the_target_are_kept(tmp_path: Path) -> None:
    chance = random.Random(3)
    sea, land = ["ship", "sail", "wave", "gull", "salt", "harbour"], ["barn", "plough", "field", "cow", "hay", "fence"]
    texts = [" ".join(chance.choices(sea if number % 5 == 0 else land, k=30)) for number in range(200)] + ["", ".", "x"]
    target = tmp_path / "target.txt"
    target.write_text("\n".join(" ".join(chance.choices(sea, k=20)) for _ in range(50)))

    def choose(work: Work, parts: list[Part], verdicts: list[Part]) -> list[Part]:
        columns = weigh_importance(work, parts, verdicts, (target,), ImportanceConfig(), ReadSettings())
        values = np.concatenate([part.read().column(LOG_WEIGHT).to_numpy() for part in columns])
        assert np.isfinite(values[:200]).all()
        assert np.isnan(values[200])
        return keep_ranks(work, parts, verdicts, columns, KEY, 0.8, 1, "unlike the target")

    kept = run(tmp_path / "whole", texts, [], choose)
    assert kept == sorted(texts[:200:5])
    assert run(tmp_path / "parts", texts, [3, 3, 90, 202], choose) == kept
    assert run(tmp_path / "processes", texts, [71], choose, processes=2) == kept
    target.write_text(" ")
    with pytest.raises(DataError, match=r"no words|target"):
        run(tmp_path / "none", texts, [], choose)


def test_documents_are_drawn_in_proportion_to_their_weights() -> None:
    """The largest of weights with Gumbel noise is each with the probability that its weight says."""
    log_weights = np.log([0.5, 0.3, 0.15, 0.05])
    ids = np.random.default_rng(0).integers(0, 2**63, (4 * 20_000, 2)).astype(np.uint64)
    noise = gumbel(ids, 5).reshape(-1, 4)
    first = np.bincount(np.argmax(noise + log_weights, axis=1), minlength=4) / 20_000
    np.testing.assert_allclose(first, [0.5, 0.3, 0.15, 0.05], atol=0.015)
    assert np.array_equal(gumbel(ids[7:9], 5), noise.ravel()[7:9])
    assert abs(np.corrcoef(gumbel(ids, 6), noise.ravel())[0, 1]) < 0.02


@settings(max_examples=20)
@given(st.lists(st.text("ab \n", max_size=40), min_size=1, max_size=5), st.integers(1, 4))
def test_counts_add_up(texts: list[str], cut: int) -> None:
    config = ImportanceConfig(bits=6)
    one, other = (count_buckets(pa.array(part, pa.string()), config) for part in (texts[:cut], texts[cut:]))
    whole = count_buckets(pa.array(texts, pa.string()), config)
    assert (one + other == whole).all()
    assert log_ratios(whole, whole, config).tolist() == [0] * 64


def test_a_band_of_perplexity(tmp_path: Path) -> None:
    chance = random.Random(1)
    usual = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "sat", "on", "the", "rug"]
    texts = [" ".join(chance.sample(usual, 8)) for _ in range(30)]
    texts += [" ".join(usual[:number]) for number in range(6, 12)] + ["qqq zzz www kkk jjj", "...", "  ", "!"]
    model = train_ngrams([pa.array([" ".join(usual)])], NgramConfig(order=3))
    model.save(tmp_path / "model")
    values = dict(zip(texts, model.perplexities(pa.array(texts)).tolist(), strict=True))

    def choose(work: Work, parts: list[Part], verdicts: list[Part]) -> list[Part]:
        config = ScoreStep(column="perplexity", kind="ngrams", sha256="", model=tmp_path / "model")
        columns = [made for [made] in work.each(SCORES, [(config, [part]) for part in parts])]
        return keep_ranks(work, parts, verdicts, columns, "perplexity", 0.1, 0.8, "perplexity")

    kept = run(tmp_path / "whole", texts, [], choose)
    assert run(tmp_path / "parts", texts, [1, 20, 33], choose) == kept
    dropped = [values[text] for text in texts[:38] if text not in kept]
    inside = [values[text] for text in kept]
    assert len(kept) == round(0.8 * 38) - round(0.1 * 38)
    assert all(value <= min(inside) or value >= max(inside) for value in dropped)
