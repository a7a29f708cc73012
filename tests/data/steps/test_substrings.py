"""Substrings that occur before go, wherever documents lie and however they are cut into parts."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.data.steps.corpora import by_text, make_parts, same_with_two_processes, ways_to_part

from tallow.data.duplicates.substrings import SubstringSettings
from tallow.data.steps.substrings import repeated_substrings
from tallow.data.work.engines import LocalEngine
from tallow.data.work.work import Work
from tallow.kernels.dispatch import prefers_fast
from tallow.kernels.text import native

ALPHABET = "abcdefgh é中😀"


def make_texts(seed: int) -> list[str]:
    """Pieces of a few passages, runs of one letter and of two, copies, and what occurs once."""
    chance = random.Random(seed)

    def drawn(length: int) -> str:
        return "".join(chance.choices(ALPHABET, k=length))

    passages = [drawn(90) for _ in range(4)]
    texts = ["?", "", "a" * 60, "中" * 30]
    for _ in range(40):
        text = drawn(chance.randrange(20))
        for _ in range(chance.randrange(3)):
            passage = chance.choice([*passages, "a" * 80, "ab" * 30, "abcde" * 12])
            begin = chance.randrange(60)
            text += passage[begin : begin + chance.randrange(60)] + drawn(chance.randrange(20))
        texts.append(text)
    return [*texts, *texts[10:16]]


def by_brute_force(texts: list[tuple[bytes, str]], settings: SubstringSettings) -> list[list[tuple[int, int]]]:
    """Ranges of bytes in the order of ids."""
    window = settings.min_bytes
    seen: dict[bytes, int] = {}
    found = []
    for number, (_, text) in enumerate(texts):
        data = text.encode()
        gone = set[int]()
        for at in range(len(data) - window + 1) if len(text) > 1 else ():
            here = data[at : at + window]
            if here in seen and (settings.within or seen[here] < number):
                gone |= set(range(at, at + window))
            seen.setdefault(here, number)
        ranges = []
        for at in sorted(gone):
            if ranges and ranges[-1][1] == at:
                ranges[-1][1] = at + 1
            else:
                ranges.append([at, at + 1])
        starts = {len(text[:i].encode()) for i in range(len(text) + 1)}
        found.append(
            [(min(at for at in starts if at >= begin), max(at for at in starts if at <= end)) for begin, end in ranges]
        )
    return found


@pytest.mark.parametrize(
    "settings",
    [SubstringSettings(min_bytes=16), SubstringSettings(min_bytes=16, within=False), SubstringSettings(min_bytes=41)],
)
def test_what_is_cut_is_what_occurs_before(tmp_path: Path, settings: SubstringSettings) -> None:
    for number, (parted, part_bytes) in enumerate(ways_to_part(make_texts(1), 2)):
        work = Work(tmp_path / str(number), LocalEngine(1))
        parts, verdicts = make_parts(work, parted)
        made = repeated_substrings(work, parts, verdicts, settings, part_bytes)
        rows = by_text(parts, made, "cuts")
        expected = by_brute_force([row[:2] for row in rows], settings)
        assert [[(cut["begin"], cut["end"]) for cut in cuts] for _, _, cuts in rows] == expected
        size = sum(end - begin for ranges in expected for begin, end in ranges)
        assert sum(part.counts["repeated_bytes"] for part in made) == size > 500


def test_two_processes_make_the_same(tmp_path: Path) -> None:
    texts, settings = make_texts(3), SubstringSettings(min_bytes=16)
    parted = [texts[:20], texts[20:25], texts[25:]]
    assert same_with_two_processes(
        tmp_path, parted, lambda work, parts, verdicts: repeated_substrings(work, parts, verdicts, settings, 1000)
    )


def test_a_text_a_thousand_times(tmp_path: Path) -> None:
    if native() is None or not prefers_fast():
        pytest.skip("the references are slow")
    chance = random.Random(0)
    text = "".join(chance.choices(ALPHABET, k=700))
    work = Work(tmp_path, LocalEngine(1))
    parts, verdicts = make_parts(work, [[text] * 600, [text] * 400, ["a" * 1_000_000]])
    made = repeated_substrings(work, parts, verdicts, SubstringSettings(), 2**20)
    size = len(text.encode())
    *cuts, last = [cuts for _, _, cuts in sorted(by_text(parts, made, "cuts"), key=lambda row: len(row[1]))]
    assert last == [{"begin": 1, "end": 1_000_000}]
    assert sorted(cuts, key=len) == [[]] + [[{"begin": 0, "end": size}]] * 999
