"""Workers that make updates of their own and come together at the ends of rounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tests.parallel.layouts import RATE, ROWS, make, make_updater, micro_batches, rows_of, together
from tests.train.toys import TIMINGS, loop_config, markov_batches, new_run, pack, tiny_model, weights
from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.models.decoder import Decoder
from tallow.objectives.causal import causal
from tallow.parallel import ALONE, Layout, ParallelConfig, World
from tallow.parallel.shares import own_share
from tallow.parallel.workers import Workers
from tallow.run import StageRun
from tallow.train.anomaly_log import AnomalyLog
from tallow.train.config import LoopConfig
from tallow.train.loop import Batches, train
from tallow.train.outer import OuterOptimizer
from tallow.train.rounds import Rounds


class Stop(Exception):
    """Ends a run as suddenly as a signal that cannot be caught."""


def shared_batches(layout: Layout, config: LoopConfig) -> Batches:
    """This process's rows of batches of the Markov chain."""
    whole = markov_batches(config)

    def batches(step: int) -> list[Packed]:
        [packed] = whole(step)
        rows = list(layout.reader.share(range(config.batch_size)))
        return [pack(packed.tokens_BT[rows])]

    return batches


def learned(directory: Path) -> list[dict[str, Any]]:
    timings = TIMINGS | {"slowest_s", "slowest_rank"}
    return [
        {key: value for key, value in record.items() if key not in timings} for record in StageRun(directory).metrics()
    ]


def distance(point: nn.Parameter, target: Tensor) -> Tensor:
    return (point - target).square().sum() / 2


def targets_of(worker: int, step: int) -> Tensor:
    return torch.randn(7, generator=torch.Generator().manual_seed(100 * worker + step))


