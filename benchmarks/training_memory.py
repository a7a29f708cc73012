"""What training keeps in memory: in each layout on each process, with each way to compute activations again, and with
what may be on disk there.

    python benchmarks/training_memory.py [--processes 4] [--layouts "zero=3" "tensor=2,zero=2" ...]
    python benchmarks/training_memory.py --offload DIRECTORY

Each configuration runs in fresh processes (gloo, one thread each) that train a Llama of 28 million parameters (fp32:
4 bytes each for weights and gradients, 8 for AdamW's state) for three updates of two micro-batches. Three figures are
taken of the process that needs the most, all of them without what the process needed before the model was made:
resident memory between updates (weights and state), the peak of an update (gradients too, and what travels), and, for
recomputation, what an update took. Beside them stands what the ZeRO paper says (arXiv 1910.02054, section 5).

Offloading to files in a directory is measured apart, on one process, with a Llama of 97 million parameters. Beside
resident memory stands that part of it which is no file's, and which so the system cannot have when others need it. With
`uncached` an update waits until all is written, and the next finds nothing in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallow.train.update import Updater

ROWS, WARM_UP, UPDATES = 8, 1, 3
SHAPE = {"vocab_size": 8192, "hidden_size": 512, "num_layers": 8, "num_heads": 8, "intermediate_size": 1280}
DEEP = {**SHAPE, "hidden_size": 256, "num_layers": 16, "num_heads": 4, "intermediate_size": 768}
LAYOUTS = ("", "zero=1", "zero=2", "zero=3", "zero=3,replicas=2", "tensor=2", "tensor=2,zero=3", "pipeline=2,zero=2")
LARGE = {**SHAPE, "vocab_size": 16384, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "intermediate_size": 2048}
RECOMPUTE = ("none", "selective", "block")
OFFLOAD = ("", "state", "state,parameters", "state,parameters,uncached")


def work(settings: dict[str, object], recompute: str, offload: dict[str, str] | None, place: Path) -> None:
    """One process's part; what it measured goes into a file."""
    import torch

    from tallow.bench import random_batch
    from tallow.models.config import DecoderConfig
    from tallow.models.decoder import Decoder, initialize
    from tallow.objectives.causal import causal
    from tallow.parallel import Layout, ParallelConfig, join_world
    from tallow.run import forget_peak_rss, peak_rss_bytes
    from tallow.train.config import LoopConfig
    from tallow.train.update import Updater

    torch.set_num_threads(1)
    with join_world() as world:
        shape = DEEP if recompute else SHAPE if offload is None else LARGE
        model = Decoder(DecoderConfig.model_validate({**shape, "num_kv_heads": shape["num_heads"]}))
        weights = model.num_parameters()
        before, private_before = resident_bytes() - 4 * weights, private_bytes() - 4 * weights
        initialize(model, seed=0)
        layout = Layout(model, ParallelConfig.model_validate(settings), world)
        if recompute:
            layout.recompute(recompute)  # pyright: ignore[reportArgumentType] (one of RECOMPUTE)
        offload = dict(offload or {})
        uncached = offload.pop("uncached", None)
        updater = Updater(layout, causal, LoopConfig.model_validate({"batch_size": ROWS, "offload": offload}))
        rows = len(layout.mesh.data.share(range(2 * ROWS))) if world.size > 1 else 2 * ROWS
        batches = [
            random_batch(int(shape["vocab_size"]), max(1, rows // 2), 256 if recompute else 32) for _ in range(2)
        ]
        seconds, processor_seconds, between, own = [], [], 0, 0
        for step in range(1, WARM_UP + UPDATES + 1):
            if step == WARM_UP + 1:
                between, own = resident_bytes(), private_bytes()
                forget_peak_rss()
            start, processor_start = time.perf_counter(), time.process_time()
            updater.update(step, batches, 1e-4, "fp32")
            if uncached:
                write_and_forget(updater)
            seconds.append(time.perf_counter() - start)
            processor_seconds.append(time.process_time() - processor_start)
        report = {
            "weights": weights,
            "between": between - before,
            "own": own - private_before,
            "peak": peak_rss_bytes() - before,
            "seconds": sorted(seconds[WARM_UP:])[UPDATES // 2],
            "processor": sorted(processor_seconds[WARM_UP:])[UPDATES // 2],
        }
        (place / f"{world.rank}.json").write_text(json.dumps(report))


def write_and_forget(updater: Updater) -> None:
    """Let the system write what is offloaded, and keep nothing of it."""
    assert updater.optimizer.windows is not None
    number = updater.optimizer.windows.file._file.fileno()
    os.fdatasync(number)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def private_bytes() -> int:
    """Of memory that is no file's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def measure(processes: int, settings: str, recompute: str = "", offload: str | None = None) -> dict[str, float]:
    """The largest of all processes' figures."""
    import tempfile

    with socket.socket() as free, tempfile.TemporaryDirectory() as place:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, __file__, "--work", settings, "--recompute", recompute, "--place", place]
        command += [] if offload is None else ["--offload", offload]
        # memory that is given back leaves the process at once, so that what is resident is what is used
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "MALLOC_MMAP_THRESHOLD_": "65536"}
        started = [
            subprocess.Popen(command, env=os.environ | common | {"RANK": str(rank), "WORLD_SIZE": str(processes)})
            for rank in range(processes)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            raise SystemExit(f"{settings or recompute or offload} failed")
        reports = [json.loads(file.read_text()) for file in Path(place).glob("*.json")]
    return {key: max(report[key] for report in reports) for key in reports[0]}


def expected(settings: str, processes: int, weights: float) -> str:
    """Megabytes between updates and at the peak, by the paper; nothing where it says nothing."""
    stage = {"": 0, "zero=1": 1, "zero=2": 2, "zero=3": 3}.get(settings)
    if stage is None:
        return "| |"
    share = [1 / processes if stage >= needed else 1 for needed in (3, 2, 1)]
    kept = 4 * weights * share[0] + 8 * weights * share[2]
    return f"| {kept / 1e6:.0f} | {(kept + 4 * weights * share[1]) / 1e6:.0f}"


def parse(settings: str) -> dict[str, object]:
    return {name: int(value) for name, _, value in (part.partition("=") for part in settings.split(",") if part)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--layouts", nargs="*", default=LAYOUTS)
    parser.add_argument("--offload")
    for hidden in ("--work", "--recompute", "--place"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work is not None:
        offload = None if options.offload is None else json.loads(options.offload)
        work(parse(options.work), options.recompute, offload, Path(options.place))
        return
    if options.offload is not None:
        print(
            "| on disk | between updates, MB | of that no file's | peak, MB | update, s | processor time, s |\n"
            "|---|---|---|---|---|---|",
            flush=True,
        )
        for what in OFFLOAD:
            places = {part: "disk" for part in what.split(",") if part}
            found = measure(1, "", offload=json.dumps({**places, "directory": options.offload}))
            figures = " | ".join(f"{found[key] / 1e6:.0f}" for key in ("between", "own", "peak"))
            seconds = f"{found['seconds']:.2f} | {found['processor']:.2f}"
            print(f"| {what or 'nothing'} | {figures} | {seconds} |", flush=True)
        return
    print(
        "| layout | between updates, MB | peak, MB | by the paper: between | peak | update, s |\n"
        "|---|---|---|---|---|---|"
    )
    for settings in options.layouts:
        found = measure(options.processes, settings)
        figures = f"{found['between'] / 1e6:.0f} | {found['peak'] / 1e6:.0f}"
        paper = expected(settings, options.processes, found["weights"])
        print(f"| {settings or 'data'} | {figures} {paper} | {found['seconds']:.2f} |", flush=True)
    print("\n| recompute | peak beyond weights, gradients and state, MB | update, s |\n|---|---|---|")
    for how in RECOMPUTE:
        found = measure(1, "", how)
        print(f"| {how} | {(found['peak'] - 16 * found['weights']) / 1e6:.0f} | {found['seconds']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
