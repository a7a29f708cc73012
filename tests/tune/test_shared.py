"""Several processes tune what one tunes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parallel.layouts import together

from tallow.models.formats import load_model
from tallow.parallel import World
from tallow.run import StageRun
from tallow.stages import run_stage
from tallow.tune.sft import TuneConfig

LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "data": ("full", {}),
    "adapters, zero": ("lora", {"zero": 3}),
    "adapters, tensor": ("lora", {"tensor": 2}),
}


def tune_each(world: World, directory: Path, configs: dict[str, TuneConfig]) -> None:
    for name, config in configs.items():
        result = run_stage("tune", config, StageRun(directory / name))
        assert bool(result) == world.is_main


def settings(directory: Path, model: Path, method: str, parallel: dict[str, Any]) -> TuneConfig:
    loop = {"steps": 4, "batch_size": 3, "sequence_length": 64, "learning_rate": 1e-2, "precision": "fp32"}
    values = {"model": model, "data": [directory / "chat.jsonl"], "validation_fraction": 0.3, "method": method}
    return TuneConfig.model_validate({**values, "loop": {**loop, "log_every": 1, "parallel": parallel}})


def test_several_processes_tune_what_one_tunes(model_directory: Path, tmp_path: Path) -> None:
    with (tmp_path / "chat.jsonl").open("w") as file:
        for number in range(20):
            turns = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": "yes " * (number % 5)}]
            file.write(json.dumps({"messages": turns}) + "\n")
    configs = {name: settings(tmp_path, model_directory, *layout) for name, layout in LAYOUTS.items()}
    together(2, tune_each, tmp_path, configs)
    for name, (method, _) in LAYOUTS.items():
        alone, shared = StageRun(tmp_path / f"alone {method}"), StageRun(tmp_path / name)
        if not alone.directory.exists():
            run_stage("tune", settings(tmp_path, model_directory, method, {}), alone)
        for metric in ("loss", "validation_loss"):
            losses = [[record[metric] for record in run.metrics() if metric in record] for run in (shared, alone)]
            assert losses[0] == pytest.approx(losses[1], abs=1e-4), name
        expected = load_model(alone.directory / "model").state_dict()
        for key, value in load_model(shared.directory / "model").state_dict().items():
            torch.testing.assert_close(value, expected[key], atol=2e-3, rtol=0, msg=f"{name} {key}")
        assert (shared.directory / "adapter").exists() == (method == "lora")
