"""tallow beside transformers, llama.cpp and vLLM on this machine's CPU: SmolLM2-135M, all in one run.

    .venv/bin/python benchmarks/inference.py [--rounds N] [--threads N] [--only NAME,NAME] [--out FILE.md|FILE.json]…

Every engine runs alone, in a process and a virtual environment of its own, with the same threads, prompts and lengths
(`peers/workload.py`), and they take turns round by round. Before that, short tries choose the formats and settings with
which llama.cpp is fastest. The table has medians (least–greatest), and beside each speed
its share of the machine's limit, measured in the same rounds. Environments and models are made once, in --cache: that
needs the network, a C++ compiler for llama.cpp, and some 5 GB. A peer that cannot be installed or does not run has the
reason in its row. vLLM compiles the model in its first round and finds it compiled in the next ones; it wants tcmalloc
(Debian: libtcmalloc-minimal4), which is loaded where the system has it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from peers.install import PEERS, install, preloaded
from peers.table import Machine, Results, markdown, ratios, shares
from peers.workload import Figures

from tallow.console import say
from tallow.errors import DataError, TallowError
from tallow.files import write_json, write_text
from tallow.kernels.probe import matmul_peak, read_bandwidth
from tallow.models.formats import load_model
from tallow.models.formats.convert import convert
from tallow.models.store import pull, store_directory

MODEL = "smollm2-135m"
CONFIGURATIONS = [
    ("tallow", "q4"),
    ("llama.cpp", "q4"),
    ("tallow", "q8"),
    ("llama.cpp", "q8"),
    ("tallow", "bf16"),
    ("llama.cpp", "bf16"),
    ("vllm", "bf16"),
    ("transformers", "bf16"),
    ("tallow", "fp32"),
]
"""Engine and precision, in the order of a round: what is compared runs close together."""

FORMATS = {"q4": ("q4_0", "q4_1", "iq4_nl", "q4_k_m"), "q8": ("q8_0",), "bf16": ("bf16",)}
SETTINGS = ("flash attention", "no flash attention")
"""llama.cpp's, of which the fastest are taken."""

