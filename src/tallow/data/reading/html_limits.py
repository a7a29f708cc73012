"""Pages of HTML that would take a parser long, told before one reads them.

A parser's time is quadratic in how deeply elements are nested, in the attributes of one, and in the options of a menu;
a renderer indents each line by the lists that it is in. What leaves elements open, or only seems to close them, nests
them too. So the elements that are open are followed as a parser would (HTML, section 13.2.6), and in case of doubt an
element stays open: none is forgotten that a parser has open, but for what it adds by itself (a body, a row of a table).

Elements of formatting (`b`, `font`) are the exception: a parser opens all of them again in each paragraph, so that few
kilobytes take minutes and gigabytes. They mean nothing to a text, and become `span`, which is not opened again.
"""

from __future__ import annotations

import re

from tallow.data.reading.settings import Unusable

MAX_DEPTH = 512
"""As in Chromium, which puts what is deeper beside one another."""
MAX_ATTRIBUTES = 1000
MAX_OPTIONS = 8192
MAX_ESCAPES = 8
"""Scripts in which a comment and a script begin, of which only a parser knows where they end."""
INDENT = 2
"""Characters that a line begins with for each list that it is in."""

FORMATTING = re.compile(r"<(/?)(?:b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)(?=[\s/>])", re.IGNORECASE)
ATTRIBUTE = r"[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:\"[^\"]*+\"|'[^']*+'|[^\s>\"'][^\s>]*+)?+)?+"
TAG = re.compile(
    r"<(?:!--(?:-?>|.*?(?:--!?>|\Z))|!\[CDATA\[(?P<data>.*?)(?:\]\]>|\Z)|[!?][^>]*|/[^a-z>][^>]*"
    r"|(?P<raw>script|style|textarea|xmp|title|iframe|noembed|noframes)(?=[\s/>])(?P<within>.*?)(?:</(?P=raw)(?=[\s/>])|\Z)"
    rf"|(?P<end>/?)(?P<name>[a-z][^\s/>]*+)(?P<attributes>(?:{ATTRIBUTE})*+)(?P<empty>[\s/]*+))",
    re.IGNORECASE | re.DOTALL,
)
ONE_ATTRIBUTE = re.compile(ATTRIBUTE)

VOID = frozenset(
    {
        "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
        "html", "head", "body",
    }
)  # fmt: skip
"""Empty elements, and those that there is one of."""
BLOCKS = frozenset(
    {
        "address", "article", "aside", "blockquote", "button", "center", "details", "dialog", "dir", "div", "dl",
        "fieldset", "figcaption", "figure", "footer", "form", "header", "hgroup", "h1", "h2", "h3", "h4", "h5", "h6",
        "listing", "main", "menu", "nav", "ol", "pre", "search", "section", "summary", "ul", "li", "dt", "dd", "p",
    }
)  # fmt: skip
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
SPECIAL = BLOCKS | {"noscript"}
CLOSING = BLOCKS | {"applet", "marquee", "object", "select", "template"}
"""Their ends close all that is open in them; the ends of others do not go through special elements."""
CELLS = frozenset({"td", "th", "caption"})
ROWS = frozenset({"tr", "tbody", "thead", "tfoot", "colgroup"})
TABLE = CELLS | ROWS | {"table"}
INTEGRATION = frozenset({"foreignobject", "desc", "annotation-xml", "mi", "mo", "mn", "ms", "mtext"})
FOREIGN = frozenset({"svg", "math"})
UNSURE = "?"
BARRIERS = TABLE | INTEGRATION | FOREIGN | {"applet", "marquee", "object", "plaintext", "select", "template", UNSURE}
"""No end goes through them."""
ITEMS = {"li": ("li",), "dt": ("dt", "dd"), "dd": ("dt", "dd")}
PARTS = {
    **dict.fromkeys(("td", "th", "caption"), ("td", "th")),
    **dict.fromkeys(("tbody", "thead", "tfoot"), ("tbody", "thead", "tfoot")),
    **{name: (name,) for name in ("tr", "colgroup")},
}
"""What items and parts of tables close where they begin."""
RAW = frozenset({"script", "style", "textarea", "xmp", "title", "iframe", "noembed", "noframes"})
ODD = FOREIGN | {UNSURE, "select", "template"}
BREAKOUT = HEADINGS | frozenset(
    {
        "blockquote", "body", "br", "center", "dd", "div", "dl", "dt", "embed", "head", "hr", "img", "li", "listing",
        "menu", "meta", "ol", "p", "pre", "ruby", "span", "sub", "sup", "table", "ul", "var",
    }
)  # fmt: skip
"""Where SVG and MathML end, whatever is open."""


def without_formatting(page: str) -> str:
    """The page with `span` for elements of formatting."""
    return FORMATTING.sub(r"<\1span", page)


