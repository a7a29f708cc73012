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
    "tensor": {"tensor": 2},
    "gpipe": {"pipeline": 2, "schedule": "gpipe"},
    "1f1b": {"pipeline": 2},
    "interleaved": {"pipeline": 2, "schedule": "interleaved"},
    "zero bubble": {"pipeline": 2, "schedule": "zero_bubble"},
    "context": {"context": 2},
    "ring": {"context": 2, "attention": "ring"},
    "experts": {"expert": 2},
    "experts and context": {"expert": 2, "context": 2},
}
FOUR: dict[str, dict[str, Any]] = {
    "data": {},
    "zero 3": {"zero": 3},
    "hybrid": {"zero": 3, "replicas": 2},
    "tensor and data": {"tensor": 2},
    "tensor and zero": {"tensor": 2, "zero": 3},
    "pipeline": {"pipeline": 4},
    "pipeline and data": {"pipeline": 2, "schedule": "interleaved"},
    "pipeline and zero": {"pipeline": 2, "zero": 3, "schedule": "zero_bubble"},
    "context and data": {"context": 2},
    "ring and zero": {"context": 2, "attention": "ring", "zero": 3},
    "pipeline and ring": {"pipeline": 2, "context": 2, "attention": "ring", "schedule": "zero_bubble"},
    "tensor and context": {"tensor": 2, "context": 2},
    "tensor and experts": {"tensor": 2, "expert": 2},
    "experts and data": {"expert": 2},
    "experts, ring and data": {"expert": 2, "context": 2, "attention": "ring"},
    "experts and zero": {"expert": 2, "zero": 3},
    "experts and hybrid": {"expert": 2, "zero": 2, "replicas": 2},
    "pipeline and experts": {"pipeline": 2, "expert": 2},
    "pipeline and tensor": {"pipeline": 2, "tensor": 2, "schedule": "zero_bubble"},
}
SOME: dict[str, set[str]] = {
    "gpipe": {"decoder"},
    "1f1b": {"decoder", "untied", "encoder"},
    "interleaved": {"decoder", "experts"},
    "pipeline": {"decoder"},
    "pipeline and data": {"biased experts", "encoder"},
    "pipeline and zero": {"decoder", "experts"},
    "context": {"decoder", "experts", "encoder"},
    "ring": {"untied", "biased experts", "encoder"},
    "context and data": {"decoder", "experts"},
    "ring and zero": {"untied", "encoder"},
    "pipeline and ring": {"untied", "biased experts"},
    "experts": {"experts", "biased experts"},
    "experts and context": {"experts"},
    "tensor and context": {"decoder"},
    "tensor and experts": {"experts"},
    "experts and data": {"biased experts"},
    "experts, ring and data": {"experts"},
    "experts and zero": {"experts"},
    "experts and hybrid": {"biased experts"},
    "pipeline and experts": {"experts"},
    "pipeline and tensor": {"decoder", "encoder"},
}
"""The kinds of models that a layout is tried with, where the others would show nothing new."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "layouts"), [(2, TWO), (4, FOUR)], ids=["two", "four"])
def test_equals_one_process(size: int, layouts: dict[str, dict[str, Any]], kind: str, tmp_path: Path) -> None:
    layouts = {name: settings for name, settings in layouts.items() if kind in SOME.get(name, KINDS)}
    expected, weights = alone(kind)
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
