"""A training step, tallow's beside one that is written with transformers, as it is and compiled.

    .venv/bin/python benchmarks/training.py [--models 135m,14m] [--sides tallow,…] [--precision bf16|fp32]
                                            [--threads N] [--rounds N]

Forward, backward, clipping and AdamW on rows of 512 tokens, of SmolLM2-135M (4 rows) and of a Llama of 14 million
parameters (8 rows). Each side runs in a process of its own, from the same weights and on the same tokens, and waits
while another one computes: they take turns, round by round, and medians count. All compute in --precision by autocast
over float32 weights, and step torch's fused AdamW. Beside the speeds stand their shares of the machine's limit,
the measured peak of a matrix product, the peak of resident memory, and what was needed before the first steady step.

LitGPT (`--sides tallow,litgpt`, where it is installed) goes as its own pretraining does: compiled, and the loss in
chunks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from tallow.data.batch import Packed

TOKENS, WARM_UP = 512, 3
LEARNING_RATE = 1e-5
SIDES = ("tallow", "transformers", "transformers compiled")
ROWS = {"135m": 4, "14m": 8}
STEPS = {"135m": 1, "14m": 4}
"""In a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="135m,14m")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "DIRECTORY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]), options.models, options.precision)
        return
    for model in options.models.split(","):
        with tempfile.TemporaryDirectory() as directory:
            write_model(model, Path(directory))
            results = take_turns(options.sides.split(","), Path(directory), model, options)
        print(markdown(model, options.precision, options.threads, results), flush=True)


