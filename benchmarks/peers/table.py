"""Figures of several engines as a table in Markdown: medians, spreads, ratios, shares of the machine's limits."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figures:
    """What one engine gave in one round.

    Args:
        engine: Its name and version.
        ready_s: From the start of its process to the first token of a short prompt.
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


@dataclass(frozen=True)
class Machine:
    """What the machine gave in one round: bytes a second read from memory, FLOP a second of a matrix product."""

    read_bandwidth: float
    matmul_bf16: float
    matmul_fp32: float


@dataclass(frozen=True)
class Results:
    """Of all rounds.

    Args:
        machine: One a round.
        figures: By configuration (such as `tallow q4`), one a round.
        missing: Configurations that gave none, and why.
        prefill_flops: Of one token of a prompt, in products with weights.
        tried: By configuration, what each of its settings took in a short measurement, in seconds.
    """

    machine: list[Machine]
    figures: dict[str, list[Figures]]
    missing: dict[str, str]
    prefill_flops: float
    tried: dict[str, dict[str, float]] = field(default_factory=dict)


COLUMNS: dict[str, tuple[Callable[[Figures], float], str]] = {
    "prefill, 512": (lambda figures: figures.prefill, ",.0f"),
    "decode, 1 stream": (lambda figures: figures.decode, ",.0f"),
    "decode after 512": (lambda figures: figures.decode_after_512, ",.0f"),
    "32 streams, 16/64": (lambda figures: figures.streams_short, ",.0f"),
    "32 streams, 256/64": (lambda figures: figures.streams_long, ",.0f"),
    "ready after, s": (lambda figures: figures.ready_s, ".2f"),
    "peak memory, MB": (lambda figures: figures.peak_rss_mb, ",.0f"),
    "weights, MB": (lambda figures: figures.weight_mb, ",.0f"),
}

LLAMA_CPP = ("llama.cpp q4", "llama.cpp q8", "llama.cpp bf16")
VLLM = ("vllm bf16",)
RATIOS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "decode, 4 bit ÷ llama.cpp's best": ("decode, 1 stream", "tallow q4", LLAMA_CPP),
    "decode, 8 bit ÷ llama.cpp Q8_0": ("decode, 1 stream", "tallow q8", ("llama.cpp q8",)),
    "decode, bf16 ÷ llama.cpp BF16": ("decode, 1 stream", "tallow bf16", ("llama.cpp bf16",)),
    "prefill, 4 bit ÷ vLLM": ("prefill, 512", "tallow q4", VLLM),
    "prefill, bf16 ÷ vLLM": ("prefill, 512", "tallow bf16", VLLM),
    "32 streams, 16/64, 4 bit ÷ vLLM": ("32 streams, 16/64", "tallow q4", VLLM),
    "32 streams, 16/64, bf16 ÷ vLLM": ("32 streams, 16/64", "tallow bf16", VLLM),
    "32 streams, 256/64, 4 bit ÷ vLLM": ("32 streams, 256/64", "tallow q4", VLLM),
    "32 streams, 256/64, bf16 ÷ vLLM": ("32 streams, 256/64", "tallow bf16", VLLM),
}
"""What is compared: (column, ours, theirs); of several of theirs the fastest of each round counts."""


def markdown(results: Results) -> str:
    memory = [limit.read_bandwidth / 1e9 for limit in results.machine]
    bf16 = _spread([limit.matmul_bf16 / 1e9 for limit in results.machine], ",.0f")
    fp32 = _spread([limit.matmul_fp32 / 1e9 for limit in results.machine], ",.0f")
    speeds = [
        [
            f"{name}: {rounds[0].engine}",
            *(_spread([pick(mine) for mine in rounds], form) for pick, form in COLUMNS.values()),
        ]
        for name, rounds in results.figures.items()
    ]
    speeds += [[name, reason] + [""] * (len(COLUMNS) - 1) for name, reason in results.missing.items()]
    of_limit = [[name, f"{prefill:.0%}", f"{decode:.0%}"] for name, (prefill, decode) in shares(results).items()]
    compared = [
        [name, f"{statistics.median(values):.2f}", f"{min(values):.2f}–{max(values):.2f}"]
        for name, values in ratios(results).items()
    ]
    tried = [
        [name, setting, f"{seconds:.2f}"]
        for name, settings in results.tried.items()
        for setting, seconds in sorted(settings.items(), key=lambda item: item[1])
    ]
    lines = [
        f"Memory is read at {_spread(memory, '.1f')} GB/s.",
        f"A matrix product reaches {bf16} GFLOP/s in bf16, {fp32} in fp32.",
        *_table(["tokens a second", *COLUMNS], speeds),
        *_table(
            ["share of the machine's limit", "prefill, of the matrix product", "decode, of the bandwidth"], of_limit
        ),
        *_table(["ratio", "median", "least–greatest"], compared),
        *_table(["tried before the rounds", "setting", "512 in, 64 out, s"], tried),
    ]
    return "\n".join(lines) + "\n"


def ratios(results: Results) -> dict[str, list[float]]:
    """Round by round: what ran at about the same time is compared."""
    found = {}
    for name, (column, ours, theirs) in RATIOS.items():
        pick = COLUMNS[column][0]
        sides = [results.figures[side] for side in (ours, *theirs) if side in results.figures]
        if ours in results.figures and len(sides) > 1:
            found[name] = [pick(mine) / max(map(pick, others)) for mine, *others in zip(*sides, strict=False)]
    return found


def shares(results: Results) -> dict[str, tuple[float, float]]:
    """Of a matrix product's speed at prefill (4- and 8-bit weights: of bf16's), of the memory's at decoding."""
    found = {}
    for name, rounds in results.figures.items():
        pairs = list(zip(rounds, results.machine, strict=False))
        peaks = [limit.matmul_fp32 if name.endswith("fp32") else limit.matmul_bf16 for _, limit in pairs]
        prefill = [mine.prefill * results.prefill_flops / peak for (mine, _), peak in zip(pairs, peaks, strict=True)]
        decode = [mine.decode * mine.weight_mb * 1e6 / limit.read_bandwidth for mine, limit in pairs]
        found[name] = (statistics.median(prefill), statistics.median(decode))
    return found


def _spread(values: Sequence[float], form: str) -> str:
    """The median, and what lay furthest from it."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}–{max(values):{form}})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])] if rows else []
