"""Every layout learns what one process learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parallel.layouts import KINDS, alone, run_layouts

TWO: dict[str, dict[str, Any]] = {
    "data": {},
    "zero 1": {"zero": 1},
    "zero 2": {"zero": 2},
    "zero 3": {"zero": 3},
    "gpipe": {"pipeline": 2, "schedule": "gpipe"},
    "1f1b": {"pipeline": 2},
    "interleaved": {"pipeline": 2, "schedule": "interleaved"},
    "zero bubble": {"pipeline": 2, "schedule": "zero_bubble"},
    "context": {"context": 2},
    "ring": {"context": 2, "attention": "ring"},
}
FOUR: dict[str, dict[str, Any]] = {
    "data": {},
    "zero 3": {"zero": 3},
    "hybrid": {"zero": 3, "replicas": 2},
    "pipeline": {"pipeline": 4},
    "pipeline and data": {"pipeline": 2, "schedule": "interleaved"},
    "pipeline and zero": {"pipeline": 2, "zero": 3, "schedule": "zero_bubble"},
    "context, data": {"context": 2},
    "ring, zero 3": {"context": 2, "attention": "ring", "zero": 3},
}
SOME: dict[str, set[str]] = {
    "gpipe": {"decoder"},
    "1f1b": {"decoder", "untied", "encoder"},
    "interleaved": {"decoder", "experts"},
    "pipeline": {"decoder"},
    "pipeline and data": {"biased experts", "encoder"},
    "pipeline and zero": {"decoder", "experts"},
}
"""The kinds of models that a layout is tried with, where the others would show nothing new."""


EXPERTS: dict[int, dict[str, dict[str, Any]]] = {
    2: {
        "experts": {"expert": 2},
        "experts, context": {"expert": 2, "context": 2},
    },
    4: {
        "experts, data": {"expert": 2},
        "experts, context, data": {"expert": 2, "context": 2, "attention": "ring"},
        "experts, zero 3": {"expert": 2, "zero": 3},
        "experts, hybrid": {"expert": 2, "zero": 2, "replicas": 2},
    },
}
"""Layouts of models that have experts."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "layouts"), [(2, TWO), (4, FOUR)], ids=["two", "four"])
def test_equals_one_process(size: int, layouts: dict[str, dict[str, Any]], kind: str, tmp_path: Path) -> None:
    layouts = {name: settings for name, settings in layouts.items() if kind in SOME.get(name, KINDS)}
    expected, weights = alone(kind)
    layouts = layouts | (EXPERTS[size] if "experts" in kind else {})
    assert expected["loss"][-1] < expected["loss"][0] - 0.05
    for name, (report, own_weights) in run_layouts(size, tmp_path, kind, layouts).items():
        assert report["loss"] == pytest.approx(expected["loss"], abs=1e-5), name
        assert report["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4), name
        assert report["held_out"] == pytest.approx(expected["held_out"], abs=1e-5), name
        assert report["tokens"] == expected["tokens"], name
        assert own_weights.keys() == weights.keys(), name
        for key, value in weights.items():
            torch.testing.assert_close(
                own_weights[key], value, atol=2e-4, rtol=0, msg=lambda m, n=name, k=key: f"{n} {k} {m}"
            )
