from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallow.data.builtin import builtin
from tallow.data.config import (
    ContaminationConfig,
    DiversityRule,
    ImportanceRule,
    PrepareConfig,
    QualityConfig,
    QuantileRule,
)
from tallow.data.documents import read_documents_split
from tallow.data.duplicates.minhash import MinHashSettings
from tallow.data.duplicates.substrings import SubstringSettings
from tallow.data.duplicates.units import UnitSettings
from tallow.data.manifest import load_document_manifest
from tallow.data.prepare import prepare
from tallow.data.privacy.config import PrivacyConfig
from tallow.data.quality.c4 import C4Lines
from tallow.data.read import read_records
from tallow.data.work.cluster import ClusterConfig
from tallow.errors import DataError, TallowError, UsageError
from tallow.files import hash_file, hash_path
from tallow.recipe import dump_recipe, load_recipe, parse_section
from tallow.run import StageRun

RECIPES = Path(__file__).parents[2] / "recipes"
Prepare = Callable[..., Path]


@pytest.fixture
def run_prepare(tmp_path: Path) -> Prepare:
    """`run_prepare(sources, …)`: the directory of documents that the stage made."""

    def run(*sources: Path | str, name: str = "run", **settings: Any) -> Path:
        prepare(PrepareConfig(sources=sources, **settings), StageRun(tmp_path / name))
        return tmp_path / name / "documents"

    return run


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def rows(directory: Path, split: str) -> list[dict[str, Any]]:
    counts = load_document_manifest(directory).splits[split]
    return [row for batch in read_documents_split(directory / split, counts, 100) for row in batch.to_pylist()]


def test_documents_come_out_once_on_one_side_in_order(tmp_path: Path, run_prepare: Prepare) -> None:
    texts = [f"text {number % 150}" for number in range(200)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    directory = run_prepare(path, validation_fraction=0.2)
    train, validation = rows(directory, "train"), rows(directory, "validation")
    assert sorted(row["text"] for row in train + validation) == sorted(set(texts))
    assert 10 < len(validation) < 60
    for split in (train, validation):
        assert [row["offset"] for row in split] == sorted(row["offset"] for row in split)
    for row in train + validation:
        expected = sha256(json.dumps([row["source"], row["offset"], sha256(row["text"].encode()).hexdigest()]).encode())
        assert row["id"] == expected.hexdigest()[:32]
        assert row["source"] == path.as_posix()
        assert path.read_bytes()[row["offset"] :].startswith(json.dumps({"text": row["text"]}).encode())


def test_manifest_counts(tmp_path: Path, run_prepare: Prepare) -> None:
    texts = ["eins", "zwei", "zwei", "drei", " ", "vier", "fünf", "six", "seven", "eight", "nine", "ten", "eleven"]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    with open(path, "a") as file:
        file.write("bad\n")
    other = write_jsonl(tmp_path / "b.jsonl", ["eins", "twelve"])
    directory = run_prepare(path, other)
    manifest = load_document_manifest(directory)
    assert (manifest.dropped, manifest.rejected) == ({"duplicate": 2, "too short": 1}, 1)
    kept = {*texts, "twelve"} - {" "}
    assert sum(counts.documents for counts in manifest.splits.values()) == len(kept)
    assert sum(counts.bytes for counts in manifest.splits.values()) == sum(len(text.encode()) for text in kept)
    assert [(source.name, source.sha256, source.documents) for source in manifest.sources] == [
        (path.as_posix(), hash_file(path), 13),
        (other.as_posix(), hash_file(other), 2),
    ]
    assert json.loads((directory / "rejected.jsonl").read_text())["line"] == 14
    assert {path.name for path in directory.iterdir()} == {
        "train",
        "validation",
        "manifest.json",
        "rejected.jsonl",
        "card.md",
        "card.html",
        "card.json",
    }


def test_more_bad_records_than_are_listed_are_counted_and_told(
    tmp_path: Path, run_prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tallow.data.records.LISTED", 3)
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(10)])
    with open(path, "a") as file:
        file.write("bad\n" * 5)
    directory = run_prepare(path, max_bad_fraction=0.5)
    assert load_document_manifest(directory).rejected == 5
    assert [json.loads(line)["line"] for line in (directory / "rejected.jsonl").read_text().splitlines()] == [
        11,
        12,
        13,
    ]
    assert "where 2 of them are not listed" in capsys.readouterr().err


