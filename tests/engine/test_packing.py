"""Weights that are read one at a time, and weights in a mapped file, compute the same to the bit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.engine.conftest import make_model, native_runner, tiny
from torch import Tensor

import tallow
from tallow.engine import run_packed as running
from tallow.engine.choices import PLACEMENTS, PRECISIONS, Placement, Precision
from tallow.engine.engine import Engine
from tallow.engine.make_runner import make_runner
from tallow.engine.native_runner import NativeRunner
from tallow.engine.packed_store import KEEPER, PLAN, WEIGHTS, Place, find_packed, packed_path
from tallow.engine.packing import pack
from tallow.engine.run_packed import load_packed, run_packed
from tallow.engine.runner import Runner
from tallow.errors import CapacityError, UsageError
from tallow.files import fingerprint_files
from tallow.kernels import cpu
from tallow.kernels.dispatch import using
from tallow.kernels.memory import free_bytes
from tallow.models.decoder import Decoder
from tallow.models.formats import Precision as GGUFPrecision
from tallow.models.formats import load_model, open_model, save_gguf, save_model
from tallow.models.quantization import quantize_modules
from tallow.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(cpu.native() is None, reason="the C++ kernels are not built")
IDS = list(range(5, 45))
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 6}


def log_probs(runner: Runner) -> Tensor:
    return torch.from_numpy(Engine(runner, None).log_probs(IDS))


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


directory_of = directory(lambda model: model)
GGUF_PRECISIONS: tuple[GGUFPrecision, ...] = ("f32", "f16", "bf16", "q8_0", "q4_0")
FORMATS: dict[str, Callable[[Decoder, Path], Path]] = {
    **{precision: gguf_file(precision) for precision in GGUF_PRECISIONS},
    "fp32 directory": directory_of,
    "bf16 directory": directory(lambda model: model.to(torch.bfloat16)),
    "4-bit directory": directory(lambda model: quantize_modules(model, 4, 32)),
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where packed weights go."""
    monkeypatch.setenv("TALLOW_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    finish_keeping()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return FORMATS["q8_0"](make_model(tiny(**SHAPE)), tmp_path)


def finish_keeping() -> None:
    for thread in threading.enumerate():
        if thread.name == KEEPER:
            thread.join()


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


def test_the_second_start_packs_nothing(stored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert load_packed(stored, "q4", "cpu") is None
    expected = log_probs(make_runner(load_model(stored), "q4"))
    assert torch.equal(log_probs(make_runner(open_model(stored), "q4")), expected)
    finish_keeping()
    assert f"in {packed_path(stored, 'q4')}" in capfd.readouterr().err.replace("\n", "")
    found = load_packed(stored, "q4", "cpu")
    assert found is not None
    for placement in PLACEMENTS:
        assert torch.equal(log_probs(run_packed(found, placement, "auto")), expected)
    assert "keeping" not in capfd.readouterr().err
    assert load_packed(stored, "q8", "cpu") is None
    with using("reference"):
        assert load_packed(stored, "q4", "cpu") is None


STARTS = """
import sys
import tallow
from tallow.engine.request import SamplingParams
loaded = tallow.load(sys.argv[1], "q8", cache_precision=sys.argv[2])
sampled = SamplingParams(temperature=1.0, seed=1, repetition_penalty=1.1, max_new_tokens=8, top_log_probs=2)
answer = loaded.generate("abc", sampled)
print(answer.ids, loaded.log_probs("abcabc").tolist(), loaded.embed("abc").tolist(), loaded.engine.runner.precision)
assert ("torch" in sys.modules) == (sys.argv[3] == "first")
"""


@pytest.mark.parametrize("cache", ["auto", "q8"])
def test_later_starts_do_without_torch(cache: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(make_model(tiny(**SHAPE)), tokenizer, tmp_path / "model")
    first, second = (
        subprocess.run(
            [sys.executable, "-c", STARTS, str(tmp_path / "model"), cache, start],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        for start in ("first", "second")
    )
    assert first.stdout == second.stdout
    assert ("keeping" in first.stderr, "keeping" in second.stderr) == (True, False)


@pytest.mark.parametrize("damage", ["cut", "plan", "seal", "no JSON", "body", "end", "model"])
def test_what_does_not_fit_is_made_anew(stored: Path, damage: str) -> None:
    expected = log_probs(mapped(stored))
    path = packed_path(stored, "q4")
    plan, weights = (path / PLAN).read_bytes(), (path / WEIGHTS).read_bytes()
    if damage == "cut":
        (path / WEIGHTS).write_bytes(weights[:-1])
    elif damage == "plan":
        (path / PLAN).write_bytes(plan.replace(b'"softcap": 0.0', b'"softcap": 1.0'))
    elif damage in ("seal", "no JSON"):
        (path / PLAN).write_bytes(plan[:-80] if damage == "no JSON" else plan.replace(b'"seal": "', b'"seal": "0'))
    elif damage in ("body", "end"):  # the file is so small that the sample is all of it
        place = len(weights) // 2 if damage == "body" else len(weights) - 1
        (path / WEIGHTS).write_bytes(weights[:place] + bytes([weights[place] ^ 1]) + weights[place + 1 :])
    else:
        os.utime(stored, (0, 0))
    assert find_packed(stored, "q4") is None
    assert torch.equal(log_probs(mapped(stored)), expected)
    assert (path / WEIGHTS).read_bytes() == weights
    assert ((path / PLAN).read_bytes() == plan) == (damage != "model")
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_longer_damage_is_always_found(tmp_path: Path) -> None:
    model = FORMATS["f32"](make_model(tiny(hidden_size=256, intermediate_size=1024)), tmp_path)
    mapped(model, "fp32")
    path = packed_path(model, "fp32") / WEIGHTS
    whole = path.read_bytes()
    assert len(whole) > 8 << 20
    for place in range(0, len(whole), len(whole) // 20):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(b"?" * min(len(whole) // 50, len(whole) - place))
        assert find_packed(model, "fp32") is None
        path.write_bytes(whole)
    assert find_packed(model, "fp32") is not None


PACK = """
import sys, time
from pathlib import Path
from tallow.engine.packed_store import Place
from tallow.engine.packing import pack
from tallow.models.formats import open_model
path = Path(sys.argv[1])
place = Place(path, "q8", "", lambda: (print("packing", flush=True), time.sleep(60)))
pack(open_model(path), "int8", allocate=place.memory)
"""


def test_what_a_killed_packer_leaves_is_removed_by_the_next(stored: Path, tmp_path: Path) -> None:
    directory = packed_path(stored, "q4").parent
    other = directory_of(make_model(tiny(**SHAPE)), tmp_path)
    with subprocess.Popen([sys.executable, "-c", PACK, str(other)], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline()
        [left] = directory.iterdir()
        mapped(stored)
        assert left.exists(), "it is still being written"
        killed.kill()
    shutil.rmtree(packed_path(stored, "q4"))

    place = Place(
        other, "q8", fingerprint_files(other), lambda: mapped(stored) and None
    )  # one process may pack two at a time
    pack(open_model(other), "int8", allocate=place.memory)
    assert not left.exists()
    assert set(directory.iterdir()) == {packed_path(stored, "q4"), packed_path(other, "q8")}


def test_packed_models_go_when_their_model_has_gone(stored: Path, tmp_path: Path) -> None:
    gone = directory_of(make_model(tiny(**SHAPE)), tmp_path)
    mapped(gone)
    shutil.rmtree(gone)
    mapped(stored)
    assert not packed_path(gone, "q4").exists()
    assert packed_path(stored, "q4").exists()


def test_two_may_pack_the_same_model_at_once(tmp_path: Path) -> None:
    model = directory_of(make_model(tiny(**SHAPE)), tmp_path)
    expected = log_probs(make_runner(load_model(model), "q4"))
    with ThreadPoolExecutor(4) as pool:
        runners = list(pool.map(lambda _: make_runner(open_model(model), "q4"), range(8)))
    for runner in runners:
        assert torch.equal(log_probs(runner), expected)
    finish_keeping()
    assert find_packed(model, "q4") is not None
    assert [file.name for file in packed_path(model, "q4").parent.iterdir()] == [packed_path(model, "q4").name]


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", "tokenizer_config.json"])
@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_damaged_tokenizer_is_made_anew(file: str, damage: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(make_model(tiny(**SHAPE)), tokenizer, tmp_path / "model")
    tallow.load(tmp_path / "model", "q4")
    finish_keeping()
    path = packed_path(tmp_path / "model", "q4") / file
    whole = path.read_bytes()
    if damage == "changed":
        path.write_bytes(whole.replace(b"a", b"b", 1))
    else:
        path.unlink()
    assert find_packed(tmp_path / "model", "q4") is None
    tallow.load(tmp_path / "model", "q4")
    finish_keeping()
    assert path.read_bytes() == whole


def test_another_model_with_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    models = [directory_of(make_model(tiny(**SHAPE), seed), tmp_path / str(seed)) for seed in (0, 1)]
    mapped(models[0])
    weights, other = (model / "model.safetensors" for model in models)
    before = weights.stat()
    shutil.copy(other, weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    assert find_packed(models[0], "q4") is None


def test_what_replaced_is_removed_when_it_is_old(stored: Path) -> None:
    directory = packed_path(stored, "q4").parent
    for name in (".a.old", ".b.old"):
        (directory / name / "old").mkdir(parents=True)
    os.utime(directory / ".a.old", (0, 0))
    mapped(stored)
    assert not (directory / ".a.old").exists()
    assert (directory / ".b.old").exists()


def test_a_model_that_changes_while_it_is_packed_is_packed_anew(stored: Path) -> None:
    place = Place(stored, "q4", fingerprint_files(stored), lambda: os.utime(stored, (0, 0)))
    place.keep(pack(open_model(stored), "nested_int4"))
    finish_keeping()
    assert packed_path(stored, "q4").exists()
    assert find_packed(stored, "q4") is None


def test_streamed_layers(stored: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    expected = log_probs(make_runner(open_model(stored), "q4"))
    for free, streamed in ((60_000, 6), (10**6, 0)):  # of 6 layers of 15,360 bytes
        monkeypatch.setattr(running, "free_bytes", lambda *, mapped=False, free=free: free if mapped else 0)
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
def test_weights_that_cannot_be_compressed_stay_plain(bad: str, tmp_path: Path) -> None:
    model = make_model(tiny(**SHAPE))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and (bad == "all" or name == "layers.1.feed_forward.down_proj.weight"):
            spread_over_40_binades(parameter)
    path = FORMATS["fp32 directory"](model, tmp_path)
    plain = native_runner(model, "bfloat16")
    held = make_runner(load_model(path), "bf16")
    assert isinstance(held, NativeRunner)
    if bad == "all" or cpu.operation_set() == "portable":
        assert held.weight_bytes == plain.weight_bytes
    else:
        assert held.weight_bytes < 0.8 * plain.weight_bytes
    for runner in (held, mapped(path, "bf16")):
        assert torch.equal(log_probs(runner), log_probs(plain))
    found = find_packed(path, "bf16")
    assert found is not None
    again = run_packed(found, "mapped", "auto")
    assert again.weight_bytes == held.weight_bytes
    assert torch.equal(log_probs(again), log_probs(plain))


@pytest.mark.parametrize("weights", ["auto", "memory"])
def test_a_disk_with_no_room_to_spare_is_left_alone(
    weights: Placement, stored: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 100))
    expected = log_probs(make_runner(load_model(stored), "q4"))
    assert torch.equal(log_probs(make_runner(open_model(stored), "q4", weights)), expected)
    assert not home.exists()
    with pytest.raises(CapacityError, match="no room"):
        mapped(stored)


def test_a_home_that_cannot_be_written_is_done_without(
    stored: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home.write_text("a file")
    expected = log_probs(make_runner(load_model(stored), "q4"))
    assert torch.equal(log_probs(make_runner(open_model(stored), "q4")), expected)
    finish_keeping()
    assert "not kept" in capfd.readouterr().err
    with pytest.raises(UsageError, match="home"):
        mapped(stored)


def test_what_cannot_be_mapped(stored: Path) -> None:
    with using("reference"), pytest.raises(UsageError, match="mapped"):
        make_runner(open_model(stored), "q4", "mapped")
    with pytest.raises(UsageError, match="mapped"):
        make_runner(load_model(stored), "q4", "mapped")


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
