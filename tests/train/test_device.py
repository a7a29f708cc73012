from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parallel.layouts import make, objective_of, rows_of
from tests.pretend_gpu import NAME, pretend_gpu
from tests.processes import start
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, weights

from tallow.errors import CapacityError, UsageError
from tallow.files import read_json, write_json
from tallow.models.config import DecoderConfig
from tallow.objectives.causal import causal
from tallow.parallel import ALONE, Layout
from tallow.parallel.device import training_device
from tallow.train import memory
from tallow.train.checkpoint_files import take_shares
from tallow.train.loop import train
from tallow.train.memory import check_memory
from tallow.train.placing import lay_out
from tallow.train.precision import half_precision, settle_workload
from tallow.train.update import Updater
from tallow.train.weight_change import WeightChange

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let PyTorch say that there are two GPUs; what it is told to use is noted."""
    chosen: list[int] = []
    monkeypatch.setattr("tallow.engine.choices.GPU_FILES", ("/",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _number: None)
    return chosen


@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_each_process_has_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch, choice: Any) -> None:
    chosen = two_gpus(monkeypatch)
    assert training_device(choice) == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training_device(choice) == torch.device("cuda", 1)
    assert chosen == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="process 2 of this machine has no GPU, for there are 2") as caught:
        training_device(choice)
    assert "--nproc-per-node 2" in str(caught.value.hint)
    assert training_device("cpu") == torch.device("cpu")
    assert chosen == [0, 1]


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        lay_out(tiny_model(), loop_config(device="cuda"), ALONE)
    assert lay_out(tiny_model(), loop_config(device="auto"), ALONE).device.type == "cpu"


def test_the_device_is_no_part_of_what_is_trained() -> None:
    assert loop_config(device="cpu").result_settings() == loop_config(device="cuda").result_settings()


def step_elsewhere(path: Path) -> None:
    """Train, score and save on a device that is not the CPU, and note the waits for it."""
    waits: dict[str, list[str]] = {}
    with pretend_gpu() as gpu:
        for kind in ("decoder", "untied", "encoder"):
            model = make(kind, 0)
            layout, objective = Layout(model, device=torch.device(NAME, 0)), objective_of(kind)
            assert {parameter.device.type for parameter in model.parameters()} == {NAME}
            updater = Updater(layout, objective, loop_config())
            micro_batches = [rows_of(0), rows_of(1)]
            with_start = WeightChange(updater.parameters.values())
            gpu.waits.clear()
            updater.update(1, micro_batches, 1e-3, "fp32")
            waits[f"{kind}: update"] = list(gpu.waits)
            gpu.waits.clear()
            with updater.scoring("fp32"):
                layout.score(rows_of(2), objective)
            waits[f"{kind}: score"] = list(gpu.waits)
            gpu.waits.clear()
            with_start.squares()
            waits[f"{kind}: change"] = list(gpu.waits)
            state, _ = updater.optimizer.state()
            saved = take_shares({**dict(model.named_parameters()), **state}, copied=True).tensors | layout.gather()
            assert {tensor.device.type for tensor in saved.values()} == {"cpu"}
    write_json(path, waits)


def test_all_of_a_step_is_on_the_models_device_and_little_waits_for_it(tmp_path: Path) -> None:
    process = start(step_elsewhere, tmp_path / "waits.json")
    process.join()
    assert process.exitcode == 0
    waits: Mapping[str, list[str]] = read_json(tmp_path / "waits.json")
    for name, found in waits.items():
        # an update waits for its loss and its gradient's norm, whatever the number of micro-batches and parameters; the
        # two numbers of a change come at once, which only here are read one by one
        expected = {"update": ["item", "item"], "score": ["item"], "change": ["item", "item"]}
        assert found == expected[name.partition(": ")[2]], name


def test_auto_takes_fp16_where_a_gpu_has_no_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert half_precision(torch.device("cpu")) == "bf16"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert half_precision(torch.device("cuda", 0)) == "fp16"
    monkeypatch.setattr("tallow.train.precision.half_precision", lambda _device: "fp16")
    monkeypatch.setattr("tallow.train.precision.PROBE_SECONDS", 0.0)
    tried: list[str] = []
    seconds = {"fp32": 0.02, "fp16": 0.0}

    def rehearse(_packed: object, precision: str) -> None:
        tried.append(precision)
        torch.zeros(1).add_(1)
        torch.mm(torch.ones(8, 8), torch.ones(8, 8))
        _sleep(seconds[precision])

    workload = settle_workload("auto", rehearse, rows_of(0), tmp_path / "workload.json", Layout(tiny_model()))
    assert workload.precision == "fp16"
    assert set(tried) == {"fp32", "fp16"}


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)


def test_memory_is_that_of_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    config, loop = DecoderConfig(vocab_size=512), loop_config(device="cuda")
    needed = memory.training_bytes(config, loop)
    monkeypatch.setattr(memory, "training_device", torch.device)
    monkeypatch.setattr(memory, "machine_bytes", lambda device="cpu": needed * 3 // 4 if device == "cuda" else 2**60)
    with pytest.raises(CapacityError, match="memory on GPUs"):
        check_memory(config, loop)
    check_memory(config, loop_config(device="cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_memory(config, loop)


def test_shares_are_copies_where_they_must_be() -> None:
    tensor = torch.ones(3)
    [copied], [same] = (take_shares({"x": tensor}, copied=copied).tensors.values() for copied in (True, False))
    tensor.add_(1)
    assert copied.tolist() == [1, 1, 1]
    assert same.tolist() == [2, 2, 2]


@ON_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_learns_what_a_cpu_learns_and_goes_on_from_there(tmp_path: Path, precision: str) -> None:
    results, learned = {}, {}
    for device in ("cpu", "cuda"):
        config = loop_config(device=device, precision=precision, save_every=6, micro_batch_size=2)
        model = tiny_model()
        layout = lay_out(model, config, ALONE)
        results[device] = train(layout, causal, markov_batches(config), config, new_run(tmp_path / device))["loss"]
        learned[device] = weights(model.cpu())
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    assert results["cuda"] == pytest.approx(results["cpu"], rel=tolerance)
    torch.testing.assert_close(learned["cuda"], learned["cpu"], rtol=0, atol=tolerance)
    # what one has saved, the other takes up
    config = loop_config(device="cuda", precision=precision, save_every=6, micro_batch_size=2, steps=12)
    again = train(
        lay_out(tiny_model(), config, ALONE), causal, markov_batches(config), config, new_run(tmp_path / "cpu")
    )
    assert again["steps"] == 12


def test_compressed_sums_need_no_gpu_to_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    layout = lay_out(tiny_model(), loop_config(device="cpu", parallel={"compress": "powersgd"}), ALONE)
    assert layout.device.type == "cpu"
