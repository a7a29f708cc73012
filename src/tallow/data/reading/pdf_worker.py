"""The process that reads PDFs: a file in, its pages out, a line of JSON each.

PDFium is C++ that follows whatever a file says: a form that shows itself twice would keep it busy for years, and two
threads of one process must not use it at the same time. Started as a file, so that nothing else is imported.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

PASSWORD = 4
"""FPDF_ERR_PASSWORD."""
MAX_OBJECTS = 1000
"""On a page without text, so many are looked at for a picture."""


def main() -> None:
    """Answer jobs: each is a line of JSON (`bytes`, `limit`, `cpu_s`, `memory_bytes`), and behind it the file."""
    import pypdfium2

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        raw = sys.stdin.buffer.read(job["bytes"])
        data, hard = _data_bytes(), resource.getrlimit(resource.RLIMIT_DATA)[1]
        if data:
            most = data + job["memory_bytes"]
            resource.setrlimit(
                resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
            )
        _read(pypdfium2, raw, job["limit"], job["cpu_s"])
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _read(pdfium: Any, raw: bytes, limit: int, cpu_s: float) -> None:
    """What a file is (`pages` and `title`, or why it cannot be read), then its pages (`text`, or an `error`)."""
    # processor time, which a busy machine does not use up; the signal ends the process
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        file = pdfium.PdfDocument(raw)
        pages, title = len(file), file.get_metadata_value("Title")
    except pdfium.PdfiumError as error:
        encrypted = getattr(error, "err_code", None) == PASSWORD
        _answer({"encrypted": encrypted, "damaged": _cause(error)})
        return
    _answer({"pages": pages, "title": _clean(title)})
    for index in range(pages):
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            _answer({"text": _page_text(pdfium, file, index, limit)})
        except (pdfium.PdfiumError, ValueError) as error:
            _answer({"error": str(error) if isinstance(error, ValueError) else f"damaged page ({_cause(error)})"})
    file.close()
    signal.setitimer(signal.ITIMER_PROF, 0)


def _page_text(pdfium: Any, file: Any, index: int, limit: int) -> str:
    page = file[index]
    try:
        found = page.get_textpage()
        try:
            if found.count_chars() > limit:
                raise ValueError(f"longer than {limit:,} characters")
            text = _clean(found.get_text_bounded())
        finally:
            found.close()
        if not text.strip():
            picture = pdfium.raw.FPDF_PAGEOBJ_IMAGE
            count = min(pdfium.raw.FPDFPage_CountObjects(page), MAX_OBJECTS)
            kinds = (pdfium.raw.FPDFPageObj_GetType(pdfium.raw.FPDFPage_GetObject(page, at)) for at in range(count))
            if picture in kinds:
                raise ValueError("a picture of a page, without text")
        return text
    finally:
        page.close()


def _clean(text: str) -> str:
    """Without NUL and halves of surrogate pairs, which are no characters."""
    return re.sub(r"[\0\ud800-\udfff]", "", text)


def _cause(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")


def _answer(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _data_bytes() -> int:
    """Memory that RLIMIT_DATA counts; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[5]) * resource.getpagesize() if statm.exists() else 0


if __name__ == "__main__":
    main()
