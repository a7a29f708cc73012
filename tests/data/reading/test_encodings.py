from __future__ import annotations

import bz2
import sys
import zlib
from pathlib import Path

import pytest
from tests.data.reading.conftest import Read

from tallow.data.read import ReadSettings
from tallow.data.reading.encodings import decide, decode
from tallow.data.reading.settings import Unusable
from tallow.data.records import Rejected
from tallow.errors import UsageError

RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему."
PERSIAN = "بنی آدم اعضای یک پیکرند که در آفرینش ز یک گوهرند، چو عضوی به درد آورد روزگار".replace("ی", "ي").replace(
    "ک", "ك"
)
CHINESE = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？人不知而不愠，不亦君子乎？"
FRENCH = "Longtemps, je me suis couché de bonne heure. L’été, à peine ma bougie éteinte, mes yeux se fermaient si vite."


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (PERSIAN, "cp1256"),
        (CHINESE, "gb18030"),
        (FRENCH, "cp1252"),
        (RUSSIAN, "utf-16"),
        (RUSSIAN, "utf-32"),
        ("plain", "utf-16"),
    ],
)
def test_found_and_counted(tmp_path: Path, read: Read, rejected: Rejected, text: str, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    (document,) = read(path)
    assert document.text == text
    ((note, times),) = rejected.notes.items()
    assert note.startswith("read as ")
    assert times == 1


def test_utf8_is_what_is_expected_and_its_mark_dropped(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    for name, text in (("a.txt", RUSSIAN), ("b.txt", "\ufeff" + RUSSIAN), ("c.txt", "plain")):
        (tmp_path / name).write_bytes(text.encode())
    assert [document.text for document in read(tmp_path)] == [RUSSIAN, RUSSIAN, "plain"]
    assert not rejected.notes


def test_mojibake_stays_as_it_is(tmp_path: Path, read: Read) -> None:
    wrong = FRENCH.encode().decode("cp1252", errors="replace")
    (tmp_path / "a.txt").write_text(wrong, encoding="utf-8")
    assert read(tmp_path / "a.txt")[0].text == wrong


@pytest.mark.parametrize("raw", [b"caf\xe9", bytes(range(128, 256)) * 3, b"\x89PNG\r\n\x1a\n\xff\xfe\xfa"])
def test_what_cannot_be_told_is_set_aside(raw: bytes) -> None:
    with pytest.raises(Unusable, match="nor in an encoding that can be told"):
        decide(raw, ReadSettings())


def test_a_character_that_the_sample_cuts_is_no_error(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" + "é".encode() * 40_000 + b"\nend")
    assert [len(document.text) for document in read(path, split="lines")] == [40_001, 3]


def test_lines_that_are_not_in_the_encoding_of_the_file_are_set_aside(
    tmp_path: Path, read: Read, rejected: Rejected
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a line of text\n" * 6000 + b"caf\xe9\nlast")
    assert read(path, split="lines")[-1].text == "last"
    assert rejected.bad == 1
    assert rejected.first.startswith(f"{path}, line 6001: is not utf-8 text (byte 90,003)")


def test_lines_of_utf16_are_refused(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("a\nb".encode("utf-16"))
    assert read(path, split="lines") == []
    assert "has no lines of bytes" in rejected.first
    assert "iconv" in rejected.hint


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("a.txt", "chardet", "chardet"),
        ("a.html", "resiliparse.parse.encoding", "resiliparse"),
        ("a.pdf", "pypdfium2", "pypdfium2"),
        ("a.warc", "fastwarc.warc", "fastwarc"),
    ],
)
def test_a_missing_package_names_the_extra(
    tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch, name: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(RUSSIAN.encode("cp1251"))
    with pytest.raises(UsageError, match=f"needs {package}") as caught:
        read(tmp_path / name)
    assert "tallow[data]" in caught.value.hint


@pytest.mark.parametrize("declared", ["zip", "bz2", "hex", "rot13", "undefined", "a\0b", "é" * 50, "utf-7", "idna"])
def test_a_declaration_cannot_unpack_or_break_a_text(declared: str) -> None:
    """Python has codecs from bytes to bytes too: a few kilobytes that are declared `zip` would become gigabytes."""
    bomb = zlib.compress(bytes(10**6)) if declared == "zip" else bz2.compress(bytes(10**6))
    settings = ReadSettings()
    for raw in (bomb, RUSSIAN.encode("cp1251"), b"+2AA- \xe9t\xe9, \xe0 la plage, l'\xe9t\xe9 fut tr\xe8s beau"):
        try:
            encoding = decide(raw, settings, declared=declared)
        except Unusable:
            continue
        assert encoding != declared
        decode(raw, encoding).encode()


def test_half_a_surrogate_pair_is_set_aside() -> None:
    with pytest.raises(Unusable, match="is not utf-7 text"):
        decode(b"+2AA-", "utf-7")
