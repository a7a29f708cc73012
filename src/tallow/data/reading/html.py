"""HTML: the text of a page, without what leads to other pages.

resiliparse reads and renders it: headings, paragraphs and list items each on lines of their own. Pages that would take
it long are refused before (`html_limits`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tallow.data.reading.encodings import count, decide, decode
from tallow.data.reading.html_limits import refuse_hostile, without_formatting
from tallow.data.reading.navigation import drop_navigation
from tallow.data.reading.settings import Piece, ReadSettings, Text, Unusable, empty, extra
from tallow.data.records import Rejected

MAX_BYTES = 2**24
DECLARATION_BYTES = 1024
"""HTML, "prescan a byte stream to determine its encoding"."""
DECLARATION = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)


def read_html(piece: Piece, settings: ReadSettings, rejected: Rejected) -> Iterator[Text]:
    """The document that a file is."""
    limit = min(settings.max_document_bytes, MAX_BYTES)
    with piece.source.open() as stream:
        raw = stream.read(limit + 1)
    if len(raw) > limit:
        raise Unusable(f"longer than {limit:,} bytes")
    text, metadata = extract(raw, settings, rejected)
    if not text:
        raise Unusable("no text on the page") if raw.strip() else empty()
    yield Text(text, 0, metadata)


def extract(raw: bytes, settings: ReadSettings, rejected: Rejected, declared: str = "") -> tuple[str, dict[str, str]]:
    """The text of a page, and its title.

    Args:
        raw: The page.
        settings: Which encoding, and how much of the page.
        rejected: Counts encodings.
        declared: Encoding that came with the page.

    Raises:
        Unusable: It is no text, or too large, deep or wide to be read.
        UsageError: resiliparse is not installed.
    """
    if len(raw) > MAX_BYTES:
        raise Unusable(f"longer than {MAX_BYTES:,} bytes")
    parsing = extra("resiliparse.parse.encoding", "HTML")
    if not declared and (found := DECLARATION.search(raw[:DECLARATION_BYTES])):
        declared = found[1].decode("ascii", errors="ignore")
    # as browsers take it: iso-8859-1 is cp1252, gb2312 is gbk
    encoding = decide(raw, settings, declared=(declared and parsing.map_encoding_to_html5(declared, False)) or "")
    page = without_formatting(decode(raw, encoding))
    refuse_hostile(page, settings.max_document_bytes)
    count(encoding, settings, rejected)
    extracting: Any = extra("resiliparse.extract.html2text", "HTML")
    tree = extra("resiliparse.parse.html", "HTML").HTMLTree.parse(page)
    if settings.html_content == "main" and tree.body is not None:
        drop_navigation(tree.body)
    text = extracting.extract_plain_text(tree, main_content=False, alt_texts=False)
    if len(text) > settings.max_document_bytes:
        raise Unusable(settings.too_long)  # lists in lists are indented
    title = " ".join((tree.title or "").split())
    return text.strip(), {"title": title} if title else {}
