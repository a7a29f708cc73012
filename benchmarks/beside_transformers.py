"""tallow beside transformers on SmolLM2-135M: prefill, decode and a training step.

    .venv/bin/python benchmarks/beside_transformers.py [--dtype bf16|fp32] [--threads N] [--rounds N]

Both run in this one process, from the same weights, with the same threads and dtype, and take turns round by round;
medians count. Beside each speed stands its share of the machine's limit: of the measured peak of a matrix product for
prefill and training, of the measured memory bandwidth for decode. Training computes in --dtype by autocast over
float32 weights on both sides, and steps torch's fused AdamW.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tallow.bench import random_batch, time_generation
from tallow.engine.engine import Engine
from tallow.engine.make_runner import Precision, make_runner
from tallow.kernels import matmul_peak, read_bandwidth
from tallow.models.formats import load_model, save_model
from tallow.models.quantization import model_bytes
from tallow.models.store import pull
from tallow.objectives.causal import causal
from tallow.parallel import ALONE
from tallow.train.config import LoopConfig
from tallow.train.precision import count_flops
from tallow.train.update import Updater

PROMPT_TOKENS, NEW_TOKENS = 512, 64
TRAIN_BATCH, TRAIN_TOKENS = 4, 512
LEARNING_RATE = 1e-5
Times = tuple[float, ...]
Timed = Callable[[], Times]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.dtype]
    with tempfile.TemporaryDirectory() as directory:
        save_model(load_model(pull("smollm2-135m"), dtype=torch.float32), None, Path(directory) / "model")
        peak, bandwidth = matmul_peak(dtype), read_bandwidth()
        print(
            f"SmolLM2-135M, {options.dtype}, {options.threads} threads, median of {options.rounds} rounds; "
            f"matrix product {peak / 1e9:.0f} GFLOP/s, memory {bandwidth / 1e9:.1f} GB/s"
        )
        print(f"{'':34}{'tallow':>10}{'of limit':>10}{'transformers':>14}{'ratio':>8}")
        compare_inference(Path(directory) / "model", options.dtype, dtype, options.rounds, peak, bandwidth)
        compare_training(Path(directory) / "model", options.dtype, options.rounds, peak)


def compare_inference(
    path: Path, precision: Precision, dtype: torch.dtype, rounds: int, peak: float, bandwidth: float
) -> None:
    """One sequence: a prompt of 512 tokens, then 64 new ones."""
    ours = load_model(path, dtype=dtype)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    engine = Engine(make_runner(ours, precision), None)  # as tallow.load does
    prompt = random_batch(ours.config.vocab_size, 1, PROMPT_TOKENS - 1).tokens_BT

    def time_theirs() -> tuple[float, float]:
        with torch.inference_mode():
            start = time.perf_counter()
            out = theirs(prompt, use_cache=True, logits_to_keep=1)
            middle = time.perf_counter()
            for _ in range(NEW_TOKENS - 1):
                token = out.logits[:, -1:].argmax(-1)
                out = theirs(token, past_key_values=out.past_key_values, use_cache=True)
            return middle - start, time.perf_counter() - middle

    def time_ours() -> tuple[float, float]:
        return time_generation(engine, [prompt[0].tolist()], NEW_TOKENS)[:2]

    our_times, their_times = take_turns(time_ours, time_theirs, rounds)
    (our_prefill, our_decode), (their_prefill, their_decode) = columns(our_times), columns(their_times)
    weights = model_bytes(ours)
    prefill_flops = 2.0 * sum(p.numel() for p in ours.layers.parameters() if p.ndim == 2) * PROMPT_TOKENS
    show("prefill, 512 tokens (tokens/s)", PROMPT_TOKENS, our_prefill, their_prefill, prefill_flops / peak)
    show(
        "decode, 1 stream (tokens/s)", NEW_TOKENS - 1, our_decode, their_decode, weights * (NEW_TOKENS - 1) / bandwidth
    )


def compare_training(path: Path, precision: str, rounds: int, peak: float) -> None:
    """Forward, backward and AdamW on 4 rows of 512 tokens."""
    ours = load_model(path, dtype=torch.float32)
    updater = Updater(ours, causal, LoopConfig(), ALONE)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=LEARNING_RATE, fused=True)
    packed = random_batch(ours.config.vocab_size, TRAIN_BATCH, TRAIN_TOKENS)
    flops = count_flops(lambda: updater.rehearse(packed, "fp32"))

    def time_theirs() -> tuple[float]:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits_BTV = theirs(packed.tokens_BT[:, :-1], use_cache=False).logits
        F.cross_entropy(logits_BTV.float().flatten(0, 1), packed.tokens_BT[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return (time.perf_counter() - start,)

    def time_ours() -> tuple[float]:
        start = time.perf_counter()
        updater.update(1, [packed], LEARNING_RATE, "bf16" if precision == "bf16" else "fp32")
        return (time.perf_counter() - start,)

    our_times, their_times = take_turns(time_ours, time_theirs, rounds)
    tokens = TRAIN_BATCH * TRAIN_TOKENS
    show("training, 4 x 512 (tokens/s)", tokens, columns(our_times)[0], columns(their_times)[0], flops / peak)


def take_turns(ours: Timed, theirs: Timed, rounds: int) -> tuple[list[Times], list[Times]]:
    """Results of both, round by round, after one round to warm up."""
    results = [(ours(), theirs()) for _ in range(1 + rounds)][1:]
    return [mine for mine, _ in results], [other for _, other in results]


def columns(rows: list[tuple[float, ...]]) -> list[float]:
    """The median of each column."""
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def show(name: str, tokens: int, our_s: float, their_s: float, least_s: float) -> None:
    """One line; `least_s`: the seconds that the machine's limit allows."""
    print(f"{name:34}{tokens / our_s:10,.0f}{least_s / our_s:10.0%}{tokens / their_s:14,.0f}{their_s / our_s:8.2f}")


if __name__ == "__main__":
    main()
