"""The best learning rate of models of several widths, with µP and without.

    .venv/bin/python benchmarks/mup.py [--text FILE ...] [--widths N ...] [--rates R ...] [--steps N] [--out DIR]
    .venv/bin/python benchmarks/mup.py --quick

Every width is trained on the same batches with each learning rate, once with the usual initialization and once with µP
on the narrowest of them, where the two are the same. Heads have 32 entries, so that wider models have more. The table
has the last loss on held-out text; the best of each width is marked. --out (build/mup) gets mup.md and mup.png; trials
that are done are not done again. Without --text it is the diary that comes with the package. --quick shows within a
minute that all works; its figures say little. Beside other programs that compute, OMP_NUM_THREADS=1 is faster for
models so small.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tallow.errors import TallowError
from tallow.files import write_json, write_text
from tallow.run import StageRun
from tallow.stages import Recipe, run_recipe
from tallow.train.pretrain import PretrainConfig, pretrain

HEAD, LAYERS, VOCABULARY, BATCH, TOKENS = 32, 4, 2048, 8, 128
RULES = ("usual", "mup")
WIDTHS = (64, 128, 256, 512)
RATES = tuple(2.0**exponent for exponent in range(-12, -4))
QUICK: Mapping[str, Any] = {"widths": [64, 128], "rates": [2.0**-9, 2.0**-7, 2.0**-5], "steps": 10}

Losses = Mapping[int, Mapping[float, float]]
"""By width and learning rate; infinite where training diverged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=["tallow:pepys"])
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("build/mup"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options = argparse.Namespace(**{**vars(options), **QUICK})
    data = {
        "prepare": {"sources": options.text, "split": "paragraphs"},
        "tokenizer": {"vocab_size": VOCABULARY},
        "encode": {},
    }
    run_recipe(Recipe.parse(data), options.out / "data")
    base = min(options.widths)
    results = {
        rule: {
            width: {rate: learn(options.out, rule, width, base, rate, options.steps) for rate in options.rates}
            for width in options.widths
        }
        for rule in RULES
    }
    tables = "\n\n".join(markdown(rule, losses) for rule, losses in results.items())
    write_text(options.out / "mup.md", tables + "\n")
    plot(results, options.out / "mup.png")
    print(tables)


def learn(out: Path, rule: str, width: int, base: int, rate: float, steps: int) -> float:
    """The last loss on held-out text of a model of this width, trained with this learning rate now or before."""
    earlier = out / "trials" / f"{rule}-{width}-{base}-{rate:g}-{steps}.json"
    if not earlier.exists():
        earlier.parent.mkdir(exist_ok=True)
        loss = trained_loss(out, rule, width, base, rate, steps)
        write_json(earlier, {"loss": loss if math.isfinite(loss) else None})
    loss = json.loads(earlier.read_text())["loss"]
    return math.inf if loss is None else loss


def trained_loss(out: Path, rule: str, width: int, base: int, rate: float, steps: int) -> float:
    """The last loss on held-out text; infinite where training diverged."""
    shape = {
        "hidden_size": width,
        "num_layers": LAYERS,
        "num_heads": width // HEAD,
        "num_kv_heads": width // HEAD,
        "intermediate_size": 3 * width,
    }
    loop = {
        "learning_rate": rate,
        "warmup": 0.1,
        "steps": steps,
        "batch_size": BATCH,
        "sequence_length": TOKENS,
        "precision": "fp32",
        "validate_every": steps,
    }
    config = {
        "tokens": out / "data/encode/tokens",
        "tokenizer": out / "data/tokenizer/tokenizer",
        "model": shape,
        "initialization": {"name": "mup", "base": {"hidden_size": base}} if rule == "mup" else None,
        "validation_tokens": 8192,
        "loop": loop,
    }
    with tempfile.TemporaryDirectory() as directory:
        try:
            return pretrain(PretrainConfig.model_validate(config), StageRun(Path(directory)))["validation_loss"]
        except TallowError as error:
            if "diverged" not in error.message:
                raise
            return math.inf


def best_rates(losses: Losses) -> dict[int, float]:
    """The learning rate with the smallest loss, by width."""
    return {width: min(by_rate, key=lambda rate: by_rate[rate]) for width, by_rate in losses.items()}


def markdown(rule: str, losses: Losses) -> str:
    """A table of one rule: a row for each learning rate, a column for each width."""
    best = best_rates(losses)
    rates: Sequence[float] = sorted({rate for by_rate in losses.values() for rate in by_rate})
    heads = [f"{rule}: learning rate", *(f"width {width}" for width in losses)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for rate in rates:
        cells = [f"{rate:.2g}"]
        for width, by_rate in losses.items():
            loss = f"{by_rate[rate]:.3f}" if math.isfinite(by_rate[rate]) else "diverged"
            cells.append(f"**{loss}**" if rate == best[width] else loss)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Mapping[str, Losses], path: Path) -> None:
    """Loss by learning rate, a curve for each width, a panel for each rule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (rule, losses) in zip(figure.subplots(1, len(results), sharey=True), results.items(), strict=True):
        for width, by_rate in losses.items():
            finite = {rate: loss for rate, loss in sorted(by_rate.items()) if math.isfinite(loss)}
            axes.plot(list(finite), list(finite.values()), marker="o", label=f"{width}")
        axes.set(xlabel="learning rate", title=rule)
        axes.set_xscale("log", base=2)
        axes.legend(title="width")
    figure.supylabel("loss on held-out text")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
