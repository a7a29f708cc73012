"""Optimizers side by side: one small model, one text, the same tokens, and as many learning rates tried for each.

    .venv/bin/python benchmarks/optimizers.py [--text FILE ...] [--steps N] [--only NAME ...] [--rates N]

Each optimizer trains the same initial weights on the same batches with each of its learning rates, `--rates` of them, a
factor of 3 apart, around one that suits it; the best by its last loss on held-out text counts. Beside the losses stand
seconds of a step (the median, two threads unless OMP_NUM_THREADS says otherwise) and the bytes of its state for each
weight. Without --text it is the diary that comes with the package.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tallow.data.encode import EncodeConfig, encode
from tallow.data.prepare import PrepareConfig, prepare
from tallow.run import StageRun
from tallow.tokenizer.train import TokenizerConfig, train_tokenizer
from tallow.train.checkpoint import OPTIMIZER
from tallow.train.pretrain import PretrainConfig, pretrain

SHAPE = {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 352}
VOCABULARY, BATCH, TOKENS = 2048, 8, 128
MARKS = 4
FACTOR = 3.0
# the middle of the learning rates that are tried, and settings that fit a model 128 wide
CENTRES: Mapping[str, float] = {
    "adafactor": 3e-2,
    "adam_mini": 5e-3,
    "adamw": 5e-3,
    "adamw8bit": 5e-3,
    "galore": 1e-2,
    "lion": 1e-3,
    "muon": 5e-3,
    "schedule_free": 5e-3,
    "shampoo": 5e-3,
    "soap": 5e-3,
    "sophia": 1e-3,
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {"galore": {"rank": 32, "every": 50}}


class Trial(NamedTuple):
    """What one learning rate came to.

    Args:
        learning_rate: The largest.
        losses: On held-out text, by the tokens seen so far.
        step_s: Seconds of a step.
        state_bytes: For each weight.
    """

    learning_rate: float
    losses: dict[int, float]
    step_s: float
    state_bytes: float

    @property
    def last_loss(self) -> float:
        return list(self.losses.values())[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=["tallow:pepys"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", nargs="+", default=list(CENTRES), choices=list(CENTRES))
    parser.add_argument("--rates", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data = StageRun(Path(directory) / "data")
        prepare(PrepareConfig.model_validate({"sources": options.text, "split": "paragraphs"}), data)
        documents, tokenizer = data.directory / "documents", data.directory / "tokenizer"
        train_tokenizer(TokenizerConfig.model_validate({"documents": documents, "vocab_size": VOCABULARY}), data)
        encode(EncodeConfig(documents=documents, tokenizer=tokenizer), data)
        best: dict[str, Trial] = {}
        for name in options.only:
            rates = [CENTRES[name] * FACTOR ** (place - (options.rates - 1) / 2) for place in range(options.rates)]
            trials = [learn(data.directory, name, rate, options.steps) for rate in rates]
            best[name] = min(trials, key=lambda trial: trial.last_loss)
    print(markdown(best))


def learn(data: Path, name: str, rate: float, steps: int) -> Trial:
    """Train with one optimizer and learning rate."""
    with tempfile.TemporaryDirectory() as directory:
        run = StageRun(Path(directory))
        loop = {
            "optimizer": {"name": name, **SETTINGS.get(name, {})},
            "learning_rate": rate,
            "warmup": 0.1,
            "steps": steps,
            "batch_size": BATCH,
            "sequence_length": TOKENS,
            "precision": "fp32",
            "log_every": max(1, steps // 20),
            "validate_every": -(-steps // MARKS),
        }
        config = {"tokens": data / "tokens", "tokenizer": data / "tokenizer", "model": SHAPE, "loop": loop}
        result = pretrain(PretrainConfig.model_validate(config), run)
        [state] = run.directory.glob(f"checkpoints/*/{OPTIMIZER}")
        records = run.metrics()
        speeds = [record["tokens_per_s"] for record in records if "tokens_per_s" in record]
        return Trial(
            learning_rate=rate,
            losses={
                record["step"] * BATCH * TOKENS: record["validation_loss"]
                for record in records
                if "validation_loss" in record
            },
            step_s=BATCH * TOKENS / statistics.median(speeds),
            state_bytes=state.stat().st_size / result["parameters"],
        )


def markdown(best: Mapping[str, Trial]) -> str:
    """A table, the lowest last loss first."""
    order: Sequence[str] = sorted(best, key=lambda name: best[name].last_loss)
    marks = list(best[order[0]].losses)
    heads = ["optimizer", "learning rate", *(f"loss at {tokens:,}" for tokens in marks), "s/step", "bytes/weight"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in order:
        trial = best[name]
        losses = [f"{loss:.3f}" for loss in trial.losses.values()]
        cells = [name, f"{trial.learning_rate:.2g}", *losses, f"{trial.step_s:.3f}", f"{trial.state_bytes:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
