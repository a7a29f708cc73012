from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, weights
from torch import Tensor, nn

from tallow.objectives.causal import causal
from tallow.parallel import ALONE, Layout, World
from tallow.train import weight_change
from tallow.train.activations import activation_peak
from tallow.train.loop import train
from tallow.train.meter import Meter
from tallow.train.stragglers import Stragglers
from tallow.train.weight_change import WeightChange


def test_the_change_of_few_weights_is_exact() -> None:
    parameters = [nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([[0.0, 12.0]]))]
    before = WeightChange(parameters)
    with torch.no_grad():
        parameters[0].add_(torch.tensor([0.3, 0.4]))
        parameters[1].add_(torch.tensor([[1.2, 0.0]]))
    assert before.squares() == pytest.approx((0.25 + 1.44, 169.0), rel=1e-5)


@pytest.mark.parametrize("shape", [(1024, 1024), (576, 1000), (300_000,)])
def test_the_change_of_many_weights_is_sampled_evenly(shape: tuple[int, ...]) -> None:
    """Also where columns differ, and the rows are as long as the distance between samples might be."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape))
    columns = torch.linspace(0, 1e-2, shape[-1])
    change = torch.randn(shape) * columns
    before = WeightChange([parameter])
    weights_then = parameter.square().sum().item()
    with torch.no_grad():
        parameter += change
    squared_change, squared_weights = before.squares()
    assert squared_change == pytest.approx(change.square().sum().item(), rel=0.05)
    assert squared_weights == pytest.approx(weights_then, rel=0.05)
    assert sum(part.numel() for part in before._before) == weight_change.SAMPLE


def test_the_peak_of_activations_is_that_between_the_layers() -> None:
    model = tiny_model()
    seen: list[float] = []
    handle = model.layers[0].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.abs().max().item())
    )
    config = loop_config()
    with activation_peak(model) as peak:
        for step in range(3):
            example = causal(markov_batches(config)(step)[0])
            model(example.inputs_BT, example.context)
    assert len(seen) == 3
    assert peak.value == max(seen)
    handle.remove()
    assert not model.layers[0]._forward_hooks, "it leaves nothing behind"


def test_layers_that_give_tuples_or_none_at_all() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return 2 * x, None

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Pair(), Pair()])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x, _ = layer(x)
            return x

    two = Two()
    with activation_peak(two) as peak:
        two(torch.tensor([1.0, -3.0]))
    assert peak.value == 12
    with activation_peak(nn.Linear(1, 1)) as nothing:
        pass
    assert nothing.value is None


def test_looking_changes_nothing(tmp_path: Path) -> None:
    models = [tiny_model(), tiny_model()]
    for model, every in zip(models, (1, 100), strict=True):
        config = loop_config(log_every=every)
        train(Layout(model), causal, markov_batches(config), config, new_run(tmp_path / str(every)))
    assert torch.equal(weights(models[0]), weights(models[1]))


def test_the_share_of_the_peak_is_that_of_the_measured_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallow.train.health.matmul_peak", lambda _dtype, _device: 1e9)
    config, run = loop_config(), new_run(tmp_path)
    train(Layout(tiny_model()), causal, markov_batches(config), config, run)
    for record in run.metrics():
        assert record["mfu"] == pytest.approx(record["flops_per_s"] / 1e9, abs=1e-4)


def test_the_update_ratio_is_that_of_the_optimizer(tmp_path: Path) -> None:
    """Lion moves each weight by the learning rate."""
    config = loop_config(optimizer="lion", weight_decay=0.0, steps=1, warmup=0.0)
    run, model = new_run(tmp_path), tiny_model()
    norm = weights(model).norm().item()
    train(Layout(model), causal, markov_batches(config), config, run)
    [record] = run.metrics()
    moved = record["learning_rate"] * weights(model).numel() ** 0.5
    assert record["update_ratio"] == pytest.approx(moved / norm, rel=0.02)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("tallow.train.meter.time.perf_counter", lambda: now[0])
    return now


def test_the_meter_tells_shares_and_medians(clock: list[float]) -> None:
    meter = Meter(tokens=1000, flops_per_token=10.0)
    for waiting, working, own in ((1.0, 3.0, 2.0), (1.0, 1.0, 0.5), (1.0, 5.0, 4.0)):
        with meter.waiting():
            clock[0] += waiting
        with meter.working():
            clock[0] += working
        clock[0] += 100  # a checkpoint, say
        meter.count(60, own)
    assert meter.read() == {
        "tokens": 1180,
        "tokens_per_s": 15.0,
        "flops_per_s": 150,
        "step_s": 4.0,
        "data_wait": 0.25,
    }
    assert meter.own_s == 3.0
    meter.tokens = 1000  # it goes back
    with meter.waiting():
        clock[0] += 1
    with meter.working():
        clock[0] += 1
    meter.count(60, 1.0)
    assert meter.read()["tokens_per_s"] == 30
    assert meter.tokens == 1060


def test_who_is_slow_for_several_records_is_named_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = [list(b"one"), list(b"one"), list(b"two")]
    monkeypatch.setattr(World, "gather", lambda world, *_name: hosts[: world.size])
    stragglers = Stragglers(World(0, 3))
    assert [stragglers.note([1.0, 1.1, 2.0]) for _ in range(5)] == [[], [], [2], [], []]
    assert capsys.readouterr().err == "process 2 on two keeps the others waiting: 2 s a step, where 1.1 s is usual\n"
    for fast in (1, 3):  # a short relief does not count
        assert [stragglers.note([1.0, 1.0, 1.0]) for _ in range(fast)] == [[]] * fast
        assert [stragglers.note([1.0, 1.0, 2.0]) for _ in range(3)] == [[], [], [2] if fast == 3 else []]
    assert [Stragglers(World(0, 2)).note(times) for times in ([1.0, 1.2],) * 9] == [[]] * 9
    assert Stragglers(ALONE).note([1.0]) == []
