"""What of a page leads to other pages or is on every page of its site, taken out of its tree.

Four rules, by what HTML itself says or by link density, the share of an element's text that is links (Kohlschütter et
al. 2010, "Boilerplate Detection using Shallow Text Features"):
- elements that HTML has for it (`nav`, `footer`, forms, …) go;
- lists and tables go that are mostly links;
- elements named for it (`class="breadcrumb"`) go if they are short or have many links;
- boxes beside the text (`class="sidebar"`) go if they have many links.
What holds a heading of the first level, an `article` or a `main`, or half of the text, is the page and stays.
"""

from __future__ import annotations

import re
from typing import Any

ALWAYS = frozenset({"nav", "footer", "form", "dialog", "iframe", "object", "template", "noscript", "select", "button"})
ROLES = frozenset({"navigation", "banner", "contentinfo", "search", "menu", "menubar", "dialog"})
LISTS = frozenset({"ul", "ol", "dl", "menu", "table", "header", "aside"})
CONTENT = frozenset({"h1", "article", "main"})
UNSEEN = frozenset({"script", "style", "head", "title"})
NAME = re.compile(
    r"(?:^|[-_\s])(?:(?:doc|site|sub|top|main|page|bottom|side|global)?(?:nav|menu|header|footer|bar)(?:s|bar|box|igation)?"
    r"|breadcrumbs?|toolbar|(?P<box>sidebar|related)|banner|toc|share|sharing|social|cookies?|consent|paginat(?:ion|or)|pager"
    r"|skip(?:link)?s?|login|adverts?|advertisement|promo|newsletter)(?:$|[-_\s])",
    re.IGNORECASE,
)
MOSTLY, MANY = 0.6, 0.3
SHORT = 200


class _Element:
    """What is in an element: characters, those of them within links, and whether any of it must stay."""

    __slots__ = ("content", "links", "node", "tag", "text")

    def __init__(self, node: Any, tag: str) -> None:
        self.node, self.tag = node, tag
        self.text = self.links = 0
        self.content = tag in CONTENT


def drop_navigation(body: Any) -> None:
    """Remove it from the body of a parsed page."""
    found = _weigh(body)
    whole = found[-1].text
    for element in found[:-1]:
        if not element.content and element.text <= whole / 2 and _is_navigation(element):
            element.node.remove()


def _weigh(body: Any) -> list[_Element]:
    """All elements of a page that hold text, each after those within it; the body is last."""
    found: list[_Element] = []
    above: list[_Element] = [_Element(body, "body")]
    node = body.first_child
    while above:
        if node is None:  # all children of the innermost open element are seen
            element = above.pop()
            if element.tag == "a":
                element.links = element.text
            if element.text:
                found.append(element)
            if above:
                outer = above[-1]
                outer.text += element.text
                outer.links += element.links
                outer.content = outer.content or element.content
                node = element.node.next_sibling
            continue
        name = node.node_name.lower()
        if name == "#text":
            above[-1].text += len(node.node_value.strip())
        elif not name.startswith("#") and name not in UNSEEN:
            above.append(_Element(node, name))
            node = node.first_child
            continue
        node = node.next_sibling
    return found or [_Element(body, "body")]


def _is_navigation(element: _Element) -> bool:
    node, density = element.node, element.links / element.text
    if element.tag in ALWAYS or node.hasattr("hidden") or (node.getattr("role") or "").lower() in ROLES:
        return True
    if element.tag in LISTS and density > MOSTLY:
        return True
    named = NAME.search(f"{node.class_name or ''} {node.id or ''}")
    return named is not None and (density > MANY or (element.text < SHORT and not named["box"]))
