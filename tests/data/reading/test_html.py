from __future__ import annotations

import json
import lzma
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resiliparse.parse.html import HTMLTree
from tests.data.reading.conftest import Read

from tallow.data.read import ReadSettings
from tallow.data.reading import html_limits
from tallow.data.reading.html import extract
from tallow.data.reading.settings import Unusable
from tallow.data.records import Rejected

PAGE = """<!DOCTYPE html><html><head><title> A
 page </title><style>p {}</style></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/news">News</a></li></ul></nav>
<article><h1>Heading</h1><p>First  paragraph, with <b>bold</b> words.</p><p>Second &amp; last.</p>
<ul><li>one</li><li>two</li></ul><pre>a = 1
  b = 2</pre></article>
<footer>Copyright</footer><script>var x = 1 < 2;</script></body></html>"""


def test_main_text_without_navigation(tmp_path: Path, read: Read) -> None:
    path = tmp_path / "a.html"
    path.write_text(PAGE)
    (document,) = read(path)
    lines = [line.strip() for line in document.text.split("\n") if line.strip()]
    assert lines == [
        "Heading", "First paragraph, with bold words.", "Second & last.", "• one", "• two", "a = 1", "b = 2",
    ]  # fmt: skip
    assert (document.metadata, document.offset) == ({"title": "A page"}, 0)
    (everything,) = read(path, html_content="all")
    assert "Home" in everything.text
    assert "var x" not in everything.text


