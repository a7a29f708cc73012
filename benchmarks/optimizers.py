"""Optimizers side by side: one small model, one text, the same tokens, and as many learning rates tried for each.

    .venv/bin/python benchmarks/optimizers.py [--form quick|long] [--out DIR] [--text FILE ...] [--only NAME ...]

Each optimizer trains the same initial weights on the same batches with each of its learning rates, a factor of 2 or 3
apart around one that is usual for it. The best by its last loss on held-out text counts, and is trained again from
other seeds in the long form. The table says where the best was the smallest or the largest that was tried: that
optimizer may not be tuned. All else (batch, warm-up, cosine, decoupled weight decay of 0.1, clipping at 1) is equal,
and is what suits AdamW.

Loss stands against tokens, against seconds (steps times the median step of a short run of that optimizer, all of them
one after another when the trials are done; two threads unless OMP_NUM_THREADS says otherwise) and against the bytes of
state that the optimizer keeps for each weight, as they are in a checkpoint. --out (build/optimizers) gets
optimizers.md, optimizers.svg and optimizers.json; trials that are done are not done again, so that some (--only) can
run beside others. Quick takes about ten minutes on two cores, long about two hours. Without --text it is the diary
that comes with the package.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from safetensors import safe_open

from tallow.errors import TallowError
from tallow.files import write_json, write_text
from tallow.recipe import parse_section
from tallow.run import StageRun
from tallow.stages import STAGES, Recipe, run_recipe, run_stage
from tallow.train.checkpoint_part import OPTIMIZER

SHAPE = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 352}
VOCABULARY, BATCH, TOKENS, TIMED_STEPS = 2048, 8, 128, 60
# the middle of the learning rates that are tried, and settings that fit a model 128 wide
CENTRES: Mapping[str, float] = {
    "adafactor": 3e-2,
    "adalomo": 8e-2,
    "adam_mini": 5e-3,
    "adamw": 5e-3,
    "adamw8bit": 5e-3,
    "galore": 1e-2,
    "lion": 1e-3,
    "lomo": 0.12,
    "muon": 5e-3,
    "schedule_free": 5e-3,
    "shampoo": 5e-3,
    "soap": 5e-3,
    "sophia": 1e-3,
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {"galore": {"rank": 32, "every": 50}}

Edge = Literal["", "smallest", "largest"]


class Form(NamedTuple):
    """How much is done: steps of a trial, learning rates and the factor between them, seeds of the best, and how often
    held-out text is scored."""

    steps: int
    rates: int
    factor: float
    seeds: int
    marks: int

    def around(self, centre: float) -> list[float]:
        """The learning rates that are tried."""
        return [float(f"{centre * self.factor ** (place - (self.rates - 1) / 2):.3g}") for place in range(self.rates)]


FORMS: Mapping[str, Form] = {"quick": Form(200, 3, 3.0, 1, 4), "long": Form(600, 5, 2.0, 3, 10)}


class Trial(NamedTuple):
    """What one learning rate came to.

    Args:
        learning_rate: The largest.
        losses: On held-out text, by the tokens seen so far.
        state_bytes: For each weight.
    """

    learning_rate: float
    losses: dict[int, float]
    state_bytes: float

    @property
    def last_loss(self) -> float:
        return list(self.losses.values())[-1]


class Result(NamedTuple):
    """An optimizer at its best.

    Args:
        best: The trial with the least last loss.
        edge: Whether its learning rate was the smallest or the largest that was tried.
        last_losses: Those of all seeds with that learning rate.
        diverged: Learning rates that made the loss infinite.
        step_s: Seconds of a step.
    """

    best: Trial
    edge: Edge
    last_losses: tuple[float, ...]
    diverged: tuple[float, ...]
    step_s: float = math.nan

    @property
    def last_loss(self) -> float:
        """The mean over the seeds."""
        return statistics.mean(self.last_losses)

    @property
    def seconds(self) -> list[float]:
        """Seconds of training at which each of the losses of the best was reached."""
        return [tokens / (BATCH * TOKENS) * self.step_s for tokens in self.best.losses]

    @property
    def spread(self) -> float:
        """The largest last loss less the smallest."""
        return max(self.last_losses) - min(self.last_losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", choices=list(FORMS), default="quick")
    parser.add_argument("--out", type=Path, default=Path("build/optimizers"))
    parser.add_argument("--text", nargs="+", default=["tallow:pepys"])
    parser.add_argument("--steps", type=int, help="instead of the form's")
    parser.add_argument("--only", nargs="+", default=list(CENTRES), choices=list(CENTRES))
    options = parser.parse_args()
    form = FORMS[options.form]
    form = form._replace(steps=options.steps or form.steps)
    data = {
        "prepare": {"sources": options.text, "split": "paragraphs"},
        "tokenizer": {"vocab_size": VOCABULARY},
        "encode": {},
    }
    run_recipe(Recipe.parse(data), options.out / "data")
    results = {name: tune(options.out, name, form) for name in options.only}
    results = {name: result._replace(step_s=step_seconds(options.out, name)) for name, result in results.items()}
    table = markdown(results)
    write_text(options.out / "optimizers.md", table + "\n")
    write_text(options.out / "optimizers.svg", plot(results))
    write_json(options.out / "optimizers.json", {name: as_json(result) for name, result in results.items()})
    print(table)


def tune(out: Path, name: str, form: Form) -> Result:
    """Try all learning rates of an optimizer, and other seeds with the best."""
    rates = form.around(CENTRES[name])
    trials, diverged = [], []
    for rate in rates:
        try:
            trials.append(learn(out, name, rate, form))
        except TallowError as error:
            if type(error) is not TallowError:  # those that are not of a kind tell of training that went wrong
                raise
            diverged.append(rate)
    if not trials:
        raise SystemExit(f"{name} diverges with each learning rate: {rates}")
    best = min(trials, key=lambda trial: trial.last_loss)
    edges: dict[float, Edge] = {rates[0]: "smallest", rates[-1]: "largest"}
    edge = edges.get(best.learning_rate, "")
    others = [learn(out, name, best.learning_rate, form, seed) for seed in range(1, form.seeds)]
    return Result(best, edge, tuple(trial.last_loss for trial in (best, *others)), tuple(diverged))


def learn(out: Path, name: str, rate: float, form: Form, seed: int = 0) -> Trial:
    """Train with one optimizer and learning rate, or read what that came to before."""
    run = StageRun(out / "trials" / f"{name}-{rate:g}-{form.steps}-{seed}")
    result = train(
        out,
        name,
        run,
        learning_rate=rate,
        steps=form.steps,
        seed=seed,
        keep_checkpoints=1,
        log_every=max(1, form.steps // 20),
        validate_every=-(-form.steps // form.marks),
    )
    [weights_and_state] = run.directory.glob("checkpoints/*/*.safetensors")
    scores = {record["step"]: record["validation_loss"] for record in run.metrics() if "validation_loss" in record}
    return Trial(
        learning_rate=rate,
        losses={step * BATCH * TOKENS: loss for step, loss in scores.items()},
        state_bytes=bytes_of(weights_and_state, OPTIMIZER) / result["parameters"],
    )


def step_seconds(out: Path, name: str) -> float:
    """How long a step takes now."""
    with tempfile.TemporaryDirectory() as directory:
        run = StageRun(Path(directory))
        return BATCH * TOKENS / train(out, name, run, learning_rate=1e-4, steps=TIMED_STEPS)["tokens_per_s"]


def train(out: Path, name: str, run: StageRun, **loop: Any) -> dict[str, Any]:
    """Train the model on the text with one optimizer; what of the loop's settings is not said is the same for all."""
    optimizer = {"name": name, **SETTINGS.get(name, {})}
    size = {"batch_size": BATCH, "sequence_length": TOKENS, "precision": "fp32", "warmup": 0.1}
    values = {
        "tokens": out / "data/encode/tokens",
        "tokenizer": out / "data/tokenizer/tokenizer",
        "model": SHAPE,
        "loop": {"optimizer": optimizer, **size, **loop},
    }
    return run_stage("pretrain", parse_section(STAGES["pretrain"].load()[0], values, "pretrain"), run)


