"""What every engine is asked to do, the same for all; runs in the engine's own process and virtual environment.

Prompts are random tokens, new ones every time, so that no engine finds anything in a cache; answers are greedy and do
not stop at an end token. Only the standard library is used here: no peer is sure to have anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

STREAMS = 32
LONGEST = 256 + 64
"""Tokens of one of the many streams, prompt and answer."""

REPEATS = 3
TRY_TOKENS = 64
CALM_S = 3.0
"""Left to every engine after its first token, as a server has it before anybody comes."""

TOKENS = range(100, 49_000)
"""Ordinary tokens of SmolLM2's vocabulary."""

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], tuple[float, float]]
"""(prompts, new tokens of each) → seconds from submission to the first token of any, and to the last of all."""


@dataclass(frozen=True)
class Options:
    model: Path
    precision: str
    threads: int
    setting: str
    is_try: bool


@dataclass(frozen=True)
class Figures:
    """What one process measures.

    Args:
        engine: Its name and version.
        ready_s: From the start of the process to the first token of a short prompt.
        prefill: Tokens of a prompt of 512 a second.
        decode: Tokens a second of one stream after its first, 128 after a prompt of 16.
        decode_after_512: Likewise after a prompt of 512.
        streams_short: New tokens a second of 32 streams, from submission to the end of the last: 16 in, 64 out.
        streams_long: Likewise 256 in, 64 out.
        peak_rss_mb: Resident memory at its highest, in MB.
        weight_mb: What the weights take, in MB.
    """

    engine: str
    ready_s: float
    prefill: float
    decode: float
    decode_after_512: float
    streams_short: float
    streams_long: float
    peak_rss_mb: float
    weight_mb: float


def read_options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("precision")
    parser.add_argument("threads", type=int)
    parser.add_argument("--setting", default="", help="one of the engine's own")
    parser.add_argument("--try", dest="is_try", action="store_true", help="only tell how well the setting does")
    return Options(**vars(parser.parse_args()))


def measure(engine: str, generate: Generate, weight_bytes: int) -> None:
    """Put an engine that is ready to generate through the workload; prints `Figures` as the last line."""
    prompts = _Prompts()
    generate(prompts.draw(1, 8), 1)
    ready_s = _seconds_since_start()
    time.sleep(CALM_S)
    generate(prompts.draw(1, 512), 4)
    long = [generate(prompts.draw(1, 512), 128) for _ in range(REPEATS)]
    short = [generate(prompts.draw(1, 16), 128) for _ in range(REPEATS)]
    generate(prompts.draw(STREAMS, 16), 4)
    streams_short_s = generate(prompts.draw(STREAMS, 16), 64)[1]
    streams_long_s = generate(prompts.draw(STREAMS, 256), 64)[1]
    figures = Figures(
        engine=engine,
        ready_s=ready_s,
        prefill=512 / statistics.median(first_s for first_s, _ in long),
        decode=127 / statistics.median(last_s - first_s for first_s, last_s in short),
        decode_after_512=127 / statistics.median(last_s - first_s for first_s, last_s in long),
        streams_short=STREAMS * 64 / streams_short_s,
        streams_long=STREAMS * 64 / streams_long_s,
        peak_rss_mb=_peak_rss_bytes() / 1e6,
        weight_mb=weight_bytes / 1e6,
    )
    print("\n" + json.dumps(asdict(figures)))


def measure_try(generate: Generate) -> None:
    """A short measurement, to choose among an engine's settings; prints seconds as the last line.

    They are those of a prompt of 512 and of 64 new tokens, the fastest of three.
    """
    prompts = _Prompts()
    generate(prompts.draw(1, 512), 4)
    print(f"\n{min(generate(prompts.draw(1, 512), TRY_TOKENS)[1] for _ in range(REPEATS))}")


class _Prompts:
    """Draws the same prompts in every process."""

    def __init__(self) -> None:
        self._random = random.Random(0)

    def draw(self, count: int, tokens: int) -> Prompts:
        return [self._random.choices(TOKENS, k=tokens) for _ in range(count)]


def _seconds_since_start() -> float:
    """Age of this process: from its start, the interpreter's and imports included."""
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def _peak_rss_bytes() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