def refuse_hostile(page: str, limit: int) -> None:
    """Refuse pages that are nested too deeply, have too many attributes in a tag, or become longer than `limit` bytes.

    Args:
        page: Without elements of formatting.
        limit: Of the text.

    Raises:
        Unusable: So it is.
    """
    elements = _Open()
    indent = options = attributes_of_page = escapes = 0
    for tag in TAG.finditer(page):
        if tag["name"] is None:
            hidden = tag["data"] or ""
            if tag["raw"]:
                elements.begin(tag["raw"].lower(), True)
                within = tag["within"]
                hidden = within if elements.is_odd else ""
                escapes += tag["raw"].lower() == "script" and "<!--" in within and "<script" in within.lower()
            elements.add_unknown(hidden.count("<"))
            if escapes > MAX_ESCAPES:
                raise Unusable(f"more than {MAX_ESCAPES} scripts within comments within scripts")
            name, attributes = "", ""
        else:
            name, attributes = tag["name"].lower(), tag["attributes"]
            if tag["end"]:
                elements.end(name)
            else:
                elements.begin(name, tag["empty"].endswith("/"))
        options += name == "option"
        indent += INDENT * elements.lists
        if len(elements.names) > MAX_DEPTH:
            raise Unusable(f"nested more than {MAX_DEPTH} elements deep")
        if options > MAX_OPTIONS:
            raise Unusable(f"more than {MAX_OPTIONS:,} options to choose from")
        if indent > limit:
            raise Unusable(f"longer than {limit:,} bytes")  # lists in lists are indented
        whole = name in ("html", "body")  # later ones add to the attributes of the first
        if len(attributes) > MAX_ATTRIBUTES or (whole and attributes):
            count = sum(1 for _ in ONE_ATTRIBUTE.finditer(attributes)) + attributes_of_page * whole
            if count > MAX_ATTRIBUTES:
                raise Unusable(f"a tag with more than {MAX_ATTRIBUTES} attributes")
            attributes_of_page = count if whole else attributes_of_page


class _Open:
    """The elements that may be open.

    Args:
        names: From the outermost.
        lists: How many of them are lists.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.lists = 0
        self._foreign: list[bool] = []  # whether the children of each are SVG's or MathML's
        self._is_unsure = False  # whether that cannot be told any more

    @property
    def is_odd(self) -> bool:
        """Whether a parser may be where scripts, empty elements and parts of tables are elements as any other."""
        return not ODD.isdisjoint(self.names)

    def add_unknown(self, count: int) -> None:
        """Elements that may begin here."""
        for _ in range(min(count, MAX_DEPTH + 1)):
            self._push("", False)

    def begin(self, name: str, is_empty: bool) -> None:
        foreign = bool(self._foreign) and self._foreign[-1]
        if name in BREAKOUT and (foreign or self._is_unsure):
            self.names = [UNSURE if name in FOREIGN else name for name in self.names]
            self._no_longer_foreign()
            foreign = False
        if name in FOREIGN or foreign:
            if not is_empty:
                self._push(name, name not in INTEGRATION and name != "title")
            return
        if name in ("hr", "xmp"):
            self._cut(self._find(("p",), SPECIAL))
        if name in RAW or (name in VOID and (name in BREAKOUT or not self.is_odd)):
            return
        if name in TABLE:
            table = self._find(("table",), CELLS if name == "table" else frozenset())
            if name == "table":
                self._cut(table)
                if (at := self._find(("p",), SPECIAL)) is not None:
                    self.names[at] = ""  # open or not: that depends on the type of the document
            elif table is None:
                if not self.is_odd:
                    return
            else:
                self._cut(self._find(PARTS[name], frozenset({"table"})))
        elif not FOREIGN.isdisjoint(self.names):
            pass  # where none closes another
        elif name in BLOCKS:
            self._cut(self._find(("p",), SPECIAL))
            if name in ITEMS:
                self._cut(self._find(ITEMS[name], SPECIAL - {"address", "div"}))
            elif name == "button":
                self._cut(self._find(("button",), frozenset()))
            elif name in HEADINGS and self.names and self.names[-1] in HEADINGS:
                self._cut(-1)
        elif name == "select":
            self.names = [UNSURE if name == "select" else name for name in self.names]
        elif name == "a" and (at := self._find(("a",), frozenset())) is not None:
            self._remove(at)
        elif name in ("option", "optgroup") and self.names[-1:] == ["option"]:
            self._cut(-1)
        if name in INTEGRATION or name == "frameset":
            name = UNSURE if name == "frameset" or not FOREIGN.isdisjoint(self.names) else ""
        self._push(name, False)

    def end(self, name: str) -> None:
        if name in VOID:
            return
        if name in TABLE:
            inside = self._find(("table",), frozenset()) is not None
            at = self._find((name,), frozenset({"table"})) if inside else None
        else:
            at = self._find((name,), frozenset() if name in CLOSING else SPECIAL)
        if at is None:
            self._no_longer_foreign()
        elif name == "form":  # ends alone
            self._remove(at)
        else:
            self._cut(at)

    def _find(self, wanted: tuple[str, ...], stops: frozenset[str]) -> int | None:
        """The innermost element of these names, if neither a barrier nor one of `stops` is open in it."""
        through = ROWS | CELLS if "table" in wanted or "table" in stops else frozenset()
        for at in range(len(self.names) - 1, -1, -1):
            name = self.names[at]
            if name in wanted:
                return at
            if name in stops or (name in BARRIERS and name not in through):
                return None
        return None

    def _push(self, name: str, foreign: bool) -> None:
        self.names.append(name)
        self._foreign.append(foreign)
        self.lists += name in ("ul", "ol")

    def _remove(self, at: int) -> None:
        del self.names[at], self._foreign[at]

    def _cut(self, at: int | None) -> None:
        if at is None:
            return
        self.lists -= sum(name in ("ul", "ol") for name in self.names[at:])
        del self.names[at:], self._foreign[at:]

    def _no_longer_foreign(self) -> None:
        """From here on `/>` is taken for `>`: a parser may be outside of SVG, where it means nothing."""
        self._foreign = [False] * len(self.names)
        self._is_unsure = True