def test_files_that_end_early_are_named(
    tmp_path: Path, run_prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps({"text": f"text {number} {random.random()}"}) + "\n" for number in range(3000))
    for name in "abcdefgh":
        cut = -500 if name < "h" else None
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.replace("text ", name).encode())[:cut])
    (tmp_path / "i.jsonl").write_bytes(b"")  # of which there is nothing
    run_prepare(*sorted(tmp_path.glob("*.jsonl*")))
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "ended early" in line]
    assert "7 of 9 files ended early" in said
    assert all(str(tmp_path / f"{name}.jsonl.gz") in said for name in "abcde")
    assert "and 2 more; why is told in" in said
    assert "rejected.jsonl" in said


def test_survivor_and_split_do_not_depend_on_the_order_of_sources(tmp_path: Path, run_prepare: Prepare) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(60)])
    second = write_jsonl(tmp_path / "b.jsonl", [f"text {number}" for number in range(30, 90)])
    one = run_prepare(first, second, name="one", validation_fraction=0.2)
    two = run_prepare(second, first, name="two", validation_fraction=0.2)
    for split in ("train", "validation"):
        assert {row["id"] for row in rows(one, split)} == {row["id"] for row in rows(two, split)}


def test_duplicates_that_stay_stay_on_one_side(tmp_path: Path, run_prepare: Prepare) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {number % 20}" for number in range(100)])
    directory = run_prepare(path, deduplicate=False, validation_fraction=0.3)
    train, validation = rows(directory, "train"), rows(directory, "validation")
    assert len(train) + len(validation) == 100
    assert not {row["text"] for row in train} & {row["text"] for row in validation}


def test_two_documents_are_enough_and_one_is_not(tmp_path: Path, run_prepare: Prepare) -> None:
    directory = run_prepare(write_jsonl(tmp_path / "a.jsonl", ["one", "two", "two"]))
    assert len(rows(directory, "train")) == len(rows(directory, "validation")) == 1
    single = tmp_path / "book.txt"
    single.write_text("One paragraph.\n\nAnother.")
    with pytest.raises(DataError, match="only one document") as caught:
        run_prepare(single, name="single")
    assert "paragraphs" in caught.value.hint
    assert len(rows(run_prepare(single, name="split", split="paragraphs"), "validation")) == 1
    assert rows(run_prepare(single, name="all", validation_fraction=0), "validation") == []


def test_nothing_long_enough_is_a_data_error(tmp_path: Path, run_prepare: Prepare) -> None:
    with pytest.raises(DataError, match="of 2 documents none is left"):
        run_prepare(write_jsonl(tmp_path / "a.jsonl", ["short", "texts"]), min_chars=10)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["work"]


def test_same_input_same_bytes(tmp_path: Path, run_prepare: Prepare) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [f"text {number} " * (number % 50) + "." for number in range(3000)])
    assert hash_path(run_prepare(path, name="one")) == hash_path(run_prepare(path, name="two"))


def test_what_it_writes_it_also_reads(tmp_path: Path, run_prepare: Prepare) -> None:
    directory = run_prepare(write_jsonl(tmp_path / "a.jsonl", [f"text {number}" for number in range(50)]))
    again = run_prepare(directory / "train", name="again")
    texts = {row["text"] for split in ("train", "validation") for row in rows(again, split)}
    assert texts == {row["text"] for row in rows(directory, "train")}


def test_sources_expand_to_paths_and_survive_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("x")
    config = parse_section(PrepareConfig, {"sources": ["*.txt", "tallow:pepys"]}, "prepare")
    assert config.sources == (Path("a.txt"), Path("b.txt"), "tallow:pepys")
    assert parse_section(PrepareConfig, {"sources": "a.txt"}, "prepare").sources == (Path("a.txt"),)
    assert parse_section(PrepareConfig, config.model_dump(mode="json"), "prepare") == config
    assert "tallow:pepys" in dump_recipe(config.model_dump(mode="json"))
    for bad in ([], {"a": 1}, None, 7):
        with pytest.raises(UsageError):
            parse_section(PrepareConfig, {"sources": bad}, "prepare")
    with pytest.raises(DataError, match="no data file matches"):
        parse_section(PrepareConfig, {"sources": ["*.nothing"]}, "prepare")


def test_a_failed_run_leaves_the_earlier_product(tmp_path: Path, run_prepare: Prepare) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    before = hash_path(run_prepare(path))
    path.write_bytes(b"bad\nbad\n")
    with pytest.raises(TallowError):
        run_prepare(path)
    assert hash_path(tmp_path / "run" / "documents") == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["documents", "work"]


