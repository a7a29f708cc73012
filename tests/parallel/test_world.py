from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parallel.layouts import together
from tests.processes import start
from tests.train.toys import loop_config, markov_batches, new_run, pack, tiny_model, weights

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.objectives.causal import causal
from tallow.parallel import ALONE, Layout, ParallelConfig, World, join_world
from tallow.parallel import world as world_module
from tallow.parallel.world import buckets
from tallow.run import StageRun
from tallow.train.loop import train


def train_toy(rank: int, size: int, port: int, directory: Path) -> None:
    """One process of a run, under the variables that torchrun sets.

    Each process starts from weights of its own; the main one's must win. The batch of 5 rows cannot be shared evenly,
    and the processes have very different numbers of targets.
    """
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(size), **place})
    config = loop_config(batch_size=5)
    whole = markov_batches(config)
    with join_world() as world:
        model = tiny_model(seed=rank)
        layout = Layout(model, config.parallel, world)

        def batches(step: int) -> list[Packed]:
            [packed] = whole(step)
            rows = list(layout.reader.share(range(5)))
            mask_BT = torch.ones_like(packed.trainable_BT)
            mask_BT[0, 3:] = False
            return [pack(packed.tokens_BT[rows], mask_BT[rows])]

        run = new_run(directory if world.is_main else directory / f"rank{rank}")
        train(layout, causal, batches, config, run)
        write_json(
            directory / f"rank{rank}.json",
            {"sums": world.sum(rank + 1, 0.5), "weights": weights(model).double().sum().item()},
        )


def run_processes(size: int, directory: Path) -> list[dict[str, Any]]:
    """What each of `size` processes reports of the same run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(train_toy, rank, size, port, directory) for rank in range(size)]
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * size
    return [read_json(directory / f"rank{rank}.json") for rank in range(size)]


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    [one] = run_processes(1, tmp_path / "one")
    two = run_processes(2, tmp_path / "two")
    single, several = (StageRun(tmp_path / name).metrics() for name in ("one", "two"))
    assert len(single) == 12
    for alone, shared in zip(single, several, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert shared["gradient_norm"] == pytest.approx(alone["gradient_norm"], rel=1e-4)
        assert shared["tokens"] == alone["tokens"]
    assert [process["sums"] for process in two] == [[3.0, 1.0], [3.0, 1.0]]
    assert two[0]["weights"] == two[1]["weights"] == pytest.approx(one["weights"], abs=1e-3)
    assert not (tmp_path / "two" / "rank1" / "metrics.jsonl").exists()


def test_alone_sums_are_what_is_there() -> None:
    assert ALONE.sum(1, 2.5, True) == [1.0, 2.5, 1.0]
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert ALONE.is_main


def test_work_is_shared_without_loss() -> None:
    shares = [World(rank, 3).share(range(8)) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == list(range(8))


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "2", "RANK": "x"},
        {"WORLD_SIZE": "2", "RANK": "0"},
    ],
)
def test_an_environment_that_torchrun_did_not_make(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"RANK|WORLD_SIZE"), join_world():
        pass


def test_buckets_hold_one_dtype_and_about_so_many_bytes() -> None:
    tensors = [torch.zeros(shape) for shape in [(3, 3), (1,), (20,), (2, 2), ()]]
    tensors.append(torch.zeros(4, dtype=torch.bfloat16))
    cut = list(buckets(tensors, 40))
    assert [len(bucket) for bucket in cut] == [2, 1, 2, 1]
    assert [tensor for bucket in cut for tensor in bucket] == tensors


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_never_come_are_not_waited_for(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(world_module, "JOIN_PATIENCE", timedelta(seconds=1))
    with pytest.raises(UsageError, match=f"process {rank} has not met the other 1 of WORLD_SIZE 2"), join_world():
        pass


def refuse_differences(world: World, directory: Path) -> None:
    """What one of two processes says where the two differ."""
    world.require_alike("names", "alike")
    messages = []
    config = loop_config()
    for seed, learning_rate, tensor in ((0, 1e-3, 1 + world.rank), (0, 1e-3 * (1 + world.rank), 1)):
        with pytest.raises(UsageError) as refused:
            layout = Layout(tiny_model(seed), ParallelConfig(tensor=tensor), world)
            changed = config.model_copy(update={"learning_rate": learning_rate})
            train(layout, causal, markov_batches(changed), changed, new_run(directory / str(world.rank)))
        messages.append(refused.value.message)
    write_json(directory / f"{world.rank}.json", {"messages": messages})


def test_processes_that_differ_are_all_refused(tmp_path: Path) -> None:
    together(2, refuse_differences, tmp_path)
    for rank in range(2):
        layouts, settings = read_json(tmp_path / f"{rank}.json")["messages"]
        assert "different models or settings of loop.parallel: that of process 1" in layouts
        assert "different settings or data" in settings
