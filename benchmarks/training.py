"""A training step of SmolLM2-135M, tallow's beside one that is written with transformers.

    .venv/bin/python benchmarks/training.py [--precision bf16|fp32] [--threads N] [--rounds N]

Forward, backward and AdamW on 4 rows of 512 tokens. Both run in this one process, from the same weights, and take turns
round by round; medians count. Both compute in --precision by autocast over float32 weights, and step torch's fused
AdamW. Beside our speed stands its share of the machine's limit, the measured peak of a matrix product.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tallow.bench import random_batch
from tallow.kernels.probe import matmul_peak
from tallow.models.formats import load_model, save_model
from tallow.models.store import pull
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.train.config import LoopConfig
from tallow.train.precision import count_flops
from tallow.train.update import Updater

BATCH, TOKENS = 4, 512
LEARNING_RATE = 1e-5
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peak = matmul_peak(DTYPES[options.precision])
    with tempfile.TemporaryDirectory() as directory:
        save_model(load_model(pull("smollm2-135m"), dtype=torch.float32), None, Path(directory) / "model")
        ours_s, theirs_s, flops = time_steps(Path(directory) / "model", options.precision, options.rounds)
    tokens = BATCH * TOKENS
    print(
        f"SmolLM2-135M, {options.precision}, {options.threads} threads, median of {options.rounds} rounds: tallow "
        f"{tokens / ours_s:,.0f} tokens/s ({flops / peak / ours_s:.0%} of {peak / 1e9:.0f} GFLOP/s), transformers "
        f"{tokens / theirs_s:,.0f} tokens/s, ratio {theirs_s / ours_s:.2f}"
    )


def time_steps(path: Path, precision: Literal["bf16", "fp32"], rounds: int) -> tuple[float, float, float]:
    """Seconds of our step and of theirs, medians after one to warm up; the FLOPs of one."""
    ours = load_model(path, dtype=torch.float32)
    updater = Updater(Layout(ours), causal, LoopConfig())
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LEARNING_RATE, fused=True)
    packed = random_batch(ours.config.vocab_size, BATCH, TOKENS)
    flops = count_flops(lambda: updater.rehearse(packed, "fp32"))

    def step_theirs() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits_BTV = theirs(packed.tokens_BT[:, :-1], use_cache=False).logits
        F.cross_entropy(logits_BTV.float().flatten(0, 1), packed.tokens_BT[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    times = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        updater.update(1, [packed], LEARNING_RATE, precision)
        middle = time.perf_counter()
        step_theirs()
        times.append((middle - start, time.perf_counter() - middle))
    ours_s, theirs_s = (statistics.median(column) for column in zip(*times[1:], strict=True))
    return ours_s, theirs_s, flops


if __name__ == "__main__":
    main()
