"""Lines and paragraphs that occur before go, wherever documents lie."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from tests.data.steps.corpora import by_text, make_parts, same_with_two_processes, ways_to_part

from tallow.data.duplicates.units import UnitSettings
from tallow.data.steps.units import repeated_units
from tallow.data.work.engines import LocalEngine
from tallow.data.work.work import Work

SEPARATORS = {"line": "\n", "paragraph": "\n\n"}


def make_texts(seed: int, separator: str) -> list[str]:
    chance = random.Random(seed)
    units = [f"unit {number // 3}{' ' * (number % 3)} é" for number in range(90)] + ["}", "}", "x"]
    return ["?", *(separator.join(chance.choices(units, k=chance.randrange(6))) for _ in range(60))]


def by_brute_force(texts: list[tuple[bytes, str]], settings: UnitSettings, separator: str) -> list[str]:
    """What is left of texts in the order of their ids."""
    plain = {id: [" ".join(unit.split()) for unit in text.split(separator)] for id, text in texts if len(text) > 1}
    counts = Counter(unit for units in plain.values() for unit in units)
    seen: dict[str, bytes] = {}
    left = []
    for id, text in texts:
        stay = []
        for unit, name in zip(text.split(separator), plain.get(id, ()), strict=False):
            again = name in seen and (settings.within or seen[name] != id)
            seen.setdefault(name, id)
            if not again or len(name) < settings.min_chars or counts[name] < settings.min_count:
                stay.append(unit)
        left.append(separator.join(stay) if id in plain else text)
    return left


@pytest.mark.parametrize(
    "settings",
    [
        UnitSettings(min_chars=7),
        UnitSettings(min_chars=7, within=False),
        UnitSettings(min_chars=7, min_count=4),
        UnitSettings(unit="paragraph", min_chars=7),
    ],
)
def test_what_is_cut_is_what_occurs_before(tmp_path: Path, settings: UnitSettings) -> None:
    separator = SEPARATORS[settings.unit]
    texts = make_texts(1, separator)
    found = []
    for number, (parted, part_bytes) in enumerate(ways_to_part(texts, 2)):
        work = Work(tmp_path / str(number), LocalEngine(1))
        parts, verdicts = make_parts(work, parted)
        made = repeated_units(work, parts, verdicts, settings, part_bytes)
        rows = by_text(parts, made, "cuts")
        found.append([cuts for _, _, cuts in rows])
        left = []
        for _, text, cuts in rows:
            data = text.encode()
            for cut in reversed(cuts):
                data = data[: cut["begin"]] + data[cut["end"] :]
            left.append(data.decode())
        expected = by_brute_force([row[:2] for row in rows], settings, separator)
        assert [text.rstrip("\n") for text in left] == [text.rstrip("\n") for text in expected]
        assert sum(made.counts["repeated_bytes"] for made in made) == sum(
            len(text.encode()) - len(rest.encode()) for (_, text, _), rest in zip(rows, left, strict=True)
        )
        assert sum(made.counts["repeated_units"] for made in made) > 20
    assert found[0] == found[1] == found[2]


def test_two_processes_make_the_same(tmp_path: Path) -> None:
    texts = make_texts(3, "\n")
    parted = [texts[:20], texts[20:25], texts[25:]]
    assert same_with_two_processes(
        tmp_path,
        parted,
        lambda work, parts, verdicts: repeated_units(work, parts, verdicts, UnitSettings(min_chars=7), 500),
    )
