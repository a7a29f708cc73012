"""Layers that compute with copies of their weights: on the CPU, where values show that nothing changes, and on a
pretended GPU, where it shows what is where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.pretend_gpu import NAME, pretend_gpu
from tests.processes import start
from tests.train.toys import loop_config, markov_batches, new_run, weights
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from tallow.files import read_json, write_json
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, Layer, initialize
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.parallel.device import CPU
from tallow.train.loop import train
from tallow.train.offload.layer_weights import LayerWeights
from tallow.train.offload.weights_on_host import WeightsOnHost
from tallow.train.optimizers.on_host import HostOptimizer
from tallow.train.update import Updater
from tallow.train.validation import HeldOut
from tallow.train.weight_change import WeightChange

LAYERS = 5
SHAPE = {"vocab_size": 8, "hidden_size": 32, "num_layers": LAYERS, "num_heads": 2, "num_kv_heads": 1}


def deep_model(*, gated: bool = True) -> Decoder:
    model = Decoder(DecoderConfig.model_validate({**SHAPE, "intermediate_size": 64, "gated": gated}))
    initialize(model, seed=0)
    return model


@pytest.mark.parametrize("recompute", ["none", "selective", "block"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_changes(tmp_path: Path, recompute: str, precision: str) -> None:
    config = loop_config(
        steps=3, save_every=1, validate_every=1, micro_batch_size=2, recompute=recompute, precision=precision
    )
    batches, found = markov_batches(config), dict[bool, Tensor]()
    for on_host in (False, True):
        model, run = deep_model(), new_run(tmp_path / str(on_host))
        layout = Layout(model, layers_on_host=on_host)
        train(layout, causal, batches, config, run, validate=HeldOut(causal, batches(100)))
        scores = [record["validation_loss"] for record in run.metrics()]
        found[on_host] = torch.cat([weights(model), torch.tensor(scores)])
    assert torch.equal(found[True], found[False])
    assert not torch.equal(found[True][:-3], weights(deep_model()))


def test_weights_that_are_not_trained_get_no_gradients() -> None:
    gradients = list[dict[str, Tensor]]()
    for on_host in (False, True):
        model = deep_model()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("q_proj" in name)
        layout, config = Layout(model, layers_on_host=on_host), loop_config()
        Updater(layout, causal, config).find(1, markov_batches(config)(0), 1e-3, "fp32")
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    plain, found = gradients
    assert len(plain) == LAYERS
    assert plain.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_weights_may_change_between_passes() -> None:
    [packed] = markov_batches(loop_config())(0)
    layout = Layout(deep_model(), layers_on_host=True)
    Updater(layout, causal, loop_config())
    for factor in (1.0, 2.0):
        plain = deep_model()
        for parameter in (*plain.parameters(), *(layout.model.parameters() if factor != 1.0 else ())):
            parameter.data.mul_(factor)
        assert layout.score(packed, causal) == Layout(plain).score(packed, causal)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> tuple[WeightsOnHost, Callable[[], set[int]]]:
    """A source, and what tells of which layers there are copies in memory, whoever holds them."""
    source, copies = WeightsOnHost(CPU), list[tuple[StorageWeakRef, int]]()
    make = source._copy

    def note(wanted: list[torch.nn.Parameter]) -> None:
        make(wanted)
        numbers = {weight: number for number, own in enumerate(source._weights.values()) for weight in own}
        copies.extend((StorageWeakRef(source._copies[w].tensor.untyped_storage()), numbers[w]) for w in wanted)

    monkeypatch.setattr(source, "_copy", note)
    return source, lambda: {number for reference, number in copies if not reference.expired()}


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_of_few_layers_there_are_copies(host: tuple[WeightsOnHost, Callable[[], set[int]]], recompute: str) -> None:
    source, alive = host
    seen = list[tuple[str, int, set[int]]]()
    # what the CPU makes again of a gate has its own way to be kept, and so keeps the product's weight
    layout, config = Layout(deep_model(gated=False)), loop_config()
    layers = layout.layers
    LayerWeights(layers, source)
    for number, layer in enumerate(layers):
        assert isinstance(layer, Layer)
        layer.register_forward_hook(lambda *_, n=number: seen.append(("forward", n, alive())))
        layer.attention.register_full_backward_hook(lambda *_, n=number: seen.append(("backward", n, alive())))
    layout.recompute("block" if recompute == "block" else "none")
    Updater(layout, causal, config).find(1, markov_batches(config)(0), 1e-3, "fp32")
    last = LAYERS - 1
    forward = [("forward", n, {n, min(n + 1, last)}) for n in range(LAYERS)]
    backward = [("backward", n, {n, max(n - 1, 0)}) for n in reversed(range(LAYERS))]
    assert seen == forward + backward


def train_elsewhere(path: Path) -> None:
    """Train, score and save on a device that is not the CPU; note who waits for it, and what is where."""
    with pretend_gpu() as gpu:
        model, config = deep_model(), loop_config(micro_batch_size=2, offload={"parameters": "cpu"})
        layout = Layout(model, device=torch.device(NAME, 0), layers_on_host=True)
        updater, batches = Updater(layout, causal, config), markov_batches(config)
        places = {name: parameter.device.type for name, parameter in model.named_parameters()}
        with_start = WeightChange(updater.parameters.values())
        gpu.waits.clear()
        updater.find(1, batches(0), 1e-3, "fp32")
        waits = list(gpu.waits)
        learned = {name: parameter.grad for name, parameter in model.named_parameters()}
        gradients = {name: value.device.type for name, value in learned.items() if value is not None}
        updater.apply(1, batches(0), 1e-3, "fp32")
        with updater.scoring("fp32"):
            layout.score(batches(1)[0], causal)
        with_start.squares()
        assert isinstance(updater.optimizer, HostOptimizer)
        state = {tensor.device.type for tensor in updater.optimizer.state()[0].values()}
        after = {name: parameter.device.type for name, parameter in model.named_parameters()}
        copied = [n for n, parameter in updater.optimizer.parameters.items() if parameter is not updater.parameters[n]]
        gathered = {tensor.device.type for tensor in layout.gather().values()}
    assert after == places
    found = {"places": places, "gradients": gradients, "waits": waits, "state": sorted(state), "copied": copied}
    write_json(path, found | {"gathered": sorted(gathered)})


def test_layers_on_a_gpu_leave_weights_gradients_and_state_on_the_cpu(tmp_path: Path) -> None:
    process = start(train_elsewhere, tmp_path / "found.json")
    process.join()
    assert process.exitcode == 0
    found = read_json(tmp_path / "found.json")
    expected = {name: "cpu" if "layers" in name else NAME for name, _ in deep_model().named_parameters()}
    assert found["places"] == found["gradients"] == expected
    assert found["state"] == found["gathered"] == ["cpu"]
    assert sorted(found["copied"]) == sorted(name for name in expected if "layers" not in name)
    in_layers = sum("layers" in name for name in expected)
    # of both micro-batches; those to the CPU are waited for where memory is not pinned only
    assert found["waits"] == [*["copy to the CPU"] * 2 * in_layers, "item", "item"]
