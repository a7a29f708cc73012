"""The bound that a document has broken is told with what the document has there."""

from __future__ import annotations

from typing import Any

import pytest

from tallow.data.quality.families import QualityRules
from tallow.data.steps.judge import Bound, Broken, JudgeConfig, broken_bound

CONFIG = JudgeConfig(
    min_chars=20,
    bounds=(
        Bound(reason="privacy.email", column="privacy.email", max=3),
        Bound(reason="classifier.good.min", column="classifier.good", min=0.5),
    ),
    quality=QualityRules(),
)


@pytest.mark.parametrize(
    ("reason", "columns", "expected"),
    [
        ("too short", {"chars": 4}, Broken("chars", 4, 20, None)),
        ("privacy.email", {"privacy.email": 5}, Broken("privacy.email", 5, None, 3)),
        ("classifier.good.min", {"classifier.good": 0.25}, Broken("classifier.good", 0.25, 0.5, None)),
        ("gopher.min_words", {"gopher.words": 12}, Broken("gopher.words", 12, 50, None)),
        ("gopher.max_hashes", {"gopher.hashes": 0.5}, Broken("gopher.hashes", 0.5, None, 0.1)),
        ("duplicate", {}, None),
        ("language", {"language": "de"}, None),
    ],
)
def test_the_bound_that_was_broken(reason: str, columns: dict[str, Any], expected: Broken | None) -> None:
    assert broken_bound(CONFIG, reason, columns) == expected
