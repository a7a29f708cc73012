"""Two processes compute what one does, each with its half of the model."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import CONFIGS, make_model, make_tokenizer, tiny
from tests.engine.lora import merged, random_adapter
from tests.engine.test_runners import chunked, random_ids, whole
from tests.processes import start

import tallow
from tallow.engine.engine import Engine
from tallow.engine.process_group import LOOPBACK, ProcessGroup, ProcessLost
from tallow.engine.request import RequestState, SamplingParams
from tallow.engine.tensor_parallel import TensorParallelRunner, check_divisible, shard
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import DataError, UsageError
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.formats import save_model
from tallow.models.quantization import quantize_modules

MODELS: dict[str, Callable[[], Decoder]] = {
    name: lambda config=config: make_model(config) for name, config in CONFIGS.items() if name != "one kv head"
}
MODELS |= {
    "norm of all heads": lambda: make_model(tiny(qk_norm="hidden", norm_placement="post")),
    "biases": lambda: make_model(tiny(qkv_bias=True, attention_output_bias=True, feed_forward_bias=True)),
    "8 bits": lambda: quantize_modules(make_model(tiny(hidden_size=128, intermediate_size=64)), 8, 32),
    "bf16": lambda: make_model(CONFIGS["llama"]).bfloat16(),
}


def make_runner(name: str, rank: int, place: Path) -> TensorParallelRunner:
    torch.set_num_threads(1)
    group = ProcessGroup(f"file://{place}", rank, 2, LOOPBACK)
    model = MODELS[name]()
    config = model.config
    shard(model, group)
    return TensorParallelRunner(model, config, group)


def follow(orders: Connection) -> None:
    """One follower after the other: the name of a model, and where its leader is, or nothing more."""
    while name := orders.recv_bytes().decode():
        place = Path(orders.recv_bytes().decode())
        try:
            make_runner(name, 1, place).follow()
        except (ProcessLost, DataError) as error:
            orders.send_bytes(type(error).__name__.encode())


@pytest.fixture(scope="module")
def other_process() -> Iterator[Connection]:
    ours, theirs = multiprocessing.get_context("forkserver").Pipe()
    process = start(follow, theirs)
    yield ours
    ours.send_bytes(b"")
    process.join(timeout=30)
    assert process.exitcode == 0


Lead = Callable[[str], TensorParallelRunner]


@pytest.fixture
def lead(other_process: Connection, tmp_path: Path) -> Iterator[Lead]:
    """Makes the leader of two processes; the other one has noticed at the end that it is gone."""
    threads, runners = torch.get_num_threads(), []

    def make(name: str, followed: str | None = None) -> TensorParallelRunner:
        place = tmp_path / "store"
        other_process.send_bytes((followed or name).encode())
        other_process.send_bytes(str(place).encode())
        runners.append(make_runner(name, 0, place))
        return runners[0]

    yield make
    torch.set_num_threads(threads)
    for runner in runners:
        del runner._group._gloo
    assert other_process.poll(30)
    assert other_process.recv_bytes() == (b"ProcessLost" if runners else b"DataError")


@pytest.mark.parametrize("name", [name for name in MODELS if name != "bf16"])
def test_two_processes_equal_one(name: str, lead: Lead) -> None:
    """In several steps, with the cache of each before it."""
    model = MODELS[name]()
    sequences = [random_ids(model, length, seed=length) for length in (40, 12)]
    cuts = [[33, 1, 1, 5], [0, 9, 1, 2]]
    runner = lead(name)
    parts = chunked(runner, sequences, cuts)
    assert runner.config == model.config
    assert runner.block_bytes == TorchRunner(model).block_bytes
    for logits_TV, one_TV in zip(parts, chunked(TorchRunner(model), sequences, cuts), strict=True):
        torch.testing.assert_close(logits_TV, one_TV, atol=1e-5, rtol=1e-5)


def test_in_bf16_two_processes_are_as_exact_as_one(lead: Lead, model: Decoder) -> None:
    ids = random_ids(model, 40)
    rounded = make_model(model.config).bfloat16().float()
    exact_TV = whole(rounded, ids)
    errors = [
        (chunked(runner, [ids], [[33, 7]])[0] - exact_TV).square().mean()
        for runner in (lead("bf16"), TorchRunner(rounded.bfloat16()))
    ]
    assert 0 < errors[0] < 1.5 * errors[1]


def test_an_engine_reuses_what_is_cached(lead: Lead, model: Decoder) -> None:
    ids = random_ids(model, 50)
    params = SamplingParams(max_new_tokens=12, temperature=0.9, seed=3, ignore_eos=True)

    def answers(engine: Engine) -> list[list[int]]:
        first = engine.submit(ids, params)
        run(engine, first)
        others = [engine.submit([*ids[:40], 7, index], params) for index in range(3)]
        others += engine.submit_many(ids, params, 2)
        run(engine, *others)
        assert others[0].num_cached_tokens == 32
        return [request.ids for request in (first, *others)]

    assert answers(Engine(lead("llama"), None)) == answers(Engine(TorchRunner(model), None))


def test_adapters_are_cut_with_the_layers(lead: Lead, model: Decoder) -> None:
    adapter = random_adapter(model.config, seed=1)
    ids = random_ids(model, 20)
    runner = lead("llama")
    handle = runner.load_adapter(adapter)
    changed, plain = chunked(runner, [ids, ids], [[15, 5], [15, 5]], [handle, 0])
    runner.unload_adapter(handle)
    torch.testing.assert_close(changed, whole(merged(model, adapter), ids), atol=3e-5, rtol=1e-5)
    torch.testing.assert_close(plain, whole(model, ids), atol=2e-5, rtol=1e-5)


def test_different_models_are_noticed(lead: Callable[..., TensorParallelRunner]) -> None:
    with pytest.raises(DataError, match="different models"):
        lead("llama", followed="biases")


@pytest.mark.parametrize(
    ("config", "size"), [(CONFIGS["one kv head"], 2), (tiny(), 4), (tiny(intermediate_size=45), 2)]
)
def test_what_cannot_be_shared_evenly(config: DecoderConfig, size: int) -> None:
    with pytest.raises(UsageError, match="cannot share evenly"):
        check_divisible(config, size)


@pytest.fixture
def saved(tmp_path: Path, model: Decoder) -> Path:
    save_model(model, make_tokenizer(), tmp_path / "model")
    return tmp_path / "model"


def test_load_starts_the_other_process(saved: Path) -> None:
    prompt = list(range(5, 45))
    threads = torch.get_num_threads()
    together = tallow.load(saved, "fp32", tensor_parallel=2)
    torch.set_num_threads(threads)
    try:
        assert together.generate(prompt).ids == tallow.load(saved, "fp32").generate(prompt).ids
        [follower] = children(os.getpid(), "tallow.engine.follower")
        os.kill(follower, signal.SIGKILL)
        for _ in range(2):  # and it stays so
            request = together.engine.submit(prompt, SamplingParams())
            with pytest.raises(ProcessLost):
                while request.state is not RequestState.FINISHED:
                    together.engine.step()
    finally:
        del together


def test_a_follower_ends_with_its_leader(saved: Path) -> None:
    program = (
        f"import tallow; model = tallow.load({str(saved)!r}, tensor_parallel=2); print('ready', flush=True); input()"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert leader.stdout is not None
        assert leader.stdout.readline() == "ready\n"
        [follower] = children(leader.pid, "tallow.engine.follower")
    finally:
        leader.kill()
        leader.communicate()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{follower}").exists() and "Z" not in Path(f"/proc/{follower}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def run(engine: Engine, *requests: object) -> None:
    while not engine.is_idle:
        engine.step()
    assert all(getattr(request, "error", None) is None for request in requests)


def children(pid: int, module: str) -> list[int]:
    """Processes that one has started and that run a module."""
    found = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [child for child in found if module in Path(f"/proc/{child}/cmdline").read_text()]
