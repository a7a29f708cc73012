"""What every engine is asked to do, the same for all; runs in the engine's own process and virtual environment.

A process stays, and does one task after the other as it is told to, so that engines can take turns at short intervals.
Prompts are random tokens, new ones every time, so that no engine finds anything in a cache; answers are greedy and do
not stop at an end token. Only the standard library is used here: no peer is sure to have anything else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

STREAMS = 32
LONGEST = 256 + 64
"""Tokens of one of the many streams, prompt and answer."""

TRIES = 3
TRY_TOKENS = 64
MARK = "figures: "
"""Begins the lines that are meant for the one who asks; engines print others."""

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
class Task:
    """So many streams of random prompts of one length, each with so many new tokens."""

    streams: int
    prompt_tokens: int
    new_tokens: int

    @property
    def all_new_tokens(self) -> int:
        return self.streams * self.new_tokens


WARM_UP = (Task(1, 512, 4), Task(STREAMS, 16, 4), Task(STREAMS, 256, 4))
TASKS = {
    "long": Task(1, 512, 128),
    "short": Task(1, 16, 128),
    "streams_short": Task(STREAMS, 16, 64),
    "streams_long": Task(STREAMS, 256, 64),
}


@dataclass(frozen=True)
class Ready:
    """What a process says first: its engine with its version, what its weights take, and seconds from its start to the
    first token of a short prompt."""

    engine: str
    weight_mb: float
    ready_s: float


def read_options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("precision")
    parser.add_argument("threads", type=int)
    parser.add_argument("--setting", default="", help="one of the engine's own")
    parser.add_argument("--try", dest="is_try", action="store_true", help="only tell how well the setting does")
    return Options(**vars(parser.parse_args()))


def work(engine: str, generate: Generate, weight_bytes: int) -> None:
    """Do the tasks that come on standard input, a line of JSON each, until that ends.

    Prints `Ready` first, then what `generate` gives for each task, and at last the peak of its memory in MB.
    """
    prompts = _Prompts()
    generate(prompts.draw(1, 8), 1)
    _say(asdict(Ready(engine, weight_bytes / 1e6, _seconds_since_start())))
    for line in sys.stdin:
        task = Task(**json.loads(line))
        _say(generate(prompts.draw(task.streams, task.prompt_tokens), task.new_tokens))
    _say(_peak_rss_bytes() / 1e6)


def measure_try(generate: Generate) -> None:
    """A short measurement, to choose among an engine's settings; prints seconds.

    They are those of a prompt of 512 and of 64 new tokens, the fastest of three.
    """
    prompts = _Prompts()
    generate(prompts.draw(1, 512), 4)
    _say(min(generate(prompts.draw(1, 512), TRY_TOKENS)[1] for _ in range(TRIES)))


def _say(value: object) -> None:
    print(f"\n{MARK}{json.dumps(value)}", flush=True)


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
