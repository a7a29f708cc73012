from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.processes import start
from tests.train.toys import TIMINGS, loop_config, markov_batches, new_run, weights
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.run import StageRun
from tallow.train import compilation
from tallow.train.compile_process import CompileProcess, LayerJob, layer_job
from tallow.train.config import LoopConfig
from tallow.train.loop import Batches, train

SHAPE = {"vocab_size": 8, "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}
STEPS = 8


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled here is not there yet. The processor's instructions are not tried out, which takes seconds."""
    with cache_in(tmp_path_factory.mktemp("compiled")):
        yield


@contextmanager
def cache_in(directory: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, inductor.patch({"cpp.vec_isa_ok": True}):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(directory))
        patch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
        yield


def model_of(**settings: object) -> Decoder:
    model = Decoder(DecoderConfig.model_validate({**SHAPE, "num_layers": 3, "max_positions": 64, **settings}))
    initialize(model, seed=0)
    return model


def trained(
    directory: Path, config: LoopConfig, batches: Batches | None = None, **settings: object
) -> tuple[Decoder, list[dict[str, Any]], StageRun]:
    model, run = model_of(**settings), new_run(directory)
    train(Layout(model), causal, batches or markov_batches(config), config, run)
    return model, run.metrics(), run


def losses(records: list[dict[str, Any]]) -> list[float]:
    return [value for record in records for value in (record["loss"], record["gradient_norm"])]


def learned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    others_each_time = {*TIMINGS, "compile_s"}
    return [{key: value for key, value in record.items() if key not in others_each_time} for record in records]


def all_at_once(**settings: object) -> LoopConfig:
    """Micro-batches of three rows and of two, and layers that compute again."""
    rows = {"batch_size": 5, "micro_batch_size": 3, "recompute": "block"}
    return loop_config(steps=STEPS, **rows, **settings)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, list[dict[str, Any]], StageRun]:
    """Of a mixture of experts, which stay as they are between what is compiled."""
    counters.clear()
    return trained(tmp_path_factory.mktemp("ahead"), all_at_once(compile="ahead"), num_experts=4)


def test_compiled_layers_learn_the_same(tmp_path: Path, ahead: tuple[Decoder, list[dict[str, Any]], StageRun]) -> None:
    _, records, run = ahead
    _, plain, _ = trained(tmp_path, all_at_once(), num_experts=4)
    assert losses(records) == pytest.approx(losses(plain), abs=1e-5)
    assert losses(records) != losses(plain), "what is compiled rounds in another way"
    assert records[0]["compile_s"] > 0
    assert not any("compile_s" in record for record in records[1:])
    assert run.ledger.compile_s == pytest.approx(records[0]["compile_s"], abs=0.01)


def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, ahead: tuple[Decoder, list[dict[str, Any]], StageRun]
) -> None:
    config = all_at_once(compile="ahead", save_every=3)
    plain = markov_batches(config)

    def dying(step: int) -> list[Packed]:
        if step == 5:
            raise InterruptedError
        return plain(step)

    with pytest.raises(InterruptedError):
        trained(tmp_path, config, dying, num_experts=4)
    model, records, _ = trained(tmp_path, config, num_experts=4)
    assert torch.equal(weights(model), weights(ahead[0]))
    assert learned(records) == learned(ahead[1])


class Watched(CompileProcess):
    """The last process that was started."""

    last: ClassVar[Watched]

    def __init__(self, job: LayerJob) -> None:
        super().__init__(job)
        Watched.last = self

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> int:
        return self._process.wait(timeout=600)


def with_events(config: LoopConfig, events: dict[int, Callable[[], object]]) -> Batches:
    """The usual batches; something happens before some of them."""
    plain, left = markov_batches(config), dict(events)

    def batches(step: int) -> list[Packed]:
        left.pop(step, lambda: None)()
        return plain(step)

    return batches


def train_in_background(directory: Path) -> None:
    """Train as a process does that has done nothing else; leave what the compiler counted when the change was made."""
    compilation.CompileProcess = Watched  # pyright: ignore[reportPrivateImportUsage]
    found: dict[str, int] = {}
    events: dict[int, Callable[[], object]] = {
        3: lambda: Watched.last.wait(),
        4: lambda: found.update(counters["inductor"]),
    }
    config = loop_config(steps=STEPS, compile="background", save_every=STEPS - 1)
    with cache_in(directory / "cache"):
        trained(directory, config, with_events(config, events))
    write_json(directory / "counters.json", found)


def test_what_is_compiled_in_the_background_is_taken_up(tmp_path: Path) -> None:
    process = start(train_in_background, tmp_path / "run")
    process.join(timeout=300)
    assert process.exitcode == 0
    found = read_json(tmp_path / "run" / "counters.json")
    assert found["fxgraph_cache_hit"] == 4, "forward and backward, before attention and after it"
    assert "fxgraph_cache_miss" not in found
    records = new_run(tmp_path / "run").metrics()
    assert [record["step"] for record in records if "compile_s" in record] == [5]
    assert 0 < records[4]["compile_s"] < records[4]["background_compile_s"]
    _, plain, _ = trained(tmp_path / "plain", loop_config(steps=STEPS))
    assert losses(records[:4]) == losses(plain[:4])
    assert losses(records) == pytest.approx(losses(plain), abs=1e-5)


def test_training_goes_on_when_the_process_that_compiles_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compilation, "CompileProcess", Watched)

    def kill() -> None:
        os.kill(Watched.last.pid, signal.SIGKILL)
        Watched.last.wait()

    config = loop_config(compile="background")
    model, records, _ = trained(tmp_path / "run", config, with_events(config, {1: kill}))
    plain, plain_records, _ = trained(tmp_path / "plain", loop_config())
    assert torch.equal(weights(model), weights(plain))
    assert records[-1].keys() == plain_records[-1].keys()
    said = capsys.readouterr().err
    assert said.count("training goes on without compiled layers") == 1
    assert "SIGKILL" in said


def job_of(model: Decoder, config: LoopConfig) -> LayerJob:
    return layer_job(Layout(model), markov_batches(config)(0)[0], "fp32", config, any_rows=False)


def test_the_process_ends_with_the_one_that_trains() -> None:
    process = Watched(job_of(model_of(), loop_config()))
    stdin = process._process.stdin
    assert stdin is not None
    stdin.close()  # as it is when nobody is there who could write
    assert process.wait() == -signal.SIGKILL


def test_a_run_that_ends_first_leaves_no_process_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "CompileProcess", Watched)
    trained(tmp_path, loop_config(steps=2, compile="background"))
    assert Watched.last.wait() == -signal.SIGKILL


def test_layers_that_the_shape_does_not_describe_are_refused() -> None:
    model = model_of()
    model.layers[0].requires_grad_(False)
    with pytest.raises(UsageError, match="as the model's shape describes them"):
        job_of(model, loop_config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": "ahead", "recompute": "selective"}, "choose by themselves"),
        ({"compile": "ahead", "parallel": {"pipeline": 2}}, "loop.parallel.pipeline divides them"),
        ({"compile": "ahead", "parallel": {"tensor": 2}}, "loop.parallel.tensor divides them"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        loop_config(**settings)


def test_without_a_compiler_there_is_one_sentence(tmp_path: Path) -> None:
    with (
        inductor.patch({"cpp.cxx": ("/no/such/compiler",)}),
        pytest.raises(UsageError, match="needs a C\\+\\+ compiler"),
    ):
        trained(tmp_path, loop_config(compile="ahead"))
