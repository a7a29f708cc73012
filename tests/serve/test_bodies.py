"""Bodies that Python's own JSON reads, and that would fail further on, are refused by every route."""

from __future__ import annotations

import pytest
from tests.serve.conftest import Served

BODIES = {
    "half a surrogate pair": r'{"messages": [{"role": "user", "content": "\ud800"}]}',
    "half a surrogate pair as a key": r'{"metadata": {"\ud800": "x"}}',
    "not a number": '{"temperature": NaN}',
    "nested too deeply": '{"messages": [' + '{"a": ' * 900 + "1" + "}" * 900 + "]}",
    "cut": '{"messages": [',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_cannot_be_passed_on_are_refused(served: Served, body: str) -> None:
    with served.client() as client:
        for path in ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize"):
            response = client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code == 400, path
            assert "the body cannot be read" in response.json()["error"]["message"]
