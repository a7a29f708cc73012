"""PDF: a document is a page.

Words that are hyphenated at the end of a line are joined. Pages that are pictures have no text, and are set aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tallow.data.reading.settings import Piece, ReadSettings, Text, Unusable, empty, extra
from tallow.data.records import Place, Rejected

HYPHEN = re.compile(r"(?<=\w)(?:[\x02\ufffe]\n?|[-\u00ad]\n)(?=[^\W\d_])")
"""PDFium marks what it takes for a hyphen at the end of a line, and removes the end of the line."""
PASSWORD = 4
"""FPDF_ERR_PASSWORD."""
MAX_OBJECTS = 1000
"""On a page without text, so many are looked at for a picture."""


def read_pdf(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Text]:
    """The pages of a file, which is held in memory; their offsets are how many are before them.

    Raises:
        Unusable: The file is damaged, encrypted, or too long.
        UsageError: pypdfium2 is not installed.
    """
    pdfium: Any = extra("pypdfium2", "PDF")
    source, limit = piece.source, settings.max_document_bytes
    with source.open() as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise Unusable(settings.too_long)
    if not raw:
        raise empty()
    try:
        file = pdfium.PdfDocument(raw)
        pages = len(file)
    except pdfium.PdfiumError as error:
        if getattr(error, "err_code", None) == PASSWORD:
            raise Unusable("is encrypted", "save it without a password") from None
        raise Unusable(f"is damaged ({_cause(error)})", "fetch or make it again") from None
    try:
        title = " ".join(_clean(file.get_metadata_value("Title")).split())
        metadata = {"title": title} if title else {}
        for index in range(pages):
            try:
                text = _page_text(pdfium, file, index, limit)
            except (pdfium.PdfiumError, Unusable) as error:
                reason = str(error) if isinstance(error, Unusable) else f"damaged page ({_cause(error)})"
                rejected.add(Place(source, "page", index + 1, index), reason, b"")
                continue
            if text:
                yield Text(text, index, {**metadata, "page": str(index + 1)})
            else:
                rejected.note("blank page of PDF left out")
    finally:
        file.close()


def _page_text(pdfium: Any, file: Any, index: int, limit: int) -> str:
    page = file[index]
    try:
        found = page.get_textpage()
        try:
            if found.count_chars() > limit:
                raise Unusable(f"longer than {limit:,} characters")
            text = _clean(found.get_text_bounded())
        finally:
            found.close()
        if not text.strip():
            picture = pdfium.raw.FPDF_PAGEOBJ_IMAGE
            count = min(pdfium.raw.FPDFPage_CountObjects(page), MAX_OBJECTS)
            kinds = (pdfium.raw.FPDFPageObj_GetType(pdfium.raw.FPDFPage_GetObject(page, at)) for at in range(count))
            if picture in kinds:
                raise Unusable("a picture of a page, without text")
            return ""
    finally:
        page.close()
    text = HYPHEN.sub("", text.replace("\r\n", "\n"))
    return text.replace("\x02", "-").replace("\ufffe", "-").strip()


def _clean(text: str) -> str:
    """Without NUL and halves of surrogate pairs, which are no characters."""
    return re.sub(r"[\0\ud800-\udfff]", "", text)


def _cause(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
