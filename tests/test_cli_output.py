"""What commands print besides a table of names and values."""

from __future__ import annotations

import json

import pytest

from tallow.cli_output import print_beside

RESULT = {
    "path": "models/mine",
    "before": {"bits_per_byte": 1.2345678901234567, "tokens": 41234},
    "after": {"bits_per_byte": 1.1, "tokens": 30123},
}


def test_sides_stand_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    print_beside(RESULT, ("before", "after"), as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [
        ["path", "models/mine"],
        ["before", "after"],
        ["bits", "per", "byte", "1.235", "1.1"],
        ["tokens", "41,234", "30,123"],
    ]


def test_json_is_the_result_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_beside(RESULT, ("before", "after"), as_json=True)
    assert json.loads(capsys.readouterr().out) == RESULT
