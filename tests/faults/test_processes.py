"""Processes that train together: one hangs, or dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from tests.parallel.layouts import join
from tests.processes import start
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model
from torch._C._distributed_c10d import TCPStore

from tallow.data.batch import Packed
from tallow.errors import Interrupted
from tallow.files import read_json, write_json
from tallow.objectives import Example
from tallow.objectives.causal import causal
from tallow.parallel import Layout, World
from tallow.run import StageRun
from tallow.stages import Recipe, run_recipe
from tallow.train.loop import train

STEPS = 60
"""Of a run that is stopped on its way."""


def hang(world: World, directory: Path) -> None:
    """The second process never has its third batch; what the first one says of it goes into a file."""
    config = loop_config(parallel={"timeout_s": 6.0, "zero": 3})
    layout, plain = Layout(tiny_model(), config.parallel, world), markov_batches(config)

    def batches(step: int) -> list[Packed]:
        if step == 2 and not world.is_main:
            time.sleep(60)
        return plain(step)

    try:
        train(layout, causal, batches, config, new_run(directory))
    except Interrupted as error:
        write_json(directory / "said.json", {"message": error.message})
        os._exit(error.exit_code)


def stop(world: World, directory: Path) -> None:
    """The second process is stopped while it computes what the first one waits for."""
    config = loop_config(parallel={"timeout_s": 4.0, "zero": 3})
    layout, seen = Layout(tiny_model(), config.parallel, world), 0

    def objective(packed: Packed) -> Example:
        nonlocal seen
        seen += 1
        if seen == 12 and not world.is_main:
            os.kill(os.getpid(), signal.SIGSTOP)
        return causal(packed)

    try:
        train(layout, objective, markov_batches(config), config, new_run(directory))
    except Interrupted as error:
        write_json(directory / "said.json", {"message": error.message})
        os._exit(error.exit_code)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the first of two processes says when it gives up the second one, which hangs or is stopped.

    Both pairs run at the same time: they mostly wait.
    """
    places = {work: tmp_path_factory.mktemp(work.__name__) for work in (hang, stop)}
    pairs = [start_pair(work, place) for work, place in places.items()]
    for first, second in pairs:
        first.join(timeout=120)
        second.kill()
    assert [first.exitcode for first, _ in pairs] == [5, 5]
    return {work.__name__: read_json(place / "said.json")["message"] for work, place in places.items()}


def start_pair(work: Callable[[World, Path], None], place: Path) -> list[ForkServerProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(join, work, rank, 2, port, place) for rank in range(2)]


def test_a_process_that_hangs_is_named_with_what_it_does(said: dict[str, str]) -> None:
    message = said["hang"]
    assert message.startswith("process 0 has waited 6 s for others in the gradients of step 3; process 1 has been in")
    assert "in the batch of step 3 for" in message
    assert "sign of life" not in message


def test_a_process_that_is_stopped_within_the_same_work_is_named(said: dict[str, str]) -> None:
    message = said["stop"]
    assert "; process 1 has been in the gradients of step" in message
    assert message.endswith(" s and shows no sign of life")


def recipe(steps: int) -> str:
    return f"""
name: tiny
prepare: {{sources: [text.txt], split: paragraphs}}
tokenizer: {{vocab_size: 264}}
encode: {{}}
pretrain:
  model: {{hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 1, intermediate_size: 64}}
  loop: {{steps: {steps}, batch_size: 4, sequence_length: 32, log_every: 1, save_every: 5, precision: fp32}}
"""


def set_up(place: Path, steps: int) -> None:
    """Leave in a directory a recipe, a run `alone` of it, and a run `spread` of which all is done but the training."""
    words = ["the", "fox", "hen", "owl", "said", "to", "a", "good", "morning", "and", "went", "home"]
    texts = [" ".join(words[(i * j) % len(words)] for j in range(1, 30)) + f" {i}." for i in range(60)]
    (place / "text.txt").write_text("\n\n".join(texts))
    (place / "tiny.yaml").write_text(recipe(steps))
    here = Path.cwd()
    os.chdir(place)
    try:
        run_recipe(Recipe.load("tiny.yaml"), "alone")
    finally:
        os.chdir(here)
    for stage in ("prepare", "tokenizer", "encode"):
        shutil.copytree(place / "alone" / stage, place / "spread" / stage)


def torchrun(place: Path, log: str, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "--", "tallow", "run", "tiny.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with (place / log).open("wb") as output:
        return subprocess.Popen(
            [*command, "--run", "spread", "--set", "pretrain.loop.parallel.zero=3"],
            cwd=place,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def wait_for_steps(process: subprocess.Popen[bytes], run: Path, steps: int) -> None:
    deadline = time.monotonic() + 120
    while len(StageRun(run).metrics()) < steps:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(agent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


def assert_learned_alike(place: Path) -> None:
    alone, spread = (StageRun(place / run / "pretrain").metrics() for run in ("alone", "spread"))
    assert [record["step"] for record in spread] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in spread] == pytest.approx([record["loss"] for record in alone], abs=1e-4)
    assert [record["tokens"] for record in spread] == [record["tokens"] for record in alone]


def test_a_process_that_dies_is_started_again_and_a_machine_less_is_enough(tmp_path: Path) -> None:
    """Two agents of one process each, as on two machines: a process is killed, then a whole machine goes."""
    place = tmp_path
    set_up(place, STEPS)
    run = place / "spread" / "pretrain"
    meeting = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    options = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=tiny"]
    options += [f"--rdzv-endpoint=127.0.0.1:{meeting.port}"]
    options += ["--rdzv-conf=is_host=0,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=2"]
    staying, going = (torchrun(place, log, *options) for log in ("staying", "going"))
    wait_for_steps(staying, run, 12)
    os.kill(workers_of(going.pid)[0], signal.SIGKILL)
    wait_for_starts(staying, place, 2)
    wait_for_steps(staying, run, 30)
    for process in (*workers_of(going.pid), going.pid):
        os.kill(process, signal.SIGKILL)
    going.wait()
    wait_for_starts(staying, place, 3)
    assert staying.wait(timeout=120) == 0, (place / "staying").read_text()
    assert_learned_alike(place)


def wait_for_starts(agent: subprocess.Popen[bytes], place: Path, starts: int) -> None:
    """Wait until the run has begun or gone on this often."""
    deadline = time.monotonic() + 120
    while sum((place / log).read_text().count("going on from step") for log in ("staying", "going")) < starts - 1:
        assert agent.poll() is None, (place / "staying").read_text()
        assert time.monotonic() < deadline, (place / "staying").read_text() + (place / "going").read_text()
        time.sleep(0.05)
