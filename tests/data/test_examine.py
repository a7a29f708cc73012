"""What is known of documents, what drops them, and how one looks at that."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest

from tallow import stages
from tallow.data import inputs
from tallow.data.blocks import Paragraph, Table, load_card
from tallow.data.config import (
    ClassifierRule,
    ContaminationConfig,
    DiversityRule,
    ImportanceRule,
    LanguageRules,
    PrepareConfig,
    QualityConfig,
    QuantileRule,
    ScoreRule,
)
from tallow.data.duplicates.minhash import MinHashSettings
from tallow.data.duplicates.substrings import SubstringSettings
from tallow.data.duplicates.units import UnitSettings
from tallow.data.examine import examine
from tallow.data.look import open_prepared, show, what_if
from tallow.data.manifest import load_document_manifest
from tallow.data.prepare import prepare
from tallow.data.privacy.config import KindConfig, PrivacyConfig
from tallow.data.quality.c4 import C4Lines
from tallow.data.quality.classifier import ClassifierConfig, train_classifier
from tallow.data.quality.families import QualityRules
from tallow.data.quality.gopher import GopherRules
from tallow.data.quality.ngram import NgramConfig, train_ngrams
from tallow.data.steps import tally
from tallow.data.work.engines import LocalEngine
from tallow.data.work.work import Work
from tallow.errors import DataError, UsageError
from tallow.files import hash_path
from tallow.recipe import apply_overrides, dump_recipe, parse_section
from tallow.run import RECIPE, StageRun
from tallow.stages import input_paths, require_inputs

TINY_LANGUAGES = Path(__file__).parent / "language" / "tiny.bin"


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def prose(seed: int, words: int = 80) -> str:
    chance = random.Random(seed)
    vocabulary = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(20) for j in range(20)]
    return " ".join(f"the {' '.join(chance.choices(vocabulary, k=8))} and." for _ in range(words // 10))


def kept_texts(config: PrepareConfig, directory: Path) -> list[str]:
    prepare(config, StageRun(directory))
    (directory / RECIPE).write_text(dump_recipe({"prepare": config.model_dump(mode="json")}))
    with LocalEngine(1) as engine:
        found = examine(config, Work(directory / "work", engine))
    texts: list[str] = []
    for part, verdicts in zip(found.parts, found.verdicts, strict=True):
        reasons = verdicts.read()["dropped_by"].to_pylist()
        texts += [text for text, why in zip(part.read()["text"].to_pylist(), reasons, strict=True) if why is None]
    return texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred good texts, of which ten come again a little changed, and ten bad ones."""
    good = [prose(seed, 80 + 10 * (seed % 3)) for seed in range(100)]
    near = [text.replace("worda", "wordb", 1) + " " for text in good[:10]]
    bad = ["Too short, the of and that.", *("the the the the the the " * 20 for _ in range(9))]
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", [*good, *near, *bad])


GOPHER = QualityConfig(repetition=None, c4=None, fineweb=None)


def test_rules_and_near_duplicates_drop_what_they_should(corpus: Path, tmp_path: Path) -> None:
    config = PrepareConfig(
        sources=(corpus,), quality=QualityConfig(c4=None), near_duplicates=MinHashSettings(threshold=0.6)
    )
    texts = kept_texts(config, tmp_path)
    dropped = load_document_manifest(tmp_path / "documents").dropped
    assert dropped == {"near-duplicate": 10, "repetition.max_top_2_gram_characters": 10}
    assert len(texts) == 100


def test_pairs_in_different_parts_meet(corpus: Path, tmp_path: Path) -> None:
    one, many = (
        PrepareConfig(sources=(corpus,), near_duplicates=MinHashSettings(threshold=0.6), part_mb=size)
        for size in (16, 0.005)
    )
    first, second = kept_texts(one, tmp_path / "one"), kept_texts(many, tmp_path / "many")
    assert sorted(first) == sorted(second)
    assert len(list((tmp_path / "many" / "work").glob("*.json"))) > 40


