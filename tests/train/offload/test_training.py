"""What is kept on disk: training is the same to the bit, and memory is spared."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.test_optimizers import FREQUENT, METHODS, Stop
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, weights
from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.train.config import LoopConfig
from tallow.train.loop import train
from tallow.train.offload import windows
from tallow.train.offload.layer_weights import LayerWeights
from tallow.train.offload.mapped_file import MappedFile
from tallow.train.offload.weights_on_disk import WeightsOnDisk
from tallow.train.update import Updater

WITH_STATE = sorted(name for name, method in METHODS.items() if not method.updates_in_backward)
DISK = {"state": "disk"}
BOTH = {"state": "disk", "parameters": "disk"}
SHAPE = {"vocab_size": 8, "hidden_size": 32, "num_layers": 4, "num_heads": 2, "num_kv_heads": 1}
DEEP = DecoderConfig.model_validate({**SHAPE, "intermediate_size": 64})


def deep_model() -> Decoder:
    model = Decoder(DEEP)
    initialize(model, seed=0)
    return model


@pytest.fixture(autouse=True)
def _windows_for_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several windows in a toy, and everything in the file that can be there."""
    monkeypatch.setattr(windows, "WINDOW_BYTES", 9000)
    monkeypatch.setattr(windows, "SMALL_BYTES", 1)


def settings(name: str, offload: dict[str, Any]) -> LoopConfig:
    return loop_config(steps=4, save_every=2, optimizer={"name": name, **FREQUENT.get(name, {})}, offload=offload)


@pytest.mark.parametrize("name", WITH_STATE)
def test_nothing_changes_also_across_a_checkpoint(tmp_path: Path, name: str) -> None:
    plain, disk = settings(name, {}), settings(name, DISK)
    batches = markov_batches(plain)

    def dying(step: int) -> list[Packed]:
        if step == 3:
            raise Stop
        return batches(step)

    def learn(place: str, config: LoopConfig, *, dies: bool = False) -> torch.Tensor:
        model = tiny_model()
        train(Layout(model), causal, dying if dies else batches, config, new_run(tmp_path / place))
        return weights(model)

    expected = learn("plain", plain)
    assert torch.equal(learn("disk", disk), expected)
    assert not torch.equal(weights(tiny_model()), expected)
    for place, before, after in (("there", plain, disk), ("back", disk, plain)):
        with pytest.raises(Stop):
            learn(place, before, dies=True)
        assert torch.equal(learn(place, after), expected), place


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_an_optimizer_without_state_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        settings(name, DISK)


@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("state", ["none", "disk"])
def test_weights_of_layers_may_be_on_disk(tmp_path: Path, recompute: str, state: str) -> None:
    plain, disk = (
        loop_config(steps=3, micro_batch_size=2, recompute=recompute, offload=offload)
        for offload in ({}, {"state": state, "parameters": "disk"})
    )
    expected, model = deep_model(), deep_model()
    train(Layout(expected), causal, markov_batches(plain), plain, new_run(tmp_path / "plain"))
    train(Layout(model), causal, markov_batches(disk), disk, new_run(tmp_path / "disk"))
    assert torch.equal(weights(model), weights(expected))
    assert not torch.equal(weights(model), weights(deep_model()))


def test_layers_that_have_computed_leave_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are read and dropped, in the order in which layers compute: forward, backward, then the update."""
    numbers: dict[int, int] = {}
    told: list[str] = []

    def tell(sign: str) -> Callable[[MappedFile, Sequence[Tensor]], None]:
        return lambda _file, tensors: told.extend(
            f"{sign}{n}" for n in sorted({numbers[t.data_ptr()] for t in tensors})
        )

    layout, config = Layout(deep_model()), loop_config(offload={"parameters": "disk"})
    updater = Updater(layout, causal, config, tmp_path)
    for number, layer in enumerate(layout.layers):
        numbers |= {weight.data_ptr(): number for weight in layer.parameters()}
    monkeypatch.setattr(MappedFile, "want", tell("+"))
    monkeypatch.setattr(MappedFile, "drop", tell("-"))
    [packed] = markov_batches(config)(0)
    updater.rehearse(packed, "fp32")
    # what is wanted is asked for by another thread, so its place among what is dropped is open
    dropped = ["-0", "-1", "-2", "-3", "-0", "-1", "-2", "-3", "-2", "-1"]
    assert [name for name in told if name[0] == "-"] == dropped
    deadline = time.monotonic() + 60
    while len(told) < len(dropped) + 6 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert [name for name in told if name[0] == "+"] == ["+1", "+2", "+3", "+2", "+1", "+0"]


def test_weights_elsewhere_are_refused() -> None:
    with pytest.raises(UsageError, match="these are on meta"):
        LayerWeights([nn.Linear(2, 2, device="meta")], WeightsOnDisk(MappedFile(Path())))


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("parallel", [{"zero": 1}, {"zero": 2}, {"zero": 3, "pipeline": 2}])
def test_layers_that_are_gathered_all_at_once_are_refused(place: str, parallel: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"zero {parallel['zero']}"):
        loop_config(parallel=parallel, offload={"parameters": place})
    loop_config(parallel={"zero": 3}, offload={"parameters": place})


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "lomo"},
        {"parallel": {"tensor": 2}},
        {"parallel": {"pipeline": 2}},
        {"parallel": {"expert": 2}},
        {"parallel": {"compress": "powersgd"}},
        {"recompute": "block", "activation_mb": 100},
    ],
)
def test_what_layers_on_the_host_cannot_do_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="parameters"):
        loop_config(**settings, offload={"parameters": "cpu"})
    loop_config(**settings, offload={"parameters": "none"})


def test_a_copy_in_memory_of_what_is_to_leave_it_is_refused() -> None:
    with pytest.raises(UsageError, match="save_in_background"):
        loop_config(save_in_background=True, offload={"parameters": "disk"})