def test_the_recipe_for_texts_keeps_plays_which_rules_for_the_web_drop(tmp_path: Path) -> None:
    words = ["stars", "have", "turned", "and", "that", "old", "tree", "bends", "with", "winter", "night", "of", "the"]
    chance = random.Random(0)
    verses = ["\n".join(" ".join(chance.choices(words, k=7)) for _ in range(2)) for _ in range(30)]
    play = "\n\n".join(f"{('HAMLET', 'OPHELIA')[number % 2]}\n\n{verse}" for number, verse in enumerate(verses))
    prose = " ".join(f"{' '.join(chance.choices(words, k=12)).capitalize()}." for _ in range(8))
    path = write_jsonl(tmp_path / "a.jsonl", [play, prose])
    shipped = load_recipe(RECIPES / "texts.yaml")["prepare"]
    kept = list[bool]()
    for quality in (shipped["quality"], {}):
        values = {**shipped, "quality": quality, "language": None, "sources": [str(path)], "validation_fraction": 0}
        directory = tmp_path / str(len(kept))
        prepare(parse_section(PrepareConfig, values, "prepare"), StageRun(directory))
        kept.append(play in [row["text"] for row in rows(directory / "documents", "train")])
    assert kept == [True, False]


def test_shipped_diary_prepares(run_prepare: Prepare) -> None:
    directory = run_prepare("tallow:pepys")
    manifest = load_document_manifest(directory)
    assert manifest.splits["train"].documents + manifest.splits["validation"].documents == 3413
    assert manifest.sources[0].name == "tallow:pepys"
    assert manifest.sources[0].sha256 == hash_file(builtin("pepys"))
    assert (manifest.rejected, manifest.dropped) == (0, {})


@pytest.mark.shared_data
def test_real_corpora_keep_every_text(shared_data: Callable[..., Path], tmp_path: Path, run_prepare: Prepare) -> None:
    path = tmp_path / "shakespeare_milton.en.jsonl.xz"
    shutil.copy(shared_data("corpus_english_books", path.name), path)
    directory = run_prepare(path)
    expected = {record.fields["text"] for record in read_records(path)}
    assert {row["text"] for split in ("train", "validation") for row in rows(directory, split)} == expected


def test_large_documents_make_several_row_groups(tmp_path: Path, run_prepare: Prepare) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"{number}" * 600_000 for number in range(9, 19)]}), path)
    directory = run_prepare(path, validation_fraction=0)
    assert pq.ParquetFile(directory / "train" / "part-00000.parquet").num_row_groups == 3


@pytest.mark.shared_data
def test_any_number_of_processes_and_ray_write_the_same_bytes(
    shared_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_prepare: Prepare
) -> None:
    sources = [
        *sorted(shared_data("corpus_handbook", "handbook.de-DE.jsonl.xz").parent.glob("*.xz")),
        shared_data("corpus_russian_modern", "ud_gsd.ru.jsonl.xz"),
    ]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "src"), prepend=os.pathsep)
    items = shared_data("truthfulqa", "TruthfulQA.csv")
    clusters = {"one": {"processes": 1}, "two": {"processes": 2}, "ray": {"engine": "ray"}}
    made = {
        name: hash_path(
            run_prepare(
                *sources,
                name=name,
                cluster=ClusterConfig(**cluster),
                part_mb=0.5,
                quality=QualityConfig(lines=C4Lines(sentence_end=False)),
                near_duplicates=MinHashSettings(threshold=0.7),
                privacy=PrivacyConfig(),
                contamination=ContaminationConfig(benchmarks=(items,)),
                repeated_units=(UnitSettings(unit="paragraph"),),
                repeated_substrings=SubstringSettings(min_bytes=400),
                quantiles=(QuantileRule(column="chars", low=0.05),),
                importance=ImportanceRule(target=(sources[0],), share=0.9),
                diversity=DiversityRule(share=0.9, clusters=4),
            )
        )
        for name, cluster in clusters.items()
    }
    assert len(set(made.values())) == 1
    dropped = load_document_manifest(tmp_path / "ray" / "documents").dropped
    assert dropped["near-duplicate"] > 9
    assert dropped["gopher.min_words"] > 0
    assert len({hash_path(tmp_path / name / "work") for name in clusters}) == 1
    assert len(list((tmp_path / "one" / "work").glob("*.arrow"))) > 50