def test_lines_go_first_and_what_is_left_is_compared(tmp_path: Path) -> None:
    lines = [f"This is a good line, number {number}." for number in range(8)]
    texts = [
        "\n".join([*lines, "Use of javascript is needed here."]),
        "\n".join(["no end of a sentence", *lines]),
        prose(1),
    ]
    config = PrepareConfig(
        sources=(write_jsonl(tmp_path / "a.jsonl", texts),),
        quality=QualityConfig(repetition=None, gopher=None, c4=None, fineweb=None, lines=C4Lines()),
    )
    found = kept_texts(config, tmp_path / "run")
    assert sorted(found) == sorted(["\n".join(lines), prose(1)])
    card = (tmp_path / "run" / "documents" / "card.md").read_text()
    assert "| javascript | 1 |" in card
    assert "| no\\_end | 1 |" in card


def test_what_lines_take_is_told(tmp_path: Path) -> None:
    poem = "a line without an end\nwrite to ann@example.org\nand another one"
    good = "\n".join([prose(1), "a heading", "This was written by bob@example.org himself."])
    short = "\n".join(["One short line here.", "no end of a sentence, so that it goes"])
    texts = [poem, good, short, prose(2), " "]
    rules = QualityConfig(repetition=None, gopher=GopherRules(min_words=10), c4=None, fineweb=None, lines=C4Lines())
    config = PrepareConfig(
        sources=(write_jsonl(tmp_path / "a.jsonl", texts),),
        language=LanguageRules(model=TINY_LANGUAGES, keep=("cmn", "eng")),
        quality=rules,
        privacy=PrivacyConfig(),
        validation_fraction=0,
    )
    run = tmp_path / "run"
    kept_texts(config, run)
    manifest = load_document_manifest(run / "documents")
    assert manifest.dropped == {"nothing left of lines": 1, "too short": 1, "gopher.min_words": 1}
    [emptied] = show(run, "nothing left of lines", 5)
    assert emptied["text"] == poem.replace("ann@example.org", "<EMAIL_1>")
    assert (emptied["columns"]["chars_read"], emptied["columns"]["chars"]) == (len(poem), 0)
    assert show(run, "gopher.min_words", 5)[0]["text"] == short
    kept = [row["text"] for row in show(run, "kept", 5)]
    assert kept[0] != kept[1]
    assert sorted(kept) == sorted(row["text"] for row in documents(run))
    assert any(text.endswith("This was written by <EMAIL_1> himself.") for text in kept)
    card = (run / "documents" / "card.md").read_text()
    for line in ("a line without an end", "no end of a sentence"):
        assert line in card, "what was dropped is shown as it was read"
    assert "a heading" not in card
    assert "example.org" not in card
    tables = {block.columns[0]: block for block in load_card(run / "documents") if isinstance(block, Table)}
    read = sum(len(text.encode()) for text in texts)
    assert sum(int(row[3] or 0) for row in tables["language"].rows) == read
    assert read == sum(source.bytes for source in manifest.sources)


def test_samples_of_what_is_kept_are_as_it_is_written(tmp_path: Path) -> None:
    footer = "All rights to this long and tedious footer are reserved by its author."
    source = write_jsonl(tmp_path / "a.jsonl", [f"{prose(seed)}\n{footer}" for seed in range(3)])
    kept_texts(PrepareConfig(sources=(source,), repeated_units=(UnitSettings(),)), tmp_path / "run")
    assert (tmp_path / "run" / "documents" / "card.md").read_text().count(footer) == 1
    shown = sorted(row["text"] for row in show(tmp_path / "run", "kept", 5))
    assert shown == sorted(row["text"] for row in documents(tmp_path / "run"))


