"""Items of benchmarks that were planted are found, and what is merely like them is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from tallow.data.contamination.benchmarks import Search, SearchSettings, load_items
from tallow.data.contamination.overlap import annotate
from tallow.data.contamination.report import as_markdown
from tallow.data.contamination.rule import ContaminationRule, judge
from tallow.data.edits import make_edits
from tallow.data.read import Document, read_records
from tallow.data.sources import hashed_files
from tallow.data.steps.contamination import find_contamination, judge_contamination
from tallow.data.steps.judge import JUDGE, JudgeConfig
from tallow.data.steps.measure import SIZES, SizesStep
from tallow.data.steps.read import documents_table
from tallow.data.work.engines import LocalEngine
from tallow.data.work.step import Part, write_batches
from tallow.data.work.work import Work
from tallow.errors import DataError, UsageError
from tallow.kernels.dispatch import Versions, using

FILLER = "Nothing of what stands here has ever been asked in any examination, as far as anybody knows. "
QUESTION = (
    "Janet keeps 16 ducks, and each of them lays 3 eggs a day, of which she eats four for breakfast. "
    "How many eggs does she sell at the market in a week?"
)
ITEMS = [
    {"question": QUESTION, "answer": "She sells 308 of them, because 16 times 3 less 4 is 44, and 7 times 44 is 308."},
    {"question": "who wrote the oldest diary of London", "answer": ["Pepys", "Samuel Pepys"]},
    {"question": "Is it?", "choices": ["yes", "no"]},
]


def write(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def search(path: Path, **settings: object) -> Search:
    return Search(benchmarks=hashed_files((path,)), settings=SearchSettings.model_validate(settings))


def table(texts: Sequence[str]) -> pa.Table:
    return documents_table([Document.make(text, "source", offset) for offset, text in enumerate(texts)])


def found(texts: Sequence[str], wanted: Search) -> list[dict[str, object]]:
    columns, _, _ = annotate(table(texts), pa.array(texts, pa.string()), load_items(wanted))
    return columns.to_pylist()


def overlaps(texts: Sequence[str], wanted: Search) -> list[float]:
    return [float(str(row["contamination.overlap"])) for row in found(texts, wanted)]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return write(tmp_path / "items.jsonl", ITEMS)


def test_planted_items_are_found_and_near_ones_are_not(items: Path) -> None:
    planted = [
        FILLER + QUESTION + FILLER,
        FILLER + QUESTION.upper().replace(" ", "\n ").replace(",", " —"),  # as it stands elsewhere
        f"{FILLER} Who wrote the oldest diary of London? {FILLER}",
    ]
    near = [
        FILLER + QUESTION.replace("16", "17").replace("four", "five").replace("sell", "buy").replace("lays", "gives"),
        FILLER + " ".join(sorted(QUESTION.split())),
        f"Who wrote the oldest diary? {FILLER}",
        "Is it? yes no",
        "",
    ]
    versions: tuple[Versions, ...] = ("fast", "reference")
    for number, version in enumerate(versions):
        with using(version):
            rows = found(planted + near, search(items, common=9 + number))  # others than before, so made anew
        assert [row["contamination.item"] for row in rows] == [1, 1, 2, None, None, None, None, None]
        assert [row["contamination.overlap"] for row in rows] == [1, 1, 1, 0, 0, 0, 0, 0]
        assert rows[0]["contamination.spans"] == [
            {"begin": len(FILLER), "end": len(FILLER + QUESTION) - 1, "overlap": 1.0}
        ]
        assert rows[0]["contamination.words"] == pytest.approx(
            len(QUESTION.split()) / len((FILLER * 2 + QUESTION).split())
        )


def test_overlap_is_the_share_of_a_passage(items: Path) -> None:
    words = QUESTION.split()
    half = " ".join(words[:20])
    assert overlaps([half + FILLER], search(items)) == [pytest.approx((20 - 12) / (len(words) - 12))]
    assert overlaps([half + FILLER], search(items, gram_words=8)) == [pytest.approx((20 - 7) / (len(words) - 7))]


def test_short_passages_count_together_and_only_alone(tmp_path: Path) -> None:
    choices = [f"the {name} choice of all that there are" for name in ("first", "second", "third", "last")]
    path = write(tmp_path / "a.jsonl", [{"q": QUESTION, "choices": choices}, {"q": "why", "choices": choices[:3]}])
    rows = found([f"it is {choices[0]}, or {choices[1]}", choices[3]], search(path))
    assert [row["contamination.item"] for row in rows] == [2, None]
    assert rows[0]["contamination.overlap"] == pytest.approx(2 / 3)


def test_phrases_of_a_benchmark_are_not_its_items(tmp_path: Path) -> None:
    prompt = "Answer the question that follows as briefly and as truthfully as you can, and say so if you cannot."
    items = [{"prompt": prompt, "q": f"{prompt} What is the capital of country number {n}?"} for n in range(9)]
    path = write(tmp_path / "a.jsonl", items)
    asked = str(items[3]["q"])
    assert overlaps([FILLER + prompt, asked], search(path)) == [1, 1]
    rows = found([FILLER + prompt, asked], search(path, common=5))
    assert [row["contamination.item"] for row in rows] == [None, 4]


def test_labels_are_no_part_of_a_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"context": "Question: What kind of animal is a tiny dik-dik?\nAnswer:"}])
    text = ["And what kind of animal is a tiny dik-dik? I asked."]
    assert overlaps(text, search(path)) == [1]
    assert overlaps(text, search(path, labels=())) == [0]


def test_fields_are_chosen_and_misnamed_ones_are_errors(items: Path) -> None:
    answer = str(ITEMS[0]["answer"])
    assert overlaps([answer], search(items)) == [1]
    assert overlaps([answer], search(items, fields=("question",))) == [0]
    with pytest.raises(UsageError, match="none of the fields qestion"):
        load_items(search(items, fields=("qestion",)))
    with pytest.raises(UsageError, match="no benchmark has a field qestion"):
        load_items(search(items, fields=("question", "qestion")))
    with pytest.raises(DataError, match="long enough"):
        load_items(search(write(items.parent / "b.jsonl", ITEMS[2:])))


def corpus(chance: int) -> list[str]:
    texts = [f"{number} {FILLER * (number % 3)}" for number in range(60)]
    texts[7] += QUESTION
    texts[chance] += f" {QUESTION} {ITEMS[1]['question']}"
    texts[31] += " ".join(QUESTION.split()[:20])
    return texts


def work_on(directory: Path, processes: int, size: int, wanted: Search) -> tuple[list[object], str, list[object]]:
    """Columns of all documents, the report, and verdicts, of a corpus in parts of a size."""
    documents = table(corpus(44))
    with LocalEngine(processes) as engine:
        work = Work(directory, engine)
        parts = []
        for begin in range(0, len(documents), size):
            path = directory / f"part{begin}.arrow"
            piece = documents.slice(begin, size)
            write_batches(piece.combine_chunks().to_batches(), path)
            parts.append(Part(path, piece.num_rows))
        found = find_contamination(work, parts, wanted)
        sizes = [made for [made] in work.each(SIZES, [(SizesStep(), [part]) for part in parts])]
        rules = JudgeConfig(min_chars=4)
        verdicts = [made for [made] in work.each(JUDGE, [(rules, [each]) for each in sizes])]
        judged = judge_contamination(work, parts, verdicts, found.columns, ContaminationRule(overlap=0.5))
        rows = [row for part in found.columns for row in part.read().to_pylist()]
        told = [reason for part in judged for reason in part.read().column("dropped_by").to_pylist()]
    return rows, as_markdown(found.report()), told


def test_parts_and_processes_change_nothing(tmp_path: Path, items: Path) -> None:
    wanted = search(items)
    whole = work_on(tmp_path / "whole", 1, 60, wanted)
    assert work_on(tmp_path / "parts", 1, 7, wanted) == whole
    assert work_on(tmp_path / "processes", 2, 23, wanted) == whole
    _, report, told = whole
    assert [row for row, reason in enumerate(told) if reason == "contaminated"] == [7, 44]
    assert "too short" in told
    line = next(line for line in report.splitlines() if "items.jsonl |" in line)
    assert line.endswith("| 3 | 1 | 2 | 100.00% | 100.00% | 100.00% | 100.00% |")
    assert "Janet keeps 16 ducks" in report


def test_what_is_found_is_cut_with_what_is_around(items: Path) -> None:
    wanted, around = search(items), "«é»" * 30
    texts = [
        f"{FILLER * 3}{around} {QUESTION} {around}{FILLER * 3}",
        f"{FILLER}{QUESTION}{FILLER * 3}",
        QUESTION,
        FILLER,
        (FILLER * 3 + QUESTION) * 4,
    ]
    columns, _, _ = annotate(table(texts), pa.array(texts), load_items(wanted))
    rule = ContaminationRule(action="cut", around=45, shortest_piece=150, most_pieces=3)
    dropped, edits = judge(pa.array(texts), columns, rule)
    assert dropped.tolist() == [False, False, True, False, True]
    rest = make_edits(pa.array(texts), [edits]).to_pylist()
    left, right = rest[0].split("\n\n")
    assert left == f"{FILLER * 3}{around}"[: -(45 - 1)]  # a space was there, too
    assert right == f"{around}{FILLER * 3}"[45 - 2 :]  # a question mark and a space
    assert rest[1] == (FILLER * 3)[45 - 1 :]
    assert rest[3] == FILLER
    drop, none = judge(pa.array(texts), columns, ContaminationRule())
    assert drop.tolist() == [True, True, True, False, True]
    assert not any(none.to_pylist())


@pytest.mark.shared_data
def test_real_items_are_found_where_they_are(shared_data: Callable[..., Path]) -> None:
    """Every fifth question of a benchmark is in the corpus; those of another set of the same kind are not."""
    path = shared_data("gsm8k", "test.jsonl.gz")
    wanted = Search(benchmarks=hashed_files((path,)), settings=SearchSettings(fields=("question",)))
    questions = [str(record.fields["question"]) for record in read_records(path)]
    planted = [FILLER + question.replace("’", "'") for question in questions[::5]]
    others = [str(record.fields["question"]) for record in read_records(shared_data("gsm8k", "train.jsonl.gz"))]
    items = load_items(wanted)
    columns, _, _ = annotate(table(planted + others), pa.array(planted + others), items)
    values = columns.column("contamination.overlap").to_numpy()
    hit = columns.column("contamination.item").to_pylist()
    assert (values[: len(planted)] == 1).all()
    assert hit[: len(planted)] == list(range(1, len(questions) + 1, 5))
    assert (values[len(planted) :] >= 0.5).mean() < 0.005
