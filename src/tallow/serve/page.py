"""The chat page, and the past conversations that it shows."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from tallow.serve.errors import ApiError
from tallow.serve.http import PAGE_PATH, Json
from tallow.serve.service import Service

MOST_CONVERSATIONS = 100


def add_routes(app: FastAPI, service: Service) -> None:
    """`/`, and `/conversations` of the request log."""
    page = Path(__file__).with_name("page.html").read_bytes()
    headers = {
        "Content-Security-Policy": content_security_policy(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    @app.get(PAGE_PATH, include_in_schema=False)
    async def chat_page() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    @app.get("/conversations")
    async def conversations(
        request: Request, limit: Annotated[int, Query(ge=1, le=MOST_CONVERSATIONS)] = MOST_CONVERSATIONS
    ) -> Response:
        """The newest conversations held on the chat page with the same key; none unless prompts are logged."""
        return Json({"object": "list", "data": await service.log.conversations(request.state.user, limit)})

    @app.get("/conversations/{name}")
    async def conversation(name: str, request: Request) -> Response:
        """One of them, with its messages."""
        found = await service.log.conversation(request.state.user, name)
        if found is None:
            raise ApiError(404, f"there is no conversation {name!r}")
        return Json(found)


def content_security_policy(page: bytes) -> str:
    """Lets a page run the one script and the one style sheet within it, talk to its own server, and nothing else."""

    def source(tag: bytes) -> str:
        [text] = re.findall(b"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"

    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {source(b'script')}",
            f"style-src {source(b'style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
