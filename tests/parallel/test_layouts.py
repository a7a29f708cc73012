"""Every layout learns what one process learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parallel.layouts import KINDS, alone, layers_for, run_layouts

ALL, MAIN, EXPERTS = set(KINDS), {"decoder", "experts", "encoder"}, {"experts", "biased experts"}
TWO: dict[str, tuple[dict[str, Any], set[str]]] = {
    "data": ({}, MAIN | EXPERTS),
    "zero 1": ({"zero": 1}, MAIN),
    "zero 2": ({"zero": 2}, MAIN),
    "zero 3": ({"zero": 3}, MAIN | EXPERTS),
    "tensor": ({"tensor": 2}, ALL),
    "gpipe": ({"pipeline": 2, "schedule": "gpipe"}, MAIN),
    "1f1b": ({"pipeline": 2}, MAIN | {"untied"}),
    "interleaved": ({"pipeline": 2, "schedule": "interleaved"}, MAIN),
    "zero bubble": ({"pipeline": 2, "schedule": "zero_bubble"}, MAIN | EXPERTS),
    "context": ({"context": 2}, MAIN),
    "ring": ({"context": 2, "attention": "ring"}, MAIN | {"untied"}),
    "experts": ({"expert": 2}, EXPERTS),
    "experts and context": ({"expert": 2, "context": 2}, {"experts"}),
}
"""Layouts of two processes, and the kinds of models that they are tried with."""

FOUR: dict[str, tuple[dict[str, Any], set[str]]] = {
    "data": ({}, {"decoder"}),
    "zero 3": ({"zero": 3}, {"experts"}),
    "hybrid": ({"zero": 3, "replicas": 2}, MAIN),
    "tensor and data": ({"tensor": 2}, {"experts"}),
    "tensor and zero": ({"tensor": 2, "zero": 3}, {"decoder", "encoder"}),
    "tensor and context": ({"tensor": 2, "context": 2}, {"decoder"}),
    "tensor and experts": ({"tensor": 2, "expert": 2}, {"experts"}),
    "pipeline": ({"pipeline": 4}, {"decoder", "encoder"}),
    "pipeline and data": ({"pipeline": 2, "schedule": "interleaved"}, {"biased experts"}),
    "pipeline and zero": ({"pipeline": 2, "zero": 3, "schedule": "zero_bubble"}, {"decoder", "experts"}),
    "pipeline and tensor": ({"pipeline": 2, "tensor": 2, "schedule": "zero_bubble"}, {"encoder"}),
    "pipeline and ring": ({"pipeline": 2, "context": 2, "attention": "ring"}, {"untied"}),
    "pipeline and experts": ({"pipeline": 2, "expert": 2}, {"experts"}),
    "context and data": ({"context": 2}, {"encoder"}),
    "ring and zero": ({"context": 2, "attention": "ring", "zero": 3}, {"decoder"}),
    "experts, ring and data": ({"expert": 2, "context": 2, "attention": "ring"}, {"experts"}),
    "experts and zero": ({"expert": 2, "zero": 3}, {"experts"}),
    "experts and hybrid": ({"expert": 2, "zero": 2, "replicas": 2}, {"biased experts"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [2, 4])
def test_equals_one_process(size: int, kind: str, tmp_path: Path) -> None:
    layouts = {name: settings for name, (settings, kinds) in (TWO if size == 2 else FOUR).items() if kind in kinds}
    for name, (report, own_weights) in run_layouts(size, tmp_path, kind, layouts).items():
        expected, weights = alone(kind, layers_for(size, kind, layouts[name]))
        assert expected["loss"][-1] < expected["loss"][0] - 0.05
        assert report["loss"] == pytest.approx(expected["loss"], abs=1e-5), name
        assert report["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4), name
        assert report["held_out"] == pytest.approx(expected["held_out"], abs=1e-5), name
        assert report["tokens"] == expected["tokens"], name
        assert own_weights.keys() == weights.keys(), name
        for key, value in weights.items():
            torch.testing.assert_close(
                own_weights[key], value, atol=2e-4, rtol=0, msg=lambda m, n=name, k=key: f"{n} {k} {m}"
            )
