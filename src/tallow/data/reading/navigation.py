"""What of a page leads to other pages or is on every page of its site, taken out of its tree.

Three rules, by what HTML itself says or by link density, the share of an element's text that is links (Kohlschütter et
al. 2010, "Boilerplate Detection using Shallow Text Features"):
- elements that HTML has for it (`nav`, `footer`, forms, …) go;
- lists and tables go that are mostly links;
- elements named for it (`class="breadcrumb"`) go if they are short or have many links.
"""

from __future__ import annotations

import re
from typing import Any

ALWAYS = (
    "nav, footer, form, dialog, iframe, object, template, noscript, select, button, [hidden], [role=navigation],"
    " [role=banner], [role=contentinfo], [role=search], [role=menu], [role=menubar], [role=dialog]"
)
LISTS = "ul, ol, dl, menu, table, header, aside"
NAMED = ", ".join(
    f"[{attribute}*={name} i]"
    for attribute in ("class", "id")
    for name in (
        *("nav", "menu", "breadcrumb", "toolbar", "footer", "header", "sidebar", "banner", "toc", "share", "social"),
        *("cookie", "consent", "related", "pagination", "pager", "skip", "login", "advert", "promo", "newsletter"),
    )
)
NAME = re.compile(
    r"(?:^|[-_\s])(?:(?:doc|site|sub|top|main|page|bottom|side|global)?(?:nav|menu|header|footer|bar)(?:s|bar|box|igation)?"
    r"|breadcrumbs?|toolbar|sidebar|banner|toc|share|sharing|social|cookies?|consent|related|paginat(?:ion|or)|pager"
    r"|skip(?:link)?s?|login|adverts?|advertisement|promo|newsletter)(?:$|[-_\s])",
    re.IGNORECASE,
)
MOSTLY, MANY = 0.6, 0.3
SHORT = 200
CONTENT = "h1, article, main"
WORK = 8
"""Elements are weighed until their texts together are this many times that of the page: lists may be nested."""


def drop_navigation(body: Any) -> None:
    """Remove it from the body of a parsed page."""
    for element in body.query_selector_all(ALWAYS):
        if not element.query_selector(CONTENT):
            element.remove()
    whole = len(body.text or "")
    work = WORK * whole
    for selector, named in ((LISTS, False), (NAMED, True)):
        for element in body.query_selector_all(selector):
            if named and not NAME.search(f"{element.class_name or ''} {element.id or ''}"):
                continue
            text = len((element.text or "").strip())
            work -= text
            if work < 0:
                return
            if text > whole / 2 or element.query_selector(CONTENT):
                continue  # whatever its name, it is the page
            links = sum(len((link.text or "").strip()) for link in element.query_selector_all("a[href]"))
            density = links / text if text else 0
            if density > MOSTLY or (named and (density > MANY or text < SHORT)):
                element.remove()
