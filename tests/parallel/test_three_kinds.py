"""Three kinds of parallelism at once, on eight processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parallel.layouts import ROWS, learn, make, run_layouts

from tallow.parallel import Layout

UPDATES = 2
LAYERS = 2
LAYOUTS: dict[str, dict[str, Any]] = {
    "pipeline, tensor and data": {"pipeline": 2, "tensor": 2},
    "zero 3, tensor and context": {"zero": 3, "tensor": 2, "context": 2, "attention": "ring"},
}


def test_equals_one_process(tmp_path: Path) -> None:
    layout = Layout(make("decoder", 0, LAYERS))
    expected, weights = learn(layout, "decoder", ROWS, UPDATES), layout.gather()
    found = run_layouts(8, tmp_path, "decoder", LAYOUTS, layers=LAYERS, updates=UPDATES)
    assert found.keys() == LAYOUTS.keys()
    for name, (report, own_weights) in found.items():
        assert report["loss"] == pytest.approx(expected["loss"], abs=1e-5), name
        assert report["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-4), name
        assert report["held_out"] == pytest.approx(expected["held_out"], abs=1e-5), name
        for key, value in weights.items():
            torch.testing.assert_close(
                own_weights[key], value, atol=2e-4, rtol=0, msg=lambda m, n=name, k=key: f"{n} {k} {m}"
            )