def follow_the_paper(world: World) -> None:
    """The outer step is SGD with Nesterov's momentum by the mean of the changes; all workers end alike."""
    point, moved = nn.Parameter(torch.ones(7)), nn.Parameter(torch.zeros(3), requires_grad=False)
    outer = OuterOptimizer({"point": point}, {"moved": moved}, Workers(world, world.size), 0.7, 0.9)
    expected = nn.Parameter(torch.ones(7))
    sgd = torch.optim.SGD([expected], lr=0.7, momentum=0.9, nesterov=True)
    for step in range(4):
        point.data += targets_of(world.rank, step)
        moved.data += world.rank
        expected.grad = -sum((targets_of(worker, step) for worker in range(world.size)), torch.zeros(7)) / world.size
        outer.step()
        sgd.step()
        torch.testing.assert_close(point, expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(moved.data, torch.full((3,), (step + 1) * (world.size - 1) / 2))
    assert len({tuple(values) for values in world.gather(*point.tolist())}) == 1, "alike to the bit"


def equal_data_parallelism(world: World) -> None:
    """Rounds of one step by SGD, and an outer step that only takes the mean, are data parallelism."""
    point = nn.Parameter(torch.ones(7))
    outer = OuterOptimizer({"point": point}, {}, Workers(world, world.size), 1.0, 0.0)
    together_point = nn.Parameter(torch.ones(7))
    own, shared = torch.optim.SGD([point], lr=0.3), torch.optim.SGD([together_point], lr=0.3)
    for step in range(5):
        distance(point, targets_of(world.rank, step)).backward()
        own.step()
        outer.step()
        losses = [distance(together_point, targets_of(worker, step)) for worker in range(world.size)]
        (sum(losses, torch.zeros(())) / world.size).backward()
        shared.step()
        torch.testing.assert_close(point, together_point, atol=1e-6, rtol=1e-6)
        own.zero_grad()
        shared.zero_grad()


def find_the_optimum(world: World) -> None:
    """With the paper's settings, linear regression by workers that each see other data finds what all data is made of.

    By itself no worker could: the inputs of each lack two of the eight dimensions.
    """
    truth, generator = torch.arange(1.0, 9.0) / 8, torch.Generator().manual_seed(world.rank)
    point = nn.Parameter(torch.zeros(8))
    outer = OuterOptimizer({"point": point}, {}, Workers(world, world.size), 0.7, 0.9)
    inner = torch.optim.AdamW([point], lr=0.002, betas=(0.9, 0.95), weight_decay=0.0)
    seen = torch.arange(8) % 4 != world.rank
    for step in range(1, 501):
        x_BD = torch.randn(16, 8, generator=generator) * seen
        inner.param_groups[0]["lr"] = 0.002 * (1 - step / 500)
        (x_BD @ (point - truth)).square().mean().backward()
        inner.step()
        inner.zero_grad()
        if step % 5 == 0:
            outer.step()
    assert (point - truth).abs().max() < 0.03


@contextmanager
def counting_bytes() -> Iterator[list[int]]:
    """What all sums between processes are of, in bytes: first all, then those of what belongs to weights."""
    counted = [0, 0]
    plain = dist.all_reduce

    def all_reduce(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        counted[0] += tensor.nbytes
        counted[1] += tensor.nbytes if tensor.dtype in (torch.float32, torch.bfloat16) else 0
        return plain(tensor, *arguments, **named)

    dist.all_reduce = all_reduce
    yield counted
    dist.all_reduce = plain


def run_toy(world: World, directory: Path, config: LoopConfig, dies_at: int = 0) -> Decoder:
    model = tiny_model(seed=world.rank)
    layout = Layout(model, config.parallel, world)
    plain = shared_batches(layout, config)

    def batches(step: int) -> list[Packed]:
        if step + 1 == dies_at:
            raise Stop
        return list(plain(step))

    train(layout, causal, batches, config, new_run(directory), validate=lambda _: {"validation_loss": total(model)})
    return model


def total(model: Decoder) -> float:
    """Something that tells of the weights."""
    return weights(model).double().sum().item()


def learn_on_four(world: World, directory: Path) -> None:
    follow_the_paper(world)
    find_the_optimum(world)
    equal_data_parallelism(world)
    sent: dict[str, list[int]] = {}
    ways: dict[str, dict[str, Any]] = {
        "each step": {},
        "each fifth": {"local_steps": 5},
        "in bf16": {"local_steps": 5, "outer_precision": "bf16"},
    }
    for name, parallel in ways.items():
        with counting_bytes() as counted:
            model = run_toy(
                world,
                directory / name,
                loop_config(steps=20, learning_rate=1e-2, log_every=10, save_every=20, parallel=parallel),
            )
        sent[name] = counted
        assert len(set(map(tuple, world.gather(total(model))))) == 1, "all end with the same weights"
    if world.is_main:
        write_json(directory / "sent.json", sent)


def test_four_workers_learn_the_same_and_talk_a_fifth(tmp_path: Path) -> None:
    together(4, learn_on_four, tmp_path)
    sent = read_json(tmp_path / "sent.json")
    numbers = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert sent["each step"][1] >= 4 * numbers * 20
    assert sent["each fifth"][1] == 4 * numbers * 20 // 5
    assert sent["each fifth"][0] < 1.3 * sent["each fifth"][1], "little else is told"
    assert sent["in bf16"][1] == sent["each fifth"][1] // 2

    each_step, exact, rounded = (learned(tmp_path / name) for name in ("each step", "each fifth", "in bf16"))
    assert [record["step"] for record in exact] == [10, 20]
    assert [record["tokens"] for record in exact] == [record["tokens"] for record in each_step]
    assert exact[-1]["loss"] < exact[0]["loss"] - 0.2
    assert rounded[-1]["loss"] == pytest.approx(exact[-1]["loss"], abs=0.01)
    assert rounded[-1]["loss"] != exact[-1]["loss"]


def go_on(world: World, directory: Path, optimizer: str) -> None:
    """A run that stops in the midst of rounds, and one that does not."""
    config = loop_config(steps=10, optimizer=optimizer, save_every=3, validate_every=4, parallel={"local_steps": 4})
    whole = run_toy(world, directory / "whole", config)
    for dies_at in (5, 7, 9):  # after checkpoints of steps 3 and 6, in the midst of rounds
        with pytest.raises(Stop):
            run_toy(world, directory / "parts", config, dies_at)
    parts = run_toy(world, directory / "parts", config)
    assert torch.equal(weights(parts), weights(whole))
    with pytest.raises(Stop):
        run_toy(world, directory / "fewer", config, dies_at=7)


@pytest.mark.parametrize("optimizer", ["adamw", "lomo"])
def test_a_run_resumed_within_a_round_equals_an_uninterrupted_one(optimizer: str, tmp_path: Path) -> None:
    together(2, go_on, tmp_path, optimizer)
    whole = learned(tmp_path / "whole")
    assert learned(tmp_path / "parts") == whole
    assert [record["step"] for record in whole] == [4, 8, 10]
    assert ["validation_loss" in record for record in whole] == [True, True, True]
    assert whole[-1]["tokens"] == 10 * 4 * 16
    if optimizer == "lomo":
        return

    # another number of workers: the round ends with what those of before have come to
    step_6 = tmp_path / "fewer" / "checkpoints" / "step-00000006"
    saved = load_file(step_6 / "part-00000.safetensors") | load_file(step_6 / "part-00001.safetensors")
    config = loop_config(steps=10, save_every=100, parallel={"local_steps": 4})
    layout = Layout(tiny_model(seed=3), config.parallel)
    first: list[Tensor] = []

    def batches(step: int) -> list[Packed]:
        if step == 6 and not first:
            first.append(weights(layout.model) if isinstance(layout.model, Decoder) else torch.empty(0))
        return list(markov_batches(config)(step))

    train(layout, causal, batches, config, new_run(tmp_path / "fewer"))
    expected = []
    for name in layout.parameters:
        start, momentum = saved[f"model/{name}"], saved[f"momentum/{name}"]
        gradient = start - (saved[f"worker-00000/model/{name}"] + saved[f"worker-00001/model/{name}"]) / 2
        assert gradient.abs().max() > 0
        expected.append((start - 0.7 * (gradient + 0.9 * (0.9 * momentum + gradient))).flatten())
    torch.testing.assert_close(first[0], torch.cat(expected), atol=1e-6, rtol=0)
    assert [record["step"] for record in learned(tmp_path / "fewer")] == [4, 8, 10]


LAYOUTS: dict[str, dict[str, Any]] = {
    "zero 3": {"zero": 3, "replicas": 2},
    "tensor": {"tensor": 2},
    "pipeline": {"pipeline": 2},
    "ring": {"context": 2, "attention": "ring"},
}


def learn_in_layouts(world: World, directory: Path, layouts: Sequence[str]) -> None:
    for name in layouts or ["alone"]:
        config = ParallelConfig.model_validate({"local_steps": 2, **LAYOUTS.get(name, {})})
        layout = Layout(make("decoder", world.rank), config, world)
        updater = make_updater(layout, "decoder")
        rounds = Rounds(layout, updater, loop_config(parallel=config.model_dump()), steps=5)
        losses: list[float] = []
        for step in range(1, 6):
            rows = layout.reader.share(range(ROWS))
            update = updater.update(step, micro_batches(rows_of(step), rows, 2), RATE, "fp32")
            losses.append(rounds.count(step, update).loss if rounds.meet(step) else 0.0)
            rounds.end(step)
        whole = layout.gather()
        if world.is_main:
            save_file(whole, directory / f"{name}.safetensors")
            write_json(directory / f"{name}.json", {"losses": losses})


def test_workers_may_be_several_processes_each(tmp_path: Path) -> None:
    together(2, learn_in_layouts, tmp_path, [])
    together(4, learn_in_layouts, tmp_path, list(LAYOUTS))
    expected, losses = load_file(tmp_path / "alone.safetensors"), read_json(tmp_path / "alone.json")["losses"]
    assert losses[4] < losses[1]
    for name in LAYOUTS:
        assert read_json(tmp_path / f"{name}.json")["losses"] == pytest.approx(losses, abs=1e-5), name
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n} {m}")


BAD_STEP, BREAKING_STEP, STEPS = 5, 9, 16


def train_badly(world: World, directory: Path) -> None:
    """The second worker's batch is bad once, and later its weights break; both in the midst of rounds."""
    config = loop_config(steps=STEPS, save_every=4, anomalies={"patience": 2}, parallel={"local_steps": 4})
    model, step_now, broken = tiny_model(), 0, False

    def disturb(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output * float("nan") if world.rank == 1 and step_now == BAD_STEP else output

    model.layers[0].register_forward_hook(disturb)
    layout = Layout(model, config.parallel, world)
    plain = shared_batches(layout, config)

    def batches(step: int) -> list[Packed]:
        nonlocal step_now, broken
        step_now = step + 1
        if step_now == BREAKING_STEP and not broken:
            broken = True
            if world.rank == 1:
                own_share(next(iter(layout.parameters.values())).detach()).fill_(float("nan"))
        return list(plain(step))

    train(layout, causal, batches, config, new_run(directory))
    sums = world.gather(total(model))
    assert sums[0] == sums[1]
    assert weights(model).isfinite().all()


def test_what_one_worker_leaves_out_is_told_and_all_go_back_together(tmp_path: Path) -> None:
    together(2, train_badly, tmp_path)
    noted = AnomalyLog(tmp_path).read()
    assert [(record["step"], record["action"]) for record in noted] == [
        (BAD_STEP, "skipped"),
        *((step, "skipped") for step in (9, 10, 11, 12)),
        (12, "rolled back"),
    ]
    assert (noted[-1]["to"], noted[-1]["avoided"]) == (8, [7, 12])
    records = learned(tmp_path)
    assert [record["step"] for record in records] == [4, 8, 12, 16]
    assert [record["skipped"] for record in records] == [0, 1, 5, 5]
    assert ["loss" in record for record in records] == [True, True, False, True]


@pytest.mark.parametrize("other", [{"compress": "powersgd"}, {"expert": 2}])
def test_what_does_not_go_with_local_steps_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="local_steps"):
        ParallelConfig.model_validate({"local_steps": 2, **other})


def test_an_optimizer_with_weights_of_its_own_is_refused() -> None:
    with pytest.raises(UsageError, match="local_steps"):
        loop_config(optimizer="schedule_free", parallel={"local_steps": 2})


def test_one_worker_without_momentum_is_plain_training(tmp_path: Path) -> None:
    plain = run_toy(ALONE, tmp_path / "plain", loop_config())
    outer = {"local_steps": 4, "outer_learning_rate": 1.0, "outer_momentum": 0.0}
    alone = run_toy(ALONE, tmp_path / "outer", loop_config(parallel=outer))
    torch.testing.assert_close(weights(alone), weights(plain), atol=1e-5, rtol=0)
