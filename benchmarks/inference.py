"""tallow beside transformers, llama.cpp and vLLM on this machine's CPU: SmolLM2-135M, all in one run.

    .venv/bin/python benchmarks/inference.py [--rounds N] [--threads N] [--only NAME,NAME] [--out FILE.md|FILE.json]…

Every engine has a process and a virtual environment of its own, and the same threads, prompts and lengths
(`peers/workload.py`). All processes stay, some 12 GB together, and take turns task by task, as what a machine gives may
change from one minute to the next; while one computes the others wait. Before that, short tries choose the formats and
settings with which llama.cpp is fastest. The table has medians (least–greatest), and beside each speed its share of
the machine's limit, measured in the same rounds. Environments and models are made once, in --cache: that needs the
network, a C++ compiler for llama.cpp, and some 5 GB. A peer that cannot be installed or does not run has the reason in
its row. vLLM wants tcmalloc (Debian: libtcmalloc-minimal4), which is loaded where the system has it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Timer
from typing import Any

import torch
from peers.install import PEERS, install, preloaded
from peers.table import Figures, Machine, Results, markdown, ratios, shares
from peers.workload import MARK, TASKS, WARM_UP, Ready, Task

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
SETTINGS = tuple(
    f"{attention}, {weights}"
    for attention in ("flash attention", "no flash attention")
    for weights in ("repacked", "not repacked")
)
"""llama.cpp's, of which the fastest are taken. What it repacks weights for may be AMX, where some versions crash."""

PATIENCE_S = 900
"""With one task of one process."""

CALM_S = 3.0
"""Left to every engine after its first token, as a server has it before anybody comes."""

BREATH_S = 2.0
"""Between turns: so long some engines' threads go on looking for work, or get pages for their caches."""


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
    sides = {name: side for name, launch in launches.items() if (side := start(name, launch, results)) is not None}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        results.machine.append(measure_machine())
        for key, task in TASKS.items():
            for name, side in list(sides.items()):
                try:
                    side.seconds[key].append(side.do(task))
                except DataError as error:
                    results.missing[name] = error.message
                    del sides[name]
    for name, side in sides.items():
        try:
            results.figures[name] = side.end()
        except DataError as error:
            results.missing[name] = error.message
    return results


def start(name: str, launch: Launch, results: Results) -> Side | None:
    """An engine that is ready and warm; None, and the reason noted, if it does not run."""
    if name in results.missing:
        return None
    say(f"starting {name}")
    try:
        side = Side(launch)
        time.sleep(CALM_S)
        for task in WARM_UP:
            side.do(task)
    except DataError as error:
        results.missing[name] = error.message
        return None
    return side


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

    def command(self, script: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """How a script in `peers/` is run: its words, and its environment."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "PYTHONDONTWRITE"))
        }
        environment |= {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        if self.engine != "tallow":
            environment.pop("PYTHONPATH", None)
            environment["LD_PRELOAD"] = preloaded(self.engine, self.venvs)
        return [str(self.python), str(Path(__file__).resolve().parent / "peers" / script), *arguments], environment

    def run(self, script: str, *arguments: str) -> str:
        """What a script prints. Raises: DataError: It has failed, or taken too long."""
        command, environment = self.command(script, *arguments)
        try:
            # not from here: an engine's own `python -m …` would import what lies beside this file
            done = subprocess.run(
                command,
                cwd=self.model.parent,
                env=environment,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE_S,
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(f"did not end in {PATIENCE_S} s") from error
        if done.returncode:
            log = self.venvs / f"{self.engine}.log"
            write_text(log, done.stderr)
            raise failed(log)
        return done.stdout

    @property
    def workload(self) -> tuple[str, ...]:
        """The script that does the engine's work, and its arguments."""
        script = f"run_{self.engine.replace('.', '_')}.py"
        return script, str(self.model), self.precision, str(self.threads), "--setting", self.setting


def failed(log: Path) -> DataError:
    """What to say of a process that has ended too soon, and has written this."""
    last = (log.read_text(errors="replace").strip().splitlines() or ["without a word"])[-1]
    return DataError(f"failed: {last} (all of it: {log})")


class Side:
    """An engine's process, which does tasks one by one; `seconds` keeps what each took, in all rounds.

    Raises:
        DataError: It does not run.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.seconds: dict[str, list[tuple[float, float]]] = {key: [] for key in TASKS}
        command, environment = launch.command(*launch.workload)
        self._log = launch.venvs / f"{launch.engine}-{launch.precision}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=launch.model.parent,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                errors="replace",
            )
        self.ready = Ready(**self._answer())

    def do(self, task: Task) -> tuple[float, float]:
        """Seconds to the first token of any stream, and to the last of all. Raises: DataError: It has failed."""
        time.sleep(BREATH_S)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it said at its end tells more
            print(json.dumps(asdict(task)), file=self._process.stdin, flush=True)
        first_s, last_s = self._answer()
        return first_s, last_s

    def end(self) -> list[Figures]:
        """What it gave in each round. Raises: DataError: It has failed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak_rss_mb = self._answer()
        rounds = zip(*(self.seconds[key] for key in ("long", "short", "streams_short", "streams_long")), strict=True)
        return [
            Figures(
                engine=self.ready.engine,
                ready_s=self.ready.ready_s,
                prefill=TASKS["long"].prompt_tokens / long[0],
                decode=(TASKS["short"].new_tokens - 1) / (short[1] - short[0]),
                decode_after_512=(TASKS["long"].new_tokens - 1) / (long[1] - long[0]),
                streams_short=TASKS["streams_short"].all_new_tokens / streams_short[1],
                streams_long=TASKS["streams_long"].all_new_tokens / streams_long[1],
                peak_rss_mb=peak_rss_mb,
                weight_mb=self.ready.weight_mb,
            )
            for long, short, streams_short, streams_long in rounds
        ]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        timer = Timer(PATIENCE_S, self._process.kill)
        timer.start()
        try:
            for line in self._process.stdout:
                if line.startswith(MARK):
                    return json.loads(line.removeprefix(MARK))
        finally:
            timer.cancel()
        raise failed(self._log)


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
            printed = tried.run(*tried.workload, "--try")
            seconds[tried] = float(printed.rpartition(MARK)[2])
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