@pytest.mark.parametrize(
    ("declared", "encoding", "text"),
    [
        ("", "utf-8", "Zażółć gęślą"),
        ("<meta charset=iso-8859-2>", "iso-8859-2", "Zażółć gęślą"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">', "cp1251", "Всё хорошо"),
        ("<meta charset=iso-8859-1>", "cp1252", "“Quoted” — naïve"),  # as every browser reads it
        ("<meta charset=iso-8859-1>", "utf-8", "Zażółć gęślą"),  # a wrong declaration
        ("<meta charset=nothing>", "cp1251", "Всё хорошо, что хорошо кончается, и никак иначе; " * 3 + "вот и всё."),
        ("", "utf-16", "Zażółć gęślą"),
    ],
)
def test_encodings(declared: str, encoding: str, text: str) -> None:
    page = f"<html><head>{declared}</head><body><p>{text}</p></body></html>"
    rejected = Rejected()
    assert extract(page.encode(encoding), ReadSettings(), rejected)[0] == text
    assert sum(rejected.notes.values()) == (encoding != "utf-8")


HOSTILE = {
    "deep": "<div>" * 200_000,
    "closed deep": "<div>" * 200_000 + "</div>" * 200_000,
    "formatting": "<b><p>" * 30_000,
    "attributes": "<p " + " ".join(f"a{number}=1" for number in range(100_000)) + ">",
    "quoted attributes": "<p x='>' " + " ".join(f"a{number}='>'" for number in range(100_000)) + ">",
    "entities": "<!DOCTYPE x [<!ENTITY a 'aa'>" + "<!ENTITY b '&a;&a;&a;&a;'>" * 1000 + "]><p>&b;</p>" * 1000,
    "unclosed scripts": "<script>" * 500_000,
    "unclosed comments": "<!--" * 500_000,
    "unclosed quotes": "<p a=\"x" * 100_000,
    "unclosed tags": "<p " * 300_000,
    "open brackets": "<" * 1_000_000,
    "tables": "<table>" * 100_000,
    "surrogates": "<p>&#xD800;&#0;&#x110000;</p>" * 1000,
    "no end": "<p" + " " * 1_000_000,
    "equals": "<p" + " =" * 500_000,
    "open formatting": "".join(f"<p><font a={number}></x></p>" for number in range(3_000)),
    "formatting behind": "<div>" + "".join(f"<b a={n}>" for n in range(400)) + "</div>" + "<p>x</p>" * 20_000,
    "other ends": "<span></x>" * 100_000,
    "ends in scripts": "<span><script><!--<script></script></span>--></script></x>" * 40_000,
    "ends in data": "<math><mi><![CDATA[</mi></math>]]></x></x>" * 40_000,
    "ends in comments": "<span><!</span></x>" * 100_000,
    "ends within tables": ("<span>" * 100 + "<table><td>" + "</span>" * 100 + "</table></x>") * 1_000,
    "empty comments": "<!-->" + "<span></x>" * 100_000 + "-->",
    "closed comments": "<!-- --!>" + "<span></x>" * 100_000 + "-->",
    "styles of pictures": "<svg><style>" + "<g></x>" * 100_000 + "</style></svg>",
    "empty elements behind pictures": "<svg><div></div>" + "<x/></y>" * 100_000,
    "options": "<select>" + "<option>x" * 100_000,
    "attributes of the page": "".join(f"<body a{number}>" for number in range(100_000)),
    "indented lines": "<ul>" * 500 + "a<br>" * 300_000,
    "nested lists": ("<ul><li>text <a href=x>y</a>" * 500 + "</ul>" * 500) * 5,
    "many lists": "<ul><li><a href=x>y</a></ul>" * 5_000,
    "many names": "<p class='nav menu'>x" * 5_000,
    "nested names": ("<div class='menu'>text " * 500 + "</div>" * 500) * 5,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_cost_little(name: str) -> None:
    began = time.process_time()
    try:
        limited = ReadSettings(max_document_bytes=2**24)
        text, _ = extract(HOSTILE[name].encode() + b"<p>text</p>", limited, Rejected())
    except Unusable:
        text = ""
    assert time.process_time() - began < 2
    assert len(text.encode()) < 2_000_000


@given(page=st.text(st.sampled_from("<>/=\"' \n&;#x0abpdivul!-é"), max_size=200))
def test_any_page_gives_text_or_is_set_aside(page: str) -> None:
    try:
        text, _ = extract(page.encode(), ReadSettings(), Rejected())
    except Unusable:
        return
    assert "<p>" not in text or "&lt" in page or "<" in page
    text.encode()


def test_long_scripts_and_many_siblings_are_no_depth() -> None:
    page = "<body><script>" + "if (a<b && c<d) {}" * 2000 + "</script>" + "<p>One<br>two<li>three" * 2000 + "</body>"
    text, _ = extract(page.encode(), ReadSettings(html_content="all"), Rejected())
    assert text.count("three") == 2000


def test_what_people_leave_open_is_no_depth() -> None:
    """Nor are pictures, cells and options, however many there are."""
    left_open = "<div><p>One<span><font color=red>two</div>" * 1000
    cells = "<table>" + "<tr><td><b>a<td>b<div>" * 1000 + "</table>"
    pictures = "<svg><title>x</title><g><path d=''/><path d='' /></g></svg>" * 1000
    options = "<select>" + "<option>o" * 1000 + "</select>"
    page = f"<body>{left_open}{cells}{pictures}{options}<dl>{'<dt>a<dd>b' * 1000}</dl>end</body>"
    text, _ = extract(page.encode(), ReadSettings(html_content="all"), Rejected())
    assert text.count("two") == 1000
    assert text.endswith("end")


NAMES = frozenset(
    re.findall(
        r"\w+",
        """p li ul div span a td tr table caption select option svg math g title mi style
    script textarea object template form h1 button dd x frameset input pre""",
    )
)
LOOSE = ["a", "<!--", "-->", "<!-->", "--!>", "<![CDATA[", "]]>", "<?", "</ ", ">", "<script><!--<script>"]
TAGS = [form.format(name) for name in sorted(NAMES) for form in ("<{}>", "</{}>", "<{}/>")]


@settings(max_examples=40)
@given(st.lists(st.sampled_from(TAGS), max_size=3), st.lists(st.sampled_from(TAGS + LOOSE), min_size=1, max_size=7))
def test_no_parser_nests_deeper(before: list[str], again: list[str]) -> None:
    """But for the elements that it adds: some around the page, up to three around a cell."""
    page = "".join(before) + "".join(again) * 200
    with mock.patch.object(html_limits, "MAX_DEPTH", 20), suppress(Unusable):
        html_limits.refuse_hostile(page, 10**9)
        assert depth_of(HTMLTree.parse(page).document) <= 4 * 20 + 40


def depth_of(root: Any) -> int:
    level, depth = [root], 0
    while level:
        level = [child for node in level for child in node.child_nodes]
        depth += 1
    return depth


def test_pages_without_text_are_set_aside(tmp_path: Path, read: Read, rejected: Rejected) -> None:
    (tmp_path / "a.html").write_text("<html><body><script>1</script></body></html>")
    assert read(tmp_path / "a.html") == []
    assert rejected.first.endswith("no text on the page")


@pytest.mark.shared_data
def test_handbook(shared_data: Callable[..., Path]) -> None:
    """Its paragraphs and lists stay, in each language; its links to other chapters go."""
    with lzma.open(shared_data("html_sample", "handbook_raw_html.multi.jsonl.xz"), "rt", encoding="utf-8") as file:
        pages = [json.loads(line) for line in file][::40]
    found = kept = 0
    for page in pages:
        text, metadata = extract(page["text"].encode(), ReadSettings(), Rejected())
        assert metadata["title"]
        assert "Download the ebook" not in text
        lines = [line.strip("• ") for line in text.split("\n")]
        assert "Prev" not in lines
        assert "Next" not in lines
        words = "".join(text.split())
        paragraphs = re.findall(r'<div class="para">([^<>&]{40,})</div>', page["text"])
        found += len(paragraphs)
        kept += sum("".join(paragraph.split()) in words for paragraph in paragraphs)
    assert found > 20
    assert kept >= 0.98 * found
