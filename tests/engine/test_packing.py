"""Weights that are read one at a time, and weights in a mapped file, compute the same to the bit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import make_model, tiny
from torch import Tensor

from tallow.engine import make_runner as making
from tallow.engine.engine import Engine
from tallow.engine.make_runner import PRECISIONS, Placement, Precision, make_runner
from tallow.engine.native_runner import NativeRunner
from tallow.engine.packed_file import HEADER_BYTES, packed_file, packed_path
from tallow.engine.packing import Part
from tallow.engine.runner import Runner
from tallow.errors import CapacityError, UsageError
from tallow.kernels import cpu, free_bytes, using
from tallow.models.decoder import Decoder
from tallow.models.formats import Precision as GGUFPrecision
from tallow.models.formats import load_model, open_model, save_gguf, save_model
from tallow.models.quantization import quantize_modules

pytestmark = pytest.mark.skipif(cpu.native() is None, reason="the C++ kernels are not built")
IDS = list(range(5, 45))
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 6}


def log_probs(runner: Runner) -> Tensor:
    return Engine(runner, None).log_probs(IDS)


def gguf_file(precision: GGUFPrecision) -> Callable[[Decoder, Path], Path]:
    def save(model: Decoder, path: Path) -> Path:
        save_gguf(model, None, path / "model.gguf", precision)
        return path / "model.gguf"

    return save


def directory(change: Callable[[Decoder], Decoder]) -> Callable[[Decoder, Path], Path]:
    def save(model: Decoder, path: Path) -> Path:
        save_model(change(model), None, path / "model")
        return path / "model"

    return save


GGUF_PRECISIONS: tuple[GGUFPrecision, ...] = ("f32", "f16", "bf16", "q8_0", "q4_0")
FORMATS: dict[str, Callable[[Decoder, Path], Path]] = {
    **{precision: gguf_file(precision) for precision in GGUF_PRECISIONS},
    "fp32 directory": directory(lambda model: model),
    "bf16 directory": directory(lambda model: model.to(torch.bfloat16)),
    "4-bit directory": directory(lambda model: quantize_modules(model, 4, 32)),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packed weights go."""
    monkeypatch.setenv("TALLOW_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return FORMATS["q8_0"](make_model(tiny(**SHAPE)), tmp_path)


def mapped(path: Path, precision: Precision = "q4", weights: Placement = "mapped") -> NativeRunner:
    runner = make_runner(open_model(path), precision, weights)
    assert isinstance(runner, NativeRunner)
    return runner


@pytest.mark.parametrize("form", FORMATS)
def test_a_weight_at_a_time(form: str, tmp_path: Path) -> None:
    path = FORMATS[form](make_model(tiny(**SHAPE, qkv_bias=True, attention_output_bias=True)), tmp_path)
    for precision in PRECISIONS:
        if (form, precision) == ("q4_0", "q4"):
            continue  # see below
        whole, stored = (make_runner(model, precision) for model in (load_model(path), open_model(path)))
        assert isinstance(stored, NativeRunner)
        assert stored.weight_bytes == whole.weight_bytes
        assert torch.equal(log_probs(stored), log_probs(whole))
        assert torch.equal(log_probs(mapped(path, precision)), log_probs(whole))


@pytest.mark.parametrize("quantizer", ["gguf", "tallow"])
def test_q4_0_is_nested_if_its_scales_allow_it(quantizer: str, tmp_path: Path) -> None:
    model = make_model(tiny(**SHAPE))
    path = gguf_file("q4_0")(model if quantizer == "gguf" else quantize_modules(model, 4, 32), tmp_path)
    stored, anew = make_runner(open_model(path), "q4"), make_runner(load_model(path), "q4")
    assert isinstance(stored, NativeRunner)
    assert (stored.weight_bytes == anew.weight_bytes) == (quantizer == "tallow")
    assert torch.equal(log_probs(mapped(path, "q4")), log_probs(stored))


@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "gpt2", "gemma3"])
def test_fused_and_odd_families(family: str, tmp_path: Path) -> None:
    choices = {
        "phi3": {},
        "gpt_neox": {"num_kv_heads": 4, "norm": "layer", "norm_bias": True, "gated": False, "activation": "gelu"},
        "gpt2": {"num_kv_heads": 4, "norm": "layer", "norm_bias": True, "gated": False, "positions": "learned"},
        "gemma3": {"norm_offset": True, "norm_placement": "both", "qk_norm": "head", "embedding_scale": True},
    }[family]
    if family in ("gpt_neox", "gpt2"):
        choices |= {"qkv_bias": True, "attention_output_bias": True, "feed_forward_bias": True}
    if family in ("gpt2", "gemma3"):
        choices |= {"activation": "gelu_tanh"}
    if family in ("gpt_neox", "phi3"):
        choices |= {"tied_embeddings": False}
    save_model(make_model(tiny(family=family, **choices)), None, tmp_path / "model")
    runners = [make_runner(model(tmp_path / "model"), "auto") for model in (load_model, open_model)]
    assert isinstance(runners[1], NativeRunner)
    assert torch.equal(*(log_probs(runner) for runner in runners))