def test_private_things_are_replaced_and_too_many_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"Write to ann{number}@example.org, and to ann{number}@example.org again." for number in range(9)]
    texts.append(" ".join(f"bob{number}@example.org" for number in range(30)))
    config = PrepareConfig(
        sources=(write_jsonl(tmp_path / "a.jsonl", texts),),
        privacy=PrivacyConfig(email=KindConfig(drop_beyond=5)),
        validation_fraction=0.2,
    )
    kept_texts(config, tmp_path / "run")
    written = [row["text"] for row in documents(tmp_path / "run")]
    assert written == ["Write to <EMAIL_1>, and to <EMAIL_1> again."] * 9
    assert load_document_manifest(tmp_path / "run" / "documents").dropped == {"privacy.email": 1}
    page = (tmp_path / "run" / "documents" / "card.md").read_text()
    assert "| email | 18 | replace |" in page
    assert "example.org" not in page, "a card is shown to others"
    assert not any("example.org" in row["text"] for row in show(tmp_path / "run", None, 10))
    monkeypatch.setattr(tally, "scrub", lambda *_: pytest.fail("samples that nobody sees"))
    assert what_if(tmp_path / "run", ["privacy.email.drop_beyond=1"]).then.documents == 0
    assert "| name |" not in page


def documents(directory: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return [row for path in sorted(directory.glob("documents/*/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_languages_and_scores(tmp_path: Path) -> None:
    good, bad = [prose(seed) for seed in range(40)], ["zzz " * 30 + str(seed) for seed in range(40)]
    classifier = train_classifier(pa.array(good), pa.array(bad), ClassifierConfig(bits=12))
    classifier.save(tmp_path / "classifier")
    train_ngrams([pa.array(good)], NgramConfig(order=2)).save(tmp_path / "ngrams")
    source = write_jsonl(tmp_path / "a.jsonl", good[:20] + bad[:5])
    config = PrepareConfig(
        sources=(source,),
        language=LanguageRules(model=TINY_LANGUAGES),
        classifiers={"good": ClassifierRule(model=tmp_path / "classifier", min=0.5)},
        perplexity=ScoreRule(model=tmp_path / "ngrams"),
    )
    texts = kept_texts(config, tmp_path / "run")
    assert sorted(texts) == sorted(good[:20])
    assert load_document_manifest(tmp_path / "run" / "documents").dropped == {"classifier.good.min": 5}
    [shown] = show(tmp_path / "run", "classifier.good.min", 1)
    assert shown["columns"]["classifier.good"] < 0.5
    assert shown["columns"]["language"] is not None
    perplexities = [row["columns"]["perplexity"] for row in show(tmp_path / "run", "kept", 20)]
    assert max(perplexities) < shown["columns"]["perplexity"]
    languages = [row["columns"]["language"] for row in show(tmp_path / "run", None, 25)]
    changed = what_if(tmp_path / "run", ["language.keep=[fra]"])
    assert {reason: then for reason, _, then in changed.rows()}["language"] == sum(name != "fra" for name in languages)
    with pytest.raises(UsageError, match="knows no language"):
        what_if(tmp_path / "run", ["language.keep=[english]"])


def test_what_if_is_what_would_be(corpus: Path, tmp_path: Path) -> None:
    config = PrepareConfig(sources=(corpus,), quality=GOPHER, near_duplicates=MinHashSettings())
    kept_texts(config, tmp_path / "run")
    before = hash_path(tmp_path / "run" / "documents")
    found = what_if(tmp_path / "run", ["quality.gopher.min_words=85", "prepare.near_duplicates.threshold=0.6"])
    changed = config.model_copy(
        update={
            "quality": GOPHER.model_copy(update={"gopher": GopherRules(min_words=85)}),
            "near_duplicates": MinHashSettings(threshold=0.6),
        }
    )
    kept = kept_texts(changed, tmp_path / "other")
    assert (found.then.documents, found.then.bytes) == (len(kept), sum(len(text) for text in kept))
    assert found.now.documents > found.then.documents
    expected = load_document_manifest(tmp_path / "other" / "documents").dropped
    assert {reason: then for reason, _, then in found.rows() if then} == expected
    assert hash_path(tmp_path / "run" / "documents") == before


def test_questions_are_about_what_was_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [prose(seed, 60 + seed) for seed in range(40)])
    good, bad = pa.array([prose(seed) for seed in range(50, 80)]), pa.array([f"zzz {seed}" for seed in range(30)])
    train_classifier(good, bad, ClassifierConfig(bits=10)).save(tmp_path / "good")
    classifiers = {"good": ClassifierRule(model=tmp_path / "good")}
    kept_texts(PrepareConfig(sources=(source,), quality=GOPHER, classifiers=classifiers), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    asked = ["quality.gopher.min_words=65", "near_duplicates={}"]
    first, shown = what_if(tmp_path / "run", asked), show(tmp_path / "run", None, 40)
    assert (first.now.documents, first.changed) == (40, [])
    assert 0 < first.then.documents < 40
    capfd.readouterr()
    assert what_if(tmp_path / "run", asked) == first
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["rules", "duplicates", "near-duplicates", "counts"]
    source.touch()
    assert what_if(tmp_path / "run", asked) == first, "the same is in it"
    write_jsonl(source, [prose(7)])
    changed = what_if(tmp_path / "run", asked)
    assert (changed.now, changed.then, changed.changed) == (first.now, first.then, [source.as_posix()])
    source.unlink()
    shutil.rmtree(tmp_path / "good")
    assert what_if(tmp_path / "run", asked).then == first.then
    assert show(tmp_path / "run", None, 40) == shown
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before, "nothing is left behind"
    for path in (tmp_path / "run" / "work").glob("*-00000.arrow"):
        path.unlink()
    with pytest.raises(DataError, match="are gone"):
        what_if(tmp_path / "run", asked)


def test_pages_of_documents_are_all_of_them_once(corpus: Path, tmp_path: Path) -> None:
    kept_texts(PrepareConfig(sources=(corpus,), quality=GOPHER, part_mb=0.02), tmp_path)
    pages = [show(tmp_path, None, 50, skip) for skip in (0, 50, 100)]
    assert len({row["id"] for page in pages for row in page}) == sum(len(page) for page in pages) == 120
    assert [row["fate"] for row in show(tmp_path, "gopher.min_words", 5)] == ["gopher.min_words"]
    assert show(tmp_path, "kept", 5, seed=1) != show(tmp_path, "kept", 5) == show(tmp_path, "kept", 5)
    with pytest.raises(UsageError, match="no documents on that page"):
        show(tmp_path, "kept", 50, 500)
    with pytest.raises(UsageError, match="no document has come"):
        show(tmp_path, "gopher.min_word", 5)


def test_only_what_is_prepared_can_be_looked_at(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared documents"):
        open_prepared(tmp_path)
    kept_texts(PrepareConfig(sources=(corpus,)), tmp_path / "prepare")
    assert open_prepared(tmp_path).directory == tmp_path / "prepare"
    with pytest.raises(UsageError, match="what if"):
        what_if(tmp_path, [])
    with pytest.raises(UsageError, match="min_wrods"):
        what_if(tmp_path, ["quality.gopher.min_wrods=3"])
    for setting in ("sources=[/tmp]", "text_field=zzz", "part_mb=3", "prepare.split=lines"):
        with pytest.raises(UsageError, match="how sources are read") as refused:
            what_if(tmp_path, [setting])
        assert "run tallow prepare" in refused.value.hint
    config = PrepareConfig(sources=(corpus,), min_chars=7)
    (tmp_path / "prepare" / RECIPE).write_text(dump_recipe({"prepare": config.model_dump(mode="json")}))
    with pytest.raises(DataError, match="not finished"):
        open_prepared(tmp_path)
    record = tmp_path / "prepare" / "work" / "examined.json"
    record.write_text("{}")
    with pytest.raises(DataError, match="damaged"):
        open_prepared(tmp_path)


def test_bounds_between_which_nothing_lies_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing lies"):
        QuantileRule(column="chars", low=0.6, high=0.4)
    with pytest.raises(ValueError, match="nothing lies"):
        ScoreRule(model=tmp_path, min=0.9, max=0.1)
    with pytest.raises(ValueError, match="nothing lies between min_words 9 and max_words 8"):
        GopherRules(min_words=9, max_words=8)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ClassifierRule(model=tmp_path, min=7)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("quantiles=[{column: sizes, low: 0.1}]", "no column of numbers sizes"),
        ("contamination={benchmarks: [BENCHMARK], fields: [questoin]}", "has none of the fields questoin"),
    ],
)
def test_what_is_misspelt_is_said_before_duplicates_are_sought(
    setting: str, complaint: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = write_jsonl(tmp_path / "b.jsonl", [prose(9)])
    values = apply_overrides({"sources": [str(corpus)]}, [setting.replace("BENCHMARK", str(benchmark))])
    monkeypatch.setattr("tallow.data.examine.unique", lambda *_: pytest.fail("too late"))
    with pytest.raises(UsageError, match=complaint):
        prepare(parse_section(PrepareConfig, values, "prepare"), StageRun(tmp_path / "run"))


def test_what_does_nothing_is_said(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = PrepareConfig(sources=(corpus,), quality=GOPHER, licences={"*.jsonl": "CC0", "book*": "MIT"})
    with pytest.raises(DataError):  # what else it would come to does not matter here
        prepare(config.model_copy(update={"min_chars": 10**9}), StageRun(tmp_path / "none"))
    said = capsys.readouterr().err
    assert "rules for English, such as stop words, are asked of all texts" in said
    other = PrepareConfig(sources=(corpus,), licences=config.licences, near_duplicates=MinHashSettings(threshold=0.6))
    prepare(other, StageRun(tmp_path / "run"))
    said = capsys.readouterr().err
    assert "no source is called book*" in said
    assert "14 bands of 8 rows find pairs by their similarity: 5.3% at 0.5, 21.1% at 0.6" in said
    assert "*.jsonl" not in said
    assert "English" not in said


def test_when_nothing_is_left_other_bounds_can_be_tried(corpus: Path, tmp_path: Path) -> None:
    config = PrepareConfig(sources=(corpus,), quality=GOPHER.model_copy(update={"gopher": GopherRules(min_words=500)}))
    with pytest.raises(DataError, match=r"none is left .dropped by: gopher\.min_words 120"):
        kept_texts(config, tmp_path)
    (tmp_path / RECIPE).write_text(dump_recipe({"prepare": config.model_dump(mode="json")}))
    assert what_if(tmp_path, ["quality.gopher.min_words=50"]).then.documents > 90


def test_a_rule_that_is_misspelt_is_an_error() -> None:
    with pytest.raises(ValueError, match="extra_forbidden"):
        QualityRules.model_validate({"gofer": {}})


@pytest.mark.shared_data
def test_other_bounds_need_no_second_look_at_the_texts(
    shared_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shared_data("corpus_handbook", "handbook.de-DE.jsonl.xz")
    kept_texts(PrepareConfig(sources=(source,), quality=QualityConfig(), part_mb=0.5), tmp_path)
    done: list[str] = []
    perform = LocalEngine.run
    monkeypatch.setattr(
        LocalEngine, "run", lambda self, tasks: (done.extend(t.step.name for t in tasks), perform(self, tasks))[1]
    )
    what_if(tmp_path, ["quality.gopher.min_words=100"])
    assert {name.rpartition(":")[2] for name in done} <= {"JUDGE", "KEYS", "SMALLEST", "DROP", "TALLY"}
    assert "JUDGE" in {name.rpartition(":")[2] for name in done}


def test_items_of_benchmarks_go(tmp_path: Path) -> None:
    texts = [prose(seed, 200) for seed in range(20)]
    question = "How many apples does the gardener of the old monastery sell on the market each Saturday morning in May?"
    texts[3] = f"{texts[3]} {question} {texts[4]}"
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"question": question, "answer": "seven"}) + "\n")
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    actions: dict[Literal["drop", "cut"], int] = {"drop": 19, "cut": 20}
    for action, count in actions.items():
        config = PrepareConfig(
            sources=(source,), contamination=ContaminationConfig(benchmarks=(items,), action=action, around=10)
        )
        kept_texts(config, tmp_path / action)
        written = [row["text"] for row in documents(tmp_path / action)]
        assert len(written) == count
        assert not any("monastery" in text for text in written)
        card = (tmp_path / action / "documents" / "card.md").read_text()
        assert "100%, in" in card
    dropped = load_document_manifest(tmp_path / "drop" / "documents").dropped
    assert dropped == {"contaminated": 1}
    items.unlink()
    asked = what_if(tmp_path / "drop", ["min_chars=2"])
    assert (asked.now.documents, asked.then.documents, asked.changed) == (19, 19, [items.as_posix()])


def test_what_occurs_before_is_cut_out(tmp_path: Path) -> None:
    footer = "All rights to this long and tedious footer are reserved by its author."
    passage = " ".join(f"passage{number}" for number in range(40))
    texts = [f"{prose(seed)}\n{footer}" for seed in range(8)] + [footer]
    texts += [f"{prose(seed)} {passage} {prose(seed + 100)}" for seed in (20, 21)]
    config = PrepareConfig(
        sources=(write_jsonl(tmp_path / "a.jsonl", texts),),
        repeated_units=(UnitSettings(),),
        repeated_substrings=SubstringSettings(),
    )
    kept_texts(config, tmp_path / "run")
    written = [row["text"] for row in documents(tmp_path / "run")]
    assert sum(text.count(footer) for text in written) == 1
    assert sum(text.count(passage) for text in written) == 1
    dropped = load_document_manifest(tmp_path / "run" / "documents").dropped
    assert dropped in ({}, {"nothing left": 1})
    assert len(written) == 11 - sum(dropped.values())
    assert "Repeated passages" in (tmp_path / "run" / "documents" / "card.md").read_text()


def test_selection_keeps_shares_of_what_is_left(tmp_path: Path) -> None:
    chance = random.Random(0)
    alike = [" ".join(chance.choices(["sea", "ship", "sail", "wave"], k=40)) for _ in range(40)]
    other = [" ".join(chance.choices(["bread", "oven", "flour", "yeast"], k=40)) for _ in range(40)]
    target = write_jsonl(
        tmp_path / "target.jsonl", [" ".join(chance.choices(["ship", "sail"], k=40)) for _ in range(9)]
    )
    source = write_jsonl(tmp_path / "a.jsonl", [*alike, *other])
    config = PrepareConfig(
        sources=(source,),
        quantiles=(QuantileRule(column="chars", low=0.1),),
        importance=ImportanceRule(target=(target,), share=0.25),
        diversity=DiversityRule(share=0.5, clusters=4),
    )
    found = kept_texts(config, tmp_path / "run")
    dropped = load_document_manifest(tmp_path / "run" / "documents").dropped
    assert dropped == {"quantiles.chars": 8, "importance": 54, "diversity": 9}
    card = load_card(tmp_path / "run" / "documents")
    [drops] = [block for block in card if isinstance(block, Table) and block.columns[0] == "reason"]
    reasons = ["too short", "duplicate", "quantiles.chars", "importance", "diversity"]
    assert [row[0] for row in drops.rows] == reasons, "as they were asked"
    sizes = {row[0]: int(row[2] or 0) for row in drops.rows}
    kept_bytes = sum(len(text.encode()) for text in found)
    assert sum(sizes.values()) == sum(len(text.encode()) for text in (*alike, *other)) - kept_bytes
    assert 0 == sizes["duplicate"] < sizes["diversity"] < sizes["importance"]
    summary = next(block.text for block in card if isinstance(block, Paragraph))
    assert "80 documents (16.7 kB) were read; 9 (" in summary
    assert set(found) <= set(alike)
    with pytest.raises(UsageError, match="no column of numbers nothing"):
        kept_texts(PrepareConfig(sources=(source,), quantiles=(QuantileRule(column="nothing"),)), tmp_path / "bad")


def test_a_benchmark_without_anything_to_look_for_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"a": 1}\n')
    source = write_jsonl(tmp_path / "a.jsonl", [prose(1), prose(2)])
    config = PrepareConfig(sources=(source,), contamination=ContaminationConfig(benchmarks=(tmp_path / "items.jsonl",)))
    with pytest.raises(DataError, match="long enough to be looked for"):
        prepare(config, StageRun(tmp_path / "run"))


def test_inputs_of_sections_within_are_inputs_of_the_stage(tmp_path: Path) -> None:
    items, source = tmp_path / "items.jsonl", write_jsonl(tmp_path / "a.jsonl", [prose(1), prose(2)])
    config = PrepareConfig(
        sources=(source,),
        contamination=ContaminationConfig(benchmarks=(items,)),
        classifiers={"good": ClassifierRule(model=tmp_path / "model")},
    )
    paths = stages.input_paths(config)
    assert paths == {
        "sources.0": source,
        "contamination.benchmarks.0": items,
        "classifiers.good.model": tmp_path / "model",
    }


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("perplexity={model: PLACE}", "ngram.json does not exist"),
        ("classifiers={good: {model: PLACE}}", "classifier.json does not exist"),
        ("classifiers={good: {model: PLACE/ngrams}}", "not a classifier"),
        ("language={model: PLACE}", "is a directory"),
        ("language={model: PLACE/notes.txt}", "not a fastText model"),
        ("semantic_duplicates={model: PLACE}", "holds no model"),
        ("contamination={benchmarks: [PLACE]}", "records are needed"),
    ],
)
def test_what_is_no_model_is_refused_before_it_is_hashed(
    setting: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path / "notes.txt", tmp_path / "ngrams" / "classifier.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    write_jsonl(tmp_path / "a.jsonl", [prose(1), prose(2)])
    values = {"sources": [str(tmp_path / "a.jsonl")]}
    config = parse_section(PrepareConfig, apply_overrides(values, [setting.replace("PLACE", str(tmp_path))]), "prepare")
    kept_texts(PrepareConfig(sources=(tmp_path / "a.jsonl",)), tmp_path / "other")
    for module in (stages, inputs):
        monkeypatch.setattr(module, "hash_input" if module is stages else "hash_path", lambda _: pytest.fail("hashed"))
    with pytest.raises(DataError, match=complaint):
        stages.run_stage("prepare", config, StageRun(tmp_path / "run"))
    if not setting.startswith("contamination"):
        with pytest.raises(DataError, match=complaint):
            what_if(tmp_path / "other", [setting.replace("PLACE", str(tmp_path))])


def test_a_stored_model_is_an_input_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = tmp_path / "models" / "tiny"
    stored.mkdir(parents=True)
    (stored / "config.json").write_text("{}")
    monkeypatch.setenv("TALLOW_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source = write_jsonl(tmp_path / "a.jsonl", [prose(1)])
    for name, place in (("tiny", stored), (str(stored), stored), ("unknown", Path("unknown"))):
        values = {
            "sources": [str(source)],
            "semantic_duplicates": {"model": name},
            "privacy": {"name": {"model": name}},
        }
        config = parse_section(PrepareConfig, values, "prepare")
        paths = input_paths(config)
        assert paths == {"sources.0": source, "semantic_duplicates.model": place, "privacy.name.model": place}
        assert parse_section(PrepareConfig, config.model_dump(mode="json"), "prepare") == config
    with pytest.raises(DataError, match=r"prepare\.semantic_duplicates\.model: unknown does not exist"):
        require_inputs("prepare", paths)


def test_the_card_tells_what_is_written(corpus: Path, tmp_path: Path) -> None:
    config = PrepareConfig(sources=(corpus,), quality=GOPHER, repeated_substrings=SubstringSettings(min_bytes=100))
    kept_texts(config, tmp_path / "run")
    manifest = load_document_manifest(tmp_path / "run" / "documents")
    written = sum(len(row["text"].encode()) for row in documents(tmp_path / "run"))
    assert written == sum(counts.bytes for counts in manifest.splits.values())
    [sources] = [
        b for b in load_card(tmp_path / "run" / "documents") if isinstance(b, Table) and "licence" in b.columns
    ]
    read = manifest.sources[0]
    kept = sum(counts.documents for counts in manifest.splits.values())
    assert sources.rows == ((read.name, read.documents, kept, read.bytes, written, "not stated"),)
    now = what_if(tmp_path / "run", ["min_chars=1"]).now
    assert (now.documents, now.bytes) == (kept, written)
    assert written < sum(len(text) for text in kept_texts(config, tmp_path / "run"))
