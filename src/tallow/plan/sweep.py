"""The small runs that scaling laws are fitted to: planned once from a measured speed, and gone on with where they
stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tallow.console import say
from tallow.data.manifest import load_manifest
from tallow.errors import DataError, TallowError, UsageError
from tallow.files import hash_value, read_json, write_json
from tallow.plan.budget import fit_speed
from tallow.plan.dial import SHAPE_FIELDS, SizedPretrainConfig, open_settings
from tallow.plan.hyper_laws import BATCH_TOKENS, LEARNING_RATE, PowerLaw
from tallow.plan.ladder import Rung, plan_ladder, require_text, tuned
from tallow.plan.runs import SmallRun, read_run
from tallow.plan.scaling import DEFAULT_RATIO, fit_learning_rate
from tallow.plan.shapes import smallest_size
from tallow.plan.sizes import format_size
from tallow.recipe import load_recipe, replace_settings
from tallow.run import LINEAGE, RECIPE, StageRun, hash_input
from tallow.tokenizer.tokenizer import Tokenizer

LADDER = "ladder.json"
PROBE_STEPS = 8
PROBE_SPAN = 8
RATE_FACTOR = 2.0
MAX_TUNING_RUNS = 6
NEVER = 10**9
# what the dial or the ladder sets
OPEN = {"model": SHAPE_FIELDS, "encoder": SHAPE_FIELDS, "loop": ("batch_size", "learning_rate", "steps", "batch_ramp")}

Do = Callable[[SizedPretrainConfig, Path], Mapping[str, Any]]
"""Does the stage pretrain in a directory, or nothing if it is done there; its result."""


class Ladder(NamedTuple):
    """What is to be run: precision and runs, in order."""

    precision: str
    rungs: list[Rung]


class Sweep:
    """A ladder of small runs in a directory.

    Args:
        config: The recipe's settings of the stage; those of shape, batch, learning rate and length do not count.
        directory: Holds `ladder.json` and a directory for each run.
        do: Does a run.

    Raises:
        DataError: The tokens are missing, or there is no held-out text to score.
    """

    def __init__(self, config: SizedPretrainConfig, directory: Path, do: Do) -> None:
        splits = load_manifest(config.tokens).splits
        if splits["validation"].tokens < 2:
            raise DataError(f"{config.tokens} has no held-out text", "raise prepare.validation_fraction")
        self.directory, self.do = directory, do
        self.base = _opened(config)
        self.unique = splits["train"].tokens
        vocabulary = config.shape.vocab_size or Tokenizer.load(config.tokenizer).vocab_size
        self.smallest = smallest_size(self.base.shape.model_copy(update={"vocab_size": vocabulary}))

    def run(self, seconds: float) -> list[SmallRun]:
        """Do what is left of a ladder that takes so long; all finished runs of it and of earlier ones.

        Raises:
            UsageError: Time or text are too little.
            Interrupted: What is done is kept.
        """
        begun = time.monotonic()
        ladder = self._plan(seconds)
        chosen = tuned(ladder.rungs)
        for rung in chosen:
            self._tune(rung, ladder.precision)
        law = fit_learning_rate(self.finished())
        say(f"learning rate: {law.source}")
        for number, rung in enumerate(ladder.rungs, start=1):
            spent = f"{(time.monotonic() - begun) / 60:.1f} of {seconds / 60:g} minutes spent"
            say(f"small run {number} of {len(ladder.rungs)}: {_describe(rung)} ({spent})")
            if rung not in chosen:
                self._do(rung, ladder.precision, law)
        return self.finished()

    def finished(self) -> list[SmallRun]:
        """The finished runs in the directory that were done with these settings and tokens."""
        wanted = _settings(self.base), hash_input(self.base.tokens)
        found = []
        for path in sorted(self.directory.glob(f"runs/*/{LINEAGE}")):
            values = load_recipe(path.parent / RECIPE)["pretrain"]
            run = read_run(path.parent)
            if (_settings(SizedPretrainConfig.model_validate(values)), run.data) == wanted:
                found.append(run)
        return found

    def _plan(self, seconds: float) -> Ladder:
        """The ladder that was begun for this time, or a new one after measuring the speed."""
        path = self.directory / LADDER
        asked = hash_value([seconds, _settings(self.base), hash_input(self.base.tokens)])
        noted = read_json(path, "ladder") if path.exists() else {}
        if noted.get("asked") != asked:
            ladder = self._measured(seconds)
            noted = {"asked": asked, "precision": ladder.precision, "rungs": ladder.rungs}
            write_json(path, noted)
        return Ladder(noted["precision"], [Rung(*rung) for rung in noted["rungs"]])

    def _measured(self, seconds: float) -> Ladder:
        """A ladder for the speed of this machine, and the precision that is faster at the largest size."""
        require_text(self.smallest, self.unique)
        sizes = [self.smallest, self.smallest * PROBE_SPAN]
        parameters, speeds, precision = [], [], "fp32"
        planned: list[Rung] = []
        while sizes:
            size = sizes.pop(0)
            count, tokens_per_s, precision = self._probe(size)
            parameters.append(count)
            speeds.append(tokens_per_s)
            if len(speeds) > 1 and not sizes:
                speed = fit_speed(parameters, speeds)
                planned = plan_ladder(seconds, speed, self.smallest, self.unique)
                largest = max(rung.size for rung in planned)
                if largest > 2 * max(parameters):  # far beyond what was measured
                    sizes.append(largest)
        say(f"{len(planned)} small runs up to {_describe(planned[-1])}; {speeds[-1]:,.0f} tokens/s, {precision}")
        return Ladder(precision, planned)

    def _probe(self, size: int) -> tuple[int, float, str]:
        """Train for a few steps; parameters, tokens a second, and the precision that was taken.

        The fastest step counts: the first is slow, and other work only slows them.
        """
        config = self._config(Rung(size, DEFAULT_RATIO * size), LEARNING_RATE)
        loop = config.loop.model_copy(update={"steps": PROBE_STEPS, "log_every": 1})
        values = {"token_budget": None, "loop": loop, "validation_tokens": loop.sequence_length}
        directory = self.directory / "speed" / format_size(size)
        done = self.do(config.model_copy(update=values), directory)
        speeds = [record["tokens_per_s"] for record in StageRun(directory).metrics() if "tokens_per_s" in record]
        return done["parameters"], max(speeds), load_recipe(directory / RECIPE)["pretrain"]["loop"]["precision"]

    def _tune(self, rung: Rung, precision: str) -> None:
        """Train with learning rates around the published law's until one is better than its neighbours."""
        middle = self._config(rung, LEARNING_RATE).loop.learning_rate
        losses: dict[int, float] = {}
        tries = [0, -1, 1]
        while tries and len(losses) < MAX_TUNING_RUNS:
            place = tries.pop(0)
            rate = float(f"{middle * RATE_FACTOR**place:.3g}")
            say(f"learning rate {rate:g} for {_describe(rung)}")
            losses[place] = self._do(rung, precision, LEARNING_RATE, rate)
            best = min(losses, key=lambda place: losses[place])
            if not tries:
                tries = [place for place in (best - 1, best + 1) if place not in losses]

    def _do(self, rung: Rung, precision: str, law: PowerLaw, rate: float | None = None) -> float:
        """One run; its held-out loss, infinite if it diverged."""
        config = self._config(rung, law)
        loop = config.loop.model_copy(
            update={"precision": precision, "learning_rate": rate or config.loop.learning_rate}
        )
        name = f"{format_size(rung.size)}-{format_size(rung.tokens)}-{loop.learning_rate:g}"
        try:
            return self.do(config.model_copy(update={"loop": loop}), self.directory / "runs" / name)["validation_loss"]
        except TallowError as error:
            if type(error) is not TallowError:  # those that are not of a kind tell of training that went wrong
                raise
            say(error.message)
            return float("inf")

    def _config(self, rung: Rung, law: PowerLaw) -> SizedPretrainConfig:
        """The settings of a run, with nothing left open but the precision."""
        asked = self.base.model_copy(update={"size": rung.size, "token_budget": rung.tokens})
        settings = open_settings(asked, law, BATCH_TOKENS) | {
            "size": None,
            "loop.validate_every": NEVER,
            "loop.keep_checkpoints": 1,
        }
        return replace_settings(asked, settings)


def _opened(config: SizedPretrainConfig) -> SizedPretrainConfig:
    """The settings without those that differ between the runs of a ladder.

    Raises:
        UsageError: The recipe goes on from a model.
    """
    if config.init is not None:
        raise UsageError("pretrain.init is set, but a law of scale is about runs from random weights", "leave it out")
    values = config.model_dump(mode="json", exclude_unset=True, exclude={"size", "scaling", "token_budget"})
    for part, fields in OPEN.items():
        if values.get(part) is not None:
            values[part] = {name: value for name, value in values[part].items() if name not in fields}
    return SizedPretrainConfig.model_validate(values)


def _settings(config: SizedPretrainConfig) -> dict[str, Any]:
    """What all runs of a ladder have in common, apart from their tokens, which are known by content."""
    opened = _opened(config)
    values = opened.result_settings() | {"shape": opened.shape.model_dump(mode="json")}
    for name in ("tokens", "tokenizer", "model", "encoder", "save_dtype"):
        del values[name]
    del values["loop"]["precision"]
    return values


def _describe(rung: Rung) -> str:
    return f"{format_size(rung.size)} parameters, {format_size(rung.tokens)} tokens"
