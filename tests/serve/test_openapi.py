"""What the server's OpenAPI document says, held against a server that runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from tests.serve.conftest import Served

@pytest.fixture(scope="module")
def document(served: Served) -> Any:
    config = SchemathesisConfig.from_dict(
        {"seed": 1, "generation": {"max-examples": 30, "deterministic": True}, 
        "phases": {"coverage": {"enabled": True}},
        "checks": {"positive_data_acceptance": {"enabled": False}, "negative_data_rejection": {"enabled": False}}}
    )
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json", config=config)


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
def test_answers_are_as_documented(case: schemathesis.Case) -> None:
    case.call_and_validate()
