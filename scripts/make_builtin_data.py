"""Make the data that the package ships from the Standard Ebooks edition of Pepys's Diary.

    python scripts/make_builtin_data.py pepys_diary.en.jsonl.xz [--out src/tallow/data/builtin]

The source has one JSON object a line (`id`, `text`): the book's files in plain text, `chapter-N.xhtml` a month
each. Written are `pepys.jsonl.xz` (`date`, `text`: one object a day) and `pepys_chat.jsonl.xz` (`messages`).
The same source gives the same bytes.
"""

from __future__ import annotations

import argparse
import calendar
import json
import lzma
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pepys_chat import conversations

FIRST_NOTE = 47  # the notes before it belong to the introduction

MONTHS = tuple(calendar.month_name)[1:]

HEADING = re.compile(
    rf"(?:(?:{'|'.join(name[:3] for name in MONTHS)})[a-z]*\.? )?"
    r"(?P<days>\d+(?:st|nd|rd|th)(?:, \d+(?:st|nd|rd|th))*)"
    r"(?:, \d{4})?(?: \((?P<note>[^)]*?)\.?\)| (?P<plain>Office day))?(?:\.|(?= …|(?<=\)) ))"
    r"(?: \((?P<late>[^)]*day)\.?\)\.?| (?P<bare>Lord’s day|Office day|Sunday)\.)?\s*"
)


@dataclass(frozen=True)
class Entry:
    """One day of the diary: its ISO date, its heading (`January 1st, 1660 (Lord’s day).`) and its paragraphs."""

    date: str
    heading: str
    body: str

    @property
    def text(self) -> str:
        return f"{self.heading} {self.body}"


def read_chapters(path: Path) -> list[str]:
    """The months of the diary, in their order."""
    with lzma.open(path, "rt", encoding="utf-8") as file:
        texts = {record["id"]: record["text"] for record in map(json.loads, file)}
    numbers = sorted(int(match[1]) for name in texts if (match := re.fullmatch(r"chapter-(\d+)\.xhtml", name)))
    return [texts[f"chapter-{number}.xhtml"] for number in numbers]


def strip_notes(text: str) -> str:
    """Remove the numbers of the notes, which the conversion to text glued to the word before.

    They count up without a gap, so each is looked for by its value, after the one before it: years, sums of
    money and "6047" for year 60 and note 47 come out right.
    """
    pieces, position, number = [], 0, FIRST_NOTE
    while match := re.compile(rf"(?<=[^\s£/(]){number}(?!\d)").search(text, position):
        pieces.append(text[position : match.start()])
        position, number = match.end(), number + 1
    return "".join(pieces) + text[position:]


def tidy(text: str) -> str:
    """Replace the typesetter's invisible characters: word joiners and hair spaces."""
    text = text.replace("\u2060\u200a\u2060…", " …")
    text = text.replace("\u2060", "").replace("\u200a", "")
    text = text.replace("–\n", "—\n")
    return unicodedata.normalize("NFC", text)


def entries(chapters: Iterable[str]) -> list[Entry]:
    """Cut the months into days; what stands before a month's first heading goes into its first day."""
    return [entry for chapter in chapters for entry in _month(chapter)]


def _month(chapter: str) -> list[Entry]:
    title, *paragraphs = chapter.split("\n\n")
    heading = re.fullmatch(r"(\w+) (\d{4})(?:–(\d{2}))?", title)
    assert heading, title
    month = heading[1]
    # Until 1752 the year began on 25 March; "1659–60" is 1660 as we count.
    year = int(heading[2]) + bool(heading[3])
    assert not heading[3] or year % 100 == int(heading[3]), title

    days: list[tuple[int, str, list[str]]] = []
    preamble: list[str] = []
    for paragraph in paragraphs:
        match = HEADING.match(paragraph)
        numbers = [int(number) for number in re.findall(r"\d+", match["days"])] if match else []
        if match is None or (days and numbers[0] <= days[-1][0]):
            (days[-1][2] if days else preamble).append(paragraph)
            continue
        first, *others = match["days"].split(", ")
        note = match["note"] or match["plain"] or match["late"] or match["bare"]
        when = f"{month} {first}{f' to {others[-1]}' if others else ''}, {year}{f' ({note})' if note else ''}."
        days.append((numbers[-1], f"{year}-{MONTHS.index(month) + 1:02}-{numbers[0]:02} {when}", []))
        days[-1][2].extend([*preamble, paragraph[match.end() :].strip()])
        preamble = []
    result = []
    for _, dated, body in days:
        date, when = dated.split(" ", 1)
        body[0] = re.sub(r"^\d{4}–\d{2}\. ", "", body[0])
        result.append(Entry(date, when, "\n\n".join(part for part in body if part)))
    return result


def write_jsonl(path: Path, records: Iterable[dict[str, object]]) -> None:
    """Write records as xz-packed JSON lines."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the data that the package ships.")
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/tallow/data/builtin"))
    arguments = parser.parse_args()
    chapters = tidy(strip_notes("\n\n\n".join(read_chapters(arguments.source)))).split("\n\n\n")
    diary = entries(chapters)
    write_jsonl(arguments.out / "pepys.jsonl.xz", ({"date": entry.date, "text": entry.text} for entry in diary))
    write_jsonl(arguments.out / "pepys_chat.jsonl.xz", conversations(diary))


if __name__ == "__main__":
    main()
