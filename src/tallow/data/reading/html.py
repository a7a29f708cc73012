"""HTML: the text of a page, without what leads to other pages.

resiliparse reads and renders it: headings, paragraphs and list items each on lines of their own. It takes time
quadratic in how deeply elements are nested and in how many attributes one has, so that pages with more of them than
anybody writes are refused before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tallow.data.reading.encodings import count, decide, decode
from tallow.data.reading.navigation import drop_navigation
from tallow.data.reading.settings import Piece, ReadSettings, Text, Unusable, empty, extra
from tallow.data.records import Rejected

MAX_BYTES = 2**24
MAX_DEPTH = 512
"""As in Chromium, which puts what is deeper beside one another."""
MAX_ATTRIBUTES = 1000
DECLARATION_BYTES = 1024
"""HTML, "prescan a byte stream to determine its encoding"."""
DECLARATION = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
ATTRIBUTE = r"[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s>\"'][^\s>]*+)?+)?+"
TAG = re.compile(
    rf"<(?:!--.*?(?:-->|\Z)|(?P<raw>script|style|textarea|xmp)\b.*?(?:</(?P=raw)|\Z)"
    rf"|(?P<end>/?)(?P<name>[a-z][^\s/>]*+)(?P<attributes>(?:{ATTRIBUTE})*+))",
    re.IGNORECASE | re.DOTALL,
)
ONE_ATTRIBUTE = re.compile(ATTRIBUTE)
UNNESTED = frozenset(
    {
        "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
        "p", "li", "dt", "dd", "tr", "td", "th", "thead", "tbody", "tfoot", "option", "optgroup", "colgroup", "html",
        "head", "body",
    }
)  # fmt: skip
"""Elements that are empty, that there is one of, or that end where the next of their kind begins."""


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
    page = decode(raw, encoding)
    _refuse_hostile(page)
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


def _refuse_hostile(page: str) -> None:
    depth = 0
    for tag in TAG.finditer(page):
        name = tag["name"]
        if name is None or name.lower() in UNNESTED:
            pass
        elif tag["end"]:
            depth = max(0, depth - 1)
        else:
            depth += 1
            if depth > MAX_DEPTH:
                raise Unusable(f"nested more than {MAX_DEPTH} elements deep")
        attributes = tag["attributes"] or ""
        if len(attributes) > MAX_ATTRIBUTES and sum(1 for _ in ONE_ATTRIBUTE.finditer(attributes)) > MAX_ATTRIBUTES:
            raise Unusable(f"a tag with more than {MAX_ATTRIBUTES} attributes")
