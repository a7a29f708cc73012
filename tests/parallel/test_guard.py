"""What one process finds bad, all leave out; and the one that keeps the others waiting is named."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import torch
from tests.processes import start
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model
from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.files import read_json, write_json
from tallow.objectives.causal import causal
from tallow.parallel import Layout, join_world
from tallow.parallel.shares import own_share
from tallow.run import StageRun
from tallow.train.anomaly_log import AnomalyLog
from tallow.train.loop import train

BAD_STEP, BREAKING_STEP, STEPS = 4, 9, 14


def train_badly(rank: int, port: int, directory: Path, zero: int) -> None:
    """One of two processes. The second one's part of a batch is bad, later its weights break, and it is slow."""
    torch.set_num_threads(1)
    with (directory / f"said{rank}").open("wb") as said:  # the server that forks processes has another test's stderr
        os.dup2(said.fileno(), 2)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", **place})
    config = loop_config(steps=STEPS, batch_size=5, save_every=3, anomalies={"patience": 2}, parallel={"zero": zero})
    whole, model = markov_batches(config), tiny_model(seed=rank)
    step_now, broken = 0, False

    def disturb(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        if rank == 1 and zero == 0 and step_now > BREAKING_STEP:
            time.sleep(1.0)  # much longer than the other takes, also on a busy machine
        return output * float("nan") if rank == 1 and step_now == BAD_STEP else output

    with join_world() as world:
        model.layers[0].register_forward_hook(disturb)
        layout = Layout(model, config.parallel, world)

        def batches(step: int) -> list[Packed]:
            nonlocal step_now, broken
            step_now = step + 1
            if step_now == BREAKING_STEP and not broken:
                broken = True
                if rank == 1:
                    own_share(next(iter(layout.parameters.values())).detach()).fill_(float("nan"))
            [packed] = whole(step)
            rows = list(world.share(range(5)))
            parts = (packed.tokens_BT[rows], packed.documents_BT[rows], packed.trainable_BT[rows])
            return [Packed(*parts, torch.tensor(rows) + 5 * step)]

        train(layout, causal, batches, config, new_run(directory))
        uneven = world.gather(*[rank + 0.5] * (2 * rank))
        own = torch.cat([own_share(value.detach()).flatten() for value in layout.parameters.values()])
        write_json(directory / f"rank{rank}.json", {"weights": own.tolist(), "uneven": uneven})


@pytest.mark.parametrize("zero", [0, 3])
def test_all_do_the_same(zero: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(train_badly, rank, port, tmp_path, zero) for rank in range(2)]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]

    one, other = (read_json(tmp_path / f"rank{rank}.json") for rank in range(2))
    assert (one["weights"] == other["weights"]) is (zero == 0)
    assert torch.tensor(one["weights"] + other["weights"]).isfinite().all()
    assert one["uneven"] == other["uneven"] == [[], [1.5, 1.5]]

    noted = AnomalyLog(tmp_path).read()
    assert [(record["step"], record["action"]) for record in noted] == [
        (BAD_STEP, "skipped"),
        (BREAKING_STEP, "skipped"),
        (BREAKING_STEP, "rolled back"),
    ]
    assert noted[0]["rows"] == [15, 16, 17, 18, 19]
    assert (noted[2]["to"], noted[2]["avoided"]) == (6, [7, 9])

    records = StageRun(tmp_path).metrics()
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["step"] for record in records if "loss" not in record] == [BAD_STEP, 7, 8, 9]
    if zero == 0:  # sharded weights make them meet in each layer
        assert {record["slowest_rank"] for record in records[BREAKING_STEP:]} == {1}
        said = (tmp_path / "said0").read_text()
        # once; on a busy machine it may have been slow for a while before
        assert 1 <= said.count(f"process 1 on {socket.gethostname()} keeps the others waiting") <= 2