def test_the_second_start_packs_nothing(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = log_probs(make_runner(open_model(stored), "q4"))
    assert torch.equal(log_probs(mapped(stored)), expected)
    assert f"into {packed_path(stored, 'nested_int4')}" in capfd.readouterr().err.replace("\n", "")
    monkeypatch.setattr(Part, "sources", None)
    assert torch.equal(log_probs(mapped(stored)), expected)
    assert "packing" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", ["cut", "header", "body", "end", "model"])
def test_a_file_that_does_not_fit_is_made_anew(stored: Path, damage: str) -> None:
    expected = log_probs(mapped(stored))
    path = packed_path(stored, "nested_int4")
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "header":
        path.write_bytes(whole[:30] + b"?" + whole[31:])
    elif damage in ("body", "end"):  # the file is so small that the sample is all of it
        place = len(whole) // 2 if damage == "body" else len(whole) - 1
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    else:
        os.utime(stored, (0, 0))
    assert torch.equal(log_probs(mapped(stored)), expected)
    assert path.stat().st_size == len(whole)
    assert (path.read_bytes() == whole) == (damage != "model")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_longer_damage_is_always_found(stored: Path) -> None:
    size, form = 8 << 20, "nested_int4"
    with packed_file(stored, form, size) as packed:
        assert not packed.is_filled
    path = packed_path(stored, form)
    for place in range(HEADER_BYTES, HEADER_BYTES + size, size // 20):
        with packed_file(stored, form, size) as packed:
            assert packed.is_filled
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"?" * (size // 50))
        with packed_file(stored, form, size) as packed:
            assert not packed.is_filled


PACK = """
import sys, time
from pathlib import Path
from tallow.engine.packed_file import packed_file
with packed_file(Path(sys.argv[1]), "int8", 1 << 20):
    print("packing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_packer_leaves_is_removed_by_the_next(stored: Path, tmp_path: Path) -> None:
    directory = packed_path(stored, "nested_int4").parent
    other = tmp_path / "other"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", PACK, str(other)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline()
        [left] = directory.iterdir()
        mapped(stored)
        assert left.exists(), "it is still being written"
        killed.kill()
    packed_path(stored, "nested_int4").unlink()
    with packed_file(other, "int8", 1 << 20):  # this process may pack two at a time, too
        assert not left.exists()
        mapped(stored)
    assert {path.name for path in directory.iterdir()} == {
        packed_path(stored, "nested_int4").name,
        packed_path(other, "int8").name,
    }


def test_streamed_layers(stored: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    expected = log_probs(make_runner(open_model(stored), "q4"))
    for free, streamed in ((60_000, 6), (10**6, 0)):  # of 6 layers of 15,360 bytes
        monkeypatch.setattr(making, "free_bytes", lambda *, mapped=False, free=free: free if mapped else 0)
        runner = mapped(stored, weights="auto")
        for _ in range(3):
            assert torch.equal(log_probs(runner), expected)
        said = capfd.readouterr().err
        if streamed:
            assert runner.streamed_bytes == streamed * (runner.streamed_bytes // streamed) > 0
            assert re.search(r"of .* GB for each token.* about .* tokens/s", said)
        else:
            assert runner.streamed_bytes == 0
            assert "GB once" in said


def spread_over_40_binades(weight: Tensor) -> None:
    with torch.no_grad():
        weight *= torch.exp2(torch.randint(-40, 1, weight.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("bad", ["one", "all"])
def test_weights_that_cannot_be_compressed_stay_plain(
    bad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tiny(**SHAPE))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and (bad == "all" or name == "layers.1.feed_forward.down_proj.weight"):
            spread_over_40_binades(parameter)
    path = FORMATS["fp32 directory"](model, tmp_path)
    plain = NativeRunner(model, "bfloat16")
    held = make_runner(load_model(path), "bf16")
    assert isinstance(held, NativeRunner)
    if bad == "all" or cpu.operation_set() == "portable":
        assert held.weight_bytes == plain.weight_bytes
    else:
        assert held.weight_bytes < 0.8 * plain.weight_bytes
    for runner in (held, mapped(path, "bf16")):
        assert torch.equal(log_probs(runner), log_probs(plain))
    monkeypatch.setattr(Part, "sources", None)
    capfd.readouterr()
    again = mapped(path, "bf16")
    assert again.weight_bytes == held.weight_bytes
    assert torch.equal(log_probs(again), log_probs(plain))
    assert "packing" not in capfd.readouterr().err


def test_memory_that_is_enough_is_taken(stored: Path, home: Path) -> None:
    mapped(stored, weights="auto")
    assert not home.exists()


def test_what_cannot_be_mapped(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with using("reference"), pytest.raises(UsageError, match="mapped"):
        make_runner(open_model(stored), "q4", "mapped")
    with pytest.raises(UsageError, match="mapped"):
        make_runner(load_model(stored), "q4", "mapped")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100))
    with pytest.raises(CapacityError, match="no room"):
        mapped(stored)


LIMITED = """
import resource, sys
from pathlib import Path
from tallow.engine.engine import Engine
from tallow.engine.make_runner import make_runner
from tallow.models.formats import open_model
weights, room = sys.argv[2], int(sys.argv[3])
if room:
    data = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (data + room, data + room))
try:
    runner = make_runner(open_model(Path(sys.argv[1])), "fp32", weights)
except MemoryError:
    sys.exit("not enough memory")
print(Engine(runner, None, cache_bytes=1 << 20).log_probs(range(5, 45)).tolist())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of data are not kept here")
def test_a_model_larger_than_memory(tmp_path: Path) -> None:
    """100 MB of weights where a process may take 64 MB; mapped pages do not count."""
    path = FORMATS["f32"](make_model(tiny(hidden_size=512, intermediate_size=2048, num_layers=6)), tmp_path)

    def run(weights: Placement, room: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIMITED, str(path), weights, str(room)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    room = 64 << 20
    unlimited, held, chosen = run("memory", 0), run("memory", room), run("auto", room)
    assert unlimited.returncode == 0
    assert "not enough memory" in held.stderr
    assert chosen.stdout == unlimited.stdout
    assert re.search(r"at the [\d.]+ GB/s that it gives, about", chosen.stderr)


PEAK = """
import sys
from pathlib import Path
from tallow.engine.make_runner import make_runner
from tallow.models.formats import open_model
def resident(field):
    return int(Path("/proc/self/status").read_text().partition(field)[2].split()[0]) * 1024
before = resident("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")
runner = make_runner(open_model(Path(sys.argv[1])), "q8")
print(resident("VmHWM:") - before, runner.weight_bytes)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc here")
@pytest.mark.parametrize("form", ["q8_0", "bf16 directory"])
def test_loading_takes_little_more_than_the_packed_weights(form: str, tmp_path: Path) -> None:
    shape = {"hidden_size": 768, "intermediate_size": 3072, "num_layers": 8}
    path = FORMATS[form](make_model(tiny(**shape, tied_embeddings=False)), tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    peak, weights = map(int, result.stdout.split())
    assert weights > 70e6
    assert peak < weights + 45e6  # of which up to 34 MB are the arena's last piece


def test_free_bytes() -> None:
    assert 0 < free_bytes() <= free_bytes(mapped=True)