def write_model(model: str, directory: Path) -> None:
    """Weights in float32, as both sides read them, and what a step computes."""
    import torch

    from tallow.models.config import DecoderConfig
    from tallow.models.formats import load_model, save_model
    from tallow.models.skeletons import new_model
    from tallow.models.store import pull

    if model == "135m":
        save_model(load_model(pull("smollm2-135m"), dtype=torch.float32), None, directory)
        return
    shape = {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_layers": 7, "num_heads": 6}
    save_model(new_model(DecoderConfig.model_validate({**shape, "num_kv_heads": 2}), seed=0), None, directory)


def take_turns(
    sides: list[str], directory: Path, model: str, options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """What each side measured: tokens per second, share of the peak, and so on."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, __file__, "--precision", options.precision, "--models", model, "--serve"]
    processes = {
        side: subprocess.Popen(
            [*command, side, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for side in sides
    }

    def ask(side: str) -> dict[str, float]:
        process = processes[side]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("on\n")
        process.stdin.flush()
        if not (line := process.stdout.readline()):
            raise SystemExit(f"{side} has ended")
        return json.loads(line)

    ready = {side: ask(side) for side in sides}
    rounds = [{side: ask(side) for side in sides} for _ in range(options.rounds)]
    for process in processes.values():
        process.communicate("")
    return {
        side: {
            "tokens_per_s": ROWS[model] * TOKENS / statistics.median(one[side]["seconds"] for one in rounds),
            "mfu": statistics.median(one[side]["flops"] / one[side]["seconds"] / one[side]["peak"] for one in rounds),
            "peak_flops": statistics.median(one[side]["peak"] for one in rounds),
            "peak_rss_mb": rounds[-1][side]["peak_rss_mb"],
            "ready_s": ready[side]["seconds"],
            "loss": rounds[-1][side]["loss"],
        }
        for side in sides
    }


def serve(side: str, directory: Path, model: str, precision: Literal["bf16", "fp32"]) -> None:
    """One side's process: it warms up, then steps whenever it is told to."""
    import torch

    from tallow.bench import random_batch
    from tallow.files import read_json
    from tallow.kernels.probe import matmul_peak
    from tallow.run import forget_peak_rss, peak_rss_bytes

    sys.stdin.readline()
    config = read_json(directory / "config.json")
    packed = random_batch(config["vocab_size"], ROWS[model], TOKENS)
    flops = flops_of(packed, directory)
    start = time.perf_counter()
    if side == "tallow":
        step = our_step(packed, directory, precision)
    elif side == "litgpt":
        step = litgpt_step(packed.tokens_BT, config, precision)
    else:
        step = transformers_step(packed.tokens_BT, directory, precision, compiled="compiled" in side)
    for _ in range(WARM_UP):
        step()
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    forget_peak_rss()
    while sys.stdin.readline():
        start, loss = time.perf_counter(), 0.0
        for _ in range(STEPS[model]):
            loss = step()
        seconds = (time.perf_counter() - start) / STEPS[model]
        peak_rss = peak_rss_bytes() / 1e6  # before the peak is measured, which takes memory of its own
        matmul_peak.cache_clear()
        peak = matmul_peak(torch.bfloat16 if precision == "bf16" else torch.float32)
        print(
            json.dumps({"seconds": seconds, "loss": loss, "flops": flops, "peak": peak, "peak_rss_mb": peak_rss}),
            flush=True,
        )


def flops_of(packed: Packed, directory: Path) -> int:
    """Floating-point operations of a step's matrix products."""
    import torch

    from tallow.models.formats import load_model
    from tallow.objectives.causal import causal
    from tallow.parallel import Layout
    from tallow.train.config import LoopConfig
    from tallow.train.precision import count_flops
    from tallow.train.update import Updater

    updater = Updater(Layout(load_model(directory, dtype=torch.float32)), causal, LoopConfig())
    return len(packed.tokens_BT) * count_flops(lambda: updater.rehearse(packed.first_rows(1), "fp32"))


def our_step(packed: Packed, directory: Path, precision: Literal["bf16", "fp32"]) -> Callable[[], float]:
    """What `tallow pretrain` does in a step."""
    import torch

    from tallow.kernels.memory import keeping_freed_memory
    from tallow.models.formats import load_model
    from tallow.objectives.causal import causal
    from tallow.parallel import Layout
    from tallow.train.config import LoopConfig
    from tallow.train.update import Updater

    updater = Updater(Layout(load_model(directory, dtype=torch.float32)), causal, LoopConfig())

    def steps() -> Iterator[float]:
        with keeping_freed_memory():
            while True:
                yield updater.update(1, [packed], LEARNING_RATE, precision).loss

    return steps().__next__


def transformers_step(tokens_BT: Tensor, directory: Path, precision: str, *, compiled: bool) -> Callable[[], float]:
    """The same by transformers and torch."""
    import torch
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    inputs_BT, targets_N = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].flatten()

    def loss_of_batch() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits_BTV = model(inputs_BT, use_cache=False).logits
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), targets_N)

    forward = torch.compile(loss_of_batch) if compiled else loss_of_batch

    def step() -> float:
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def litgpt_step(tokens_BT: Tensor, config: dict[str, Any], precision: str) -> Callable[[], float]:
    """That of `litgpt pretrain`, with a model of the same shape and other weights."""
    import torch
    from lightning import Fabric  # pyright: ignore[reportMissingImports]
    from litgpt import GPT, Config  # pyright: ignore[reportMissingImports]
    from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports]

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed" if precision == "bf16" else "32-true")
    model = GPT(
        Config(
            block_size=TOKENS,
            vocab_size=config["vocab_size"],
            padded_vocab_size=config["vocab_size"],
            n_layer=config["num_hidden_layers"],
            n_embd=config["hidden_size"],
            n_head=config["num_attention_heads"],
            n_query_groups=config["num_key_value_heads"],
            intermediate_size=config["intermediate_size"],
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            parallel_residual=False,
            rotary_percentage=1.0,
            bias=False,
        )
    )
    model.lm_head.weight = model.transformer.wte.weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    model, optimizer = fabric.setup(torch.compile(model), optimizer)
    inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()

    def step() -> float:
        loss = chunked_cross_entropy(model(inputs_BT), targets_BT)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def markdown(model: str, precision: str, threads: int, results: dict[str, dict[str, float]]) -> str:
    """A table of all sides, and what ours is to the others."""
    peak = statistics.median(result["peak_flops"] for result in results.values()) / 1e9
    lines = [
        f"{model}, {precision}, {threads} threads, {ROWS[model]} × {TOKENS} tokens; peak {peak:.0f} GFLOP/s",
        "",
        "| | tokens/s | share of the peak | peak memory, MB | before steady, s | tallow: speed | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = results.get("tallow")
    for side, result in results.items():
        compared = ""
        if ours is not None and side != "tallow":
            speed, memory = ours["tokens_per_s"] / result["tokens_per_s"], ours["peak_rss_mb"] / result["peak_rss_mb"]
            compared = f"{speed:.2f} × | {memory:.2f} ×"
        lines.append(
            f"| {side} | {result['tokens_per_s']:,.0f} | {result['mfu']:.0%} | {result['peak_rss_mb']:,.0f} "
            f"| {result['ready_s']:.1f} | {compared or '|'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
