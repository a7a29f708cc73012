from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.data.reading.conftest import Read

from tallow.data.reading import pdf
from tallow.data.reading.settings import Piece, ReadSettings
from tallow.data.records import Rejected
from tallow.data.sources import find_sources

ENCRYPT = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O (%b) /U (%b) /P -4 >> /ID [<00><00>]" % (b"o" * 32, b"u" * 32)
PICTURE = (
    b"<< /Type /XObject /Subtype /Image /Width 1 /Height 1 /ColorSpace /DeviceGray /BitsPerComponent 8 /Length 1 >>\n"
    b"stream\n\x7f\nendstream"
)


def make_pdf(pages: Sequence[Sequence[str] | None], trailer: bytes = b"", title: str = "") -> bytes:
    """A file with these lines on each page; None: a picture."""
    kids = b" ".join(b"%d 0 R" % (6 + 2 * index) for index in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%b] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Title (%b) >>" % title.encode(),
        PICTURE,
    ]
    for index, lines in enumerate(pages):
        if lines is None:
            content = b"q 600 0 0 700 0 0 cm /I1 Do Q"
        else:
            shown = b" ".join(b"(%b) Tj T*" % line.encode("cp1252") for line in lines)
            content = b"BT /F1 12 Tf 72 720 Td 14 TL %b ET" % shown
        objects += [
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> /XObject << /I1 5 0 R >> >> >>" % (7 + 2 * index),
            b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content),
        ]
    raw, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(raw))
        raw += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count, start = len(objects) + 1, len(raw)
    raw += b"xref\n0 %d\n0000000000 65535 f \n%b" % (count, table)
    return raw + b"trailer << /Size %d /Root 1 0 R /Info 4 0 R %b >>\nstartxref\n%d\n%%%%EOF\n" % (
        count, trailer, start,
    )  # fmt: skip


def test_a_page_is_a_document(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf([["An exam-", "ple of café.", "Next line."], [], ["Third page"]], title="A  title"))
    first, third = read(path)
    assert first.text == "An example of café.\nNext line."
    assert (first.offset, dict(first.metadata)) == (0, {"title": "A title", "page": "1"})
    assert (third.text, third.offset, third.metadata["page"]) == ("Third page", 2, "3")
    assert rejected.bad == 0
    assert rejected.notes == {"blank page of PDF left out": 1}


def test_hyphens_within_lines_and_before_numbers_stay(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf([["A well-known word and COVID-", "19 at the end."]]))
    assert "well-known" in read(path)[0].text
    assert "COVID-" in read(path)[0].text


def test_scanned_pages_are_set_aside(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(make_pdf([["Text"], None, ["More"]]))
    assert [document.text for document in read(path)] == ["Text", "More"]
    assert rejected.first == f"{path}, page 2: a picture of a page, without text"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (make_pdf([["x"]], ENCRYPT), "is encrypted"),
        (b"%PDF-1.4 and then nothing", "is damaged"),
        (make_pdf([["x"]])[:300], "is damaged"),
        (b"", "is empty"),
        (make_pdf([["x" * 2000]]), "longer than 2,000 bytes"),
    ],
)
def test_files_that_cannot_be_read_are_set_aside(
    tmp_path: Path, read: Read, rejected: Rejected, raw: bytes, reason: str
) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(raw)
    assert read(path, max_document_bytes=2000) == []
    assert reason in rejected.first


def with_form(content: bytes) -> bytes:
    """A file whose first page has text, and whose second shows a form with this content, which can show itself."""
    raw = make_pdf([["First page"], []])
    form = b"<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /I1 5 0 R >> >> /Length %d >>"
    shows = b"<< /Length 6 >>\nstream\n/I1 Do\nendstream"
    raw = raw.replace(PICTURE, form % len(content) + b"\nstream\n" + content + b"\nendstream")
    begin = raw.index(b"9 0 obj\n") + len(b"9 0 obj\n")
    return raw[:begin] + shows + raw[raw.index(b"\nendobj", begin) :]  # places are wrong now, and found anew


def test_a_page_that_takes_too_long_ends_its_file_alone(
    tmp_path: Path, read: Read, rejected: Rejected, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf, "PAGE_CPU_S", 0.3)
    (tmp_path / "a.pdf").write_bytes(with_form(b"/I1 Do /I1 Do"))
    (tmp_path / "b.pdf").write_bytes(make_pdf([["Another file"]]))
    assert [document.text for document in read(tmp_path / "a.pdf")] == ["First page"]
    assert "page 2 takes more than 0.3 s" in rejected.first
    assert [document.text for document in read(tmp_path / "b.pdf")] == ["Another file"]
    (tmp_path / "c.pdf").write_bytes(with_form(b"/I1 Do"))  # the form is what is wrong with the first one
    assert [document.text for document in read(tmp_path / "c.pdf")] == ["First page"]
    assert rejected.bad == 1


def test_threads_read_files_at_the_same_time(tmp_path: Path) -> None:
    names = [f"{number}.pdf" for number in range(12)]
    for name in names:
        (tmp_path / name).write_bytes(make_pdf([[f"Page {page} of {name}"] for page in range(20)]))

    def texts(name: str) -> list[str]:
        [source] = find_sources([tmp_path / name])
        return [text.text for text in pdf.read_pdf(Piece(source), ReadSettings(), Rejected())]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(texts, names))
    assert found == [[f"Page {page} of {name}" for page in range(20)] for name in names]


def test_a_file_that_is_not_read_to_its_end_leaves_no_pages_behind(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(make_pdf([["one"], ["two"]]))
    [source] = find_sources([tmp_path / "a.pdf"])
    for _ in range(2):
        pages = pdf.read_pdf(Piece(source), ReadSettings(), Rejected())
        assert next(pages).text == "one"
        del pages