def bytes_of(path: Path, prefix: str) -> int:
    """Bytes of the tensors whose names begin like this."""
    with safe_open(path, "np") as file:
        names = [name for name in list(file.keys()) if name.startswith(prefix)]
        return sum(file.get_tensor(name).nbytes for name in names)


def markdown(results: Mapping[str, Result]) -> str:
    """A table, the lowest last loss first."""
    order = ranked(results)
    tokens = list(results[order[0]].best.losses)
    marks = [tokens[place * len(tokens) // 4 - 1] for place in (1, 2, 3)] if len(tokens) >= 4 else tokens[:-1]
    heads = ["optimizer", "learning rate", *(f"loss at {mark:,}" for mark in marks), f"loss at {tokens[-1]:,}"]
    heads += ["seconds", "bytes of state/weight"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in order:
        result = results[name]
        sign = {"": "", "smallest": " (smallest tried)", "largest": " (largest tried)"}[result.edge]
        last = f"{result.last_loss:.3f}" + (f" ± {result.spread / 2:.3f}" if len(result.last_losses) > 1 else "")
        cells = [
            name,
            f"{result.best.learning_rate:.2g}{sign}",
            *(f"{result.best.losses[mark]:.3f}" for mark in marks),
            last,
            f"{result.seconds[-1]:.0f}",
            f"{result.best.state_bytes:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Mapping[str, Result]) -> str:
    """Loss against tokens, seconds, and bytes of state, as SVG."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_tokens, by_seconds, by_state = figure.subplots(1, 3, sharey=True)
    for name, color in zip(ranked(results), mpl.color_sequences["tab20"], strict=False):
        best = results[name].best
        losses = list(best.losses.values())
        by_tokens.plot(list(best.losses), losses, color=color, label=name, linewidth=1)
        by_seconds.plot(results[name].seconds, losses, color=color, linewidth=1)
        by_state.plot(best.state_bytes, results[name].last_loss, "o", color=color, markersize=5)
    by_tokens.set_ylabel("held-out loss (nats a token)")
    for axes, label in ((by_tokens, "tokens"), (by_seconds, "seconds"), (by_state, "bytes of state for each weight")):
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "tallow", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def as_json(result: Result) -> dict[str, Any]:
    return {**result._asdict(), "best": result.best._asdict()}


def ranked(results: Mapping[str, Result]) -> Sequence[str]:
    """The optimizers, the lowest last loss first."""
    return sorted(results, key=lambda name: results[name].last_loss)


if __name__ == "__main__":
    main()