RUN_S = 900
"""Patience with one process."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", default=",".join(("tallow", *PEERS)), help="engines, with commas between them")
    parser.add_argument("--cache", type=Path, default=store_directory().parent / "benchmarks")
    parser.add_argument("--out", type=Path, action="append", default=[], help="where to write the table, or .json")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    engines = options.only.split(",")
    if unknown := set(engines) - {"tallow", *PEERS}:
        parser.error(f"no engine is called {', '.join(sorted(unknown))}; there are tallow, {', '.join(PEERS)}")
    torch.set_num_threads(options.threads)
    try:
        results = compare(engines, options.rounds, options.threads, options.cache.absolute())
    except TallowError as error:
        say(f"{error.message} ({error.hint})")
        return error.exit_code
    print(markdown(results))
    for path in options.out:
        if path.suffix == ".json":
            write_json(path, asdict(results) | {"ratios": ratios(results), "shares": shares(results)})
        else:
            write_text(path, markdown(results))
    return 0


def compare(engines: list[str], rounds: int, threads: int, cache: Path) -> Results:
    """Raises: DataError: The model cannot be had."""
    models, venvs = cache / "models", cache / "venvs"
    hub = make_model(models / MODEL)
    results = Results([], {}, {}, prefill_flops(hub))
    pythons = {"tallow": Path(sys.executable)}
    for peer in [name for name in PEERS if name in engines]:
        try:
            pythons[peer] = install(peer, venvs)
        except DataError as error:
            results.missing[peer] = f"{error.message} ({error.hint})"
    launches = {
        f"{engine} {precision}": Launch(engine, pythons[engine], hub, precision, threads, venvs)
        for engine, precision in CONFIGURATIONS
        if engine in engines and engine in pythons
    }
    for name, launch in launches.items():
        if launch.engine == "llama.cpp":
            try:
                results.tried[name], launches[name] = fastest(name, launch, models)
            except DataError as error:
                results.missing[name] = error.message
    for number in range(rounds):
        results.machine.append(measure_machine())
        for name, launch in launches.items():
            if name in results.missing:
                continue
            say(f"round {number + 1} of {rounds}: {name}")
            try:
                results.figures.setdefault(name, []).append(Figures(**json.loads(launch.measure())))
            except DataError as error:
                results.missing[name] = error.message
                results.figures.pop(name, None)
    return results


@dataclass(frozen=True)
class Launch:
    """One engine through the workload, in a process of its own.

    Args:
        engine: Its name.
        python: That of its virtual environment.
        model: A directory or a file.
        precision: Or the format of the file.
        threads: Threads that compute.
        venvs: Where the peers' virtual environments are.
        setting: One of the engine's own.
    """

    engine: str
    python: Path
    model: Path
    precision: str
    threads: int
    venvs: Path
    setting: str = ""

    def measure(self, *options: str) -> str:
        """The last line that it prints.

        Raises:
            DataError: It has failed, or taken too long.
        """
        arguments = (str(self.model), self.precision, str(self.threads), "--setting", self.setting)
        return self.run(f"run_{self.engine.replace('.', '_')}.py", *arguments, *options).strip().splitlines()[-1]

    def run(self, script: str, *arguments: str) -> str:
        """What a script in `peers/` prints. Raises: DataError: It has failed, or taken too long."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "PYTHONDONTWRITE"))
        }
        environment |= {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        if self.engine != "tallow":
            environment.pop("PYTHONPATH", None)
            environment["LD_PRELOAD"] = preloaded(self.engine, self.venvs)
        command = [str(self.python), str(Path(__file__).resolve().parent / "peers" / script), *arguments]
        try:
            # not from here: an engine's own `python -m …` would import what lies beside this file
            done = subprocess.run(
                command,
                cwd=self.model.parent,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=RUN_S,
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(f"did not end in {RUN_S} s") from error
        if done.returncode:
            log = self.venvs / f"{self.engine}.failed.txt"
            write_text(log, done.stderr)
            last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            raise DataError(f"failed: {last} (all of it: {log})")
        return done.stdout


def fastest(name: str, launch: Launch, models: Path) -> tuple[dict[str, float], Launch]:
    """What llama.cpp's formats of this precision took with each setting, in seconds; how it is launched at its best.

    Raises:
        DataError: All have failed.
    """
    seconds: dict[Launch, float] = {}
    for form, setting in itertools.product(FORMATS[launch.precision], SETTINGS):
        say(f"{name}: trying {form}, {setting}")
        try:
            tried = replace(launch, model=make_gguf(launch, models, form), precision=form, setting=setting)
            seconds[tried] = float(tried.measure("--try"))
        except DataError as error:
            say(f"{name}: {form}, {setting} {error.message}")
    if not seconds:
        raise DataError(f"failed in {', '.join(FORMATS[launch.precision])}")
    best = min(seconds, key=lambda tried: seconds[tried])
    return {f"{tried.precision.upper()}, {tried.setting}": value for tried, value in seconds.items()}, best


def make_gguf(launch: Launch, models: Path, form: str) -> Path:
    """SmolLM2-135M in a format of llama.cpp's, by its own quantizer; made once.

    Raises:
        DataError: It cannot be made.
    """
    source, target = make_model(models / f"{MODEL}-bf16.gguf"), models / f"{MODEL}-{form}.gguf"
    if not target.exists():
        launch.run("quantize_llama_cpp.py", str(source), str(target), form)
    return target


def make_model(path: Path) -> Path:
    """SmolLM2-135M in bf16, as a directory or as a GGUF file; made once.

    Raises:
        DataError: It is not in the local store, and cannot be brought.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        convert(pull(MODEL), "gguf" if path.suffix == ".gguf" else "safetensors", path, "bf16")
    return path


def prefill_flops(hub: Path) -> float:
    """Of one token, in products with weights; the output matrix works for a prompt's last token only."""
    return 2.0 * sum(weight.numel() for weight in load_model(hub).layers.parameters() if weight.ndim == 2)


def measure_machine() -> Machine:
    """Anew: what it gives varies by the hour."""
    read_bandwidth.cache_clear()
    matmul_peak.cache_clear()
    return Machine(read_bandwidth(), matmul_peak(torch.bfloat16), matmul_peak(torch.float32))


if __name__ == "__main__":
    sys.exit(main())
