"""Weights of domains, learned by small models (DoReMi, arXiv 2305.10429).

A reference model is trained on the domains as they are. A second one, the proxy, goes on with weights that rise where
it is still worse than the reference: in every round the weight of a domain is multiplied by the exponential of its
excess loss, and rows of the next round are drawn with the new weights. The mean over all rounds is the answer.

The paper changes weights at each step, by the excess of single tokens, and weighs losses rather than drawing rows. Here
rows of each domain that are always the same are scored at the end of a round, and an excess below zero counts as none
for the domain as a whole: so a run can be interrupted anywhere, goes on exactly, and has any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from tallow.console import is_main_process, say
from tallow.data.batch import Packed
from tallow.data.dataset import TokenDataset
from tallow.data.manifest import MANIFEST, load_manifest
from tallow.data.mixing.mixture import MixtureConfig, domain_weights, sources_of
from tallow.data.mixing.order import MixedOrder
from tallow.data.permutation import Permutation
from tallow.errors import DataError, UsageError, writing
from tallow.files import hash_file, read_json, write_json
from tallow.models.config import DecoderConfig
from tallow.models.skeletons import ModelConfig, new_model
from tallow.objectives.causal import causal
from tallow.parallel import Layout, Position, World, join_world
from tallow.recipe import Section
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.config import LoopConfig
from tallow.train.loop import train
from tallow.train.placing import lay_out
from tallow.train.pretrain import complete_shape, gather_rows
from tallow.train.validation import HeldOut

LOSSES, WEIGHTS, EXCESS = "losses.json", "weights.json", "excess.json"
PROBES = 2**62
"""Names the order of the rows that are scored."""


class LearnedMixtureConfig(Section):
    """Settings of the mixture stage: how weights of domains are learned.

    Args:
        tokens: What the encode stage has written.
        tokenizer: The tokenizer of these tokens.
        model: Shape of both models.
        mixture: The domains, and the weights to begin with.
        round_steps: Steps of the proxy between changes of the weights.
        step_size: Factor on excess losses, in nats a token.
        smoothing: Share of the weights that is the same for all domains.
        probe_rows: Rows of each domain that are scored.
        loop: Settings of the training of both; `steps` must be set.
    """

    tokens: Path | None = None
    tokenizer: Path | None = None
    model: DecoderConfig = DecoderConfig()
    mixture: MixtureConfig = MixtureConfig()
    round_steps: PositiveInt = 50
    step_size: PositiveFloat = 1.0
    smoothing: float = Field(default=1e-3, gt=0, lt=1)
    probe_rows: PositiveInt = 64
    loop: LoopConfig = LoopConfig()


def learn_weights(config: LearnedMixtureConfig, run: StageRun) -> dict[str, Any]:
    """Learn weights of domains by small models (DoReMi); `mixture.json` has them as `pretrain.mixture` takes them.

    Under `torchrun` all processes take part.

    Returns:
        `weights` and `excess`, the last excess losses, by domain.

    Raises:
        UsageError: Settings contradict each other or the data.
        DataError: An input is missing or broken, or inputs do not belong together.
        Interrupted: As `train` does.
    """
    if config.tokens is None or config.tokenizer is None:
        missing = "tokens" if config.tokens is None else "tokenizer"
        raise UsageError(
            f"setting mixture.{missing} is required", f"name the product of the stage that makes {missing}"
        )
    tokenizer, manifest = Tokenizer.load(config.tokenizer), load_manifest(config.tokens)
    if manifest.tokenizer != tokenizer.fingerprint:
        raise DataError(
            f"the tokens in {config.tokens} were not made by the tokenizer in {config.tokenizer}",
            "run the encode stage with this tokenizer",
        )
    loop = config.loop
    if loop.steps is None or loop.batch_ramp is not None:
        raise UsageError("weights are learned in a set number of steps of one size", "set loop.steps, no batch_ramp")
    domains = sources_of(config.mixture, [source.name for source in manifest.sources])
    dataset = TokenDataset(config.tokens, "train", loop.sequence_length, loop.seed, "split", domains)
    asked = domain_weights(config.mixture, {name: stream.num_tokens for name, stream in dataset.streams.items()})
    if out := [name for name, stream in dataset.streams.items() if not stream.num_rows or not asked[name]]:
        raise UsageError(
            f"domain {out[0]} has no tokens or no weight to begin with", "learn the weights of tokens without it"
        )
    shape = complete_shape(config.model, tokenizer)
    begin = list(asked.values())
    identity = {"tokens": hash_file(config.tokens / MANIFEST), "mixture": config.mixture.result_settings()}
    with join_world() as world:
        reference = _Learner(config, shape, dataset, world, StageRun(run.directory / "reference", resume=run.resume))
        losses = _Kept(reference.run, LOSSES, [])
        reference.learn(lambda _: begin, lambda _, found: losses.put(0, found), {**identity, "of": "reference"})
        proxy = _Learner(config, shape, dataset, world, StageRun(run.directory / "proxy", resume=run.resume))
        weights, excess = _Kept(proxy.run, WEIGHTS, [begin]), _Kept(proxy.run, EXCESS, [])

        def after(ended: int, found: list[float]) -> None:
            above = [max(0.0, own - other) for own, other in zip(found, losses.values[0], strict=True)]
            excess.put(ended - 1, above)
            weights.put(ended, reweigh(weights.values[ended - 1], above, config.step_size, config.smoothing))

        settings = config.model_dump(mode="json", include={"round_steps", "step_size", "smoothing", "probe_rows"})
        proxy.learn(lambda number: weights.values[number], after, {**identity, **settings, "of": "proxy"})
        mean = np.mean(weights.values[1:], axis=0).tolist()
        result = {name: round(weight, 6) for name, weight in zip(domains, mean, strict=True)}
        if world.is_main:
            learned = config.mixture.model_copy(update={"weights": result, "temperature": 1.0})
            write_json(run.directory / "mixture.json", learned.model_dump(mode="json"))
            for name, before in asked.items():
                say(f"{name}: weight {result[name]:.2%}, at first {before:.2%}")
    return {"weights": result, "excess": dict(zip(domains, excess.values[-1], strict=True))}


def reweigh(weights: Sequence[float], excess: Sequence[float], step_size: float, smoothing: float) -> list[float]:
    """Weights after a round in which domains had these excess losses (section 2 of the paper, step 2)."""
    raised = np.array(weights) * np.exp(step_size * np.array(excess))
    return ((1 - smoothing) * raised / raised.sum() + smoothing / len(weights)).tolist()


class _Kept:
    """Numbers of each round, in a file of a run, so that an interrupted one goes on with them."""

    def __init__(self, run: StageRun, name: str, values: list[list[float]]) -> None:
        self.path, self.values = run.directory / name, values
        if run.resume and self.path.is_file():
            self.values = read_json(self.path, "rounds")["rounds"]

    def put(self, number: int, found: list[float]) -> None:
        """Those of a round, which may have been there; later ones are forgotten."""
        self.values = [*self.values[:number], found]
        if is_main_process():
            write_json(self.path, {"rounds": self.values})


class _Learner:
    """Trains a new model, round by round."""

    def __init__(
        self, config: LearnedMixtureConfig, shape: ModelConfig, dataset: TokenDataset, world: World, run: StageRun
    ) -> None:
        self.config, self.shape, self.dataset, self.world, self.run = config, shape, dataset, world, run
        with writing(run.directory):
            run.directory.mkdir(parents=True, exist_ok=True)

    def learn(
        self,
        weights: Callable[[int], Sequence[float]],
        after: Callable[[int, list[float]], None],
        identity: Mapping[str, Any],
    ) -> None:
        """Train.

        Args:
            weights: Of domains, in a round that is named by its number.
            after: Is told after a round how many have ended, and the losses of domains.
            identity: As of `train`.
        """
        config = self.config
        loop = config.loop.model_copy(update={"validate_every": config.round_steps})
        layout = lay_out(new_model(self.shape, loop.seed, None), loop, self.world)
        reader, done = layout.reader, 0
        probes = [HeldOut(causal, self._gather(reader, rows)) for rows in self._probe_rows()]
        rows = [stream.num_rows for stream in self.dataset.streams.values()]

        def batches(step: int) -> list[Packed]:
            nonlocal done
            done = step + 1
            number, within = divmod(step, config.round_steps)
            order = MixedOrder(rows, weights(number), loop.seed + number)
            return self._gather(reader, order.numbers(range(within * loop.batch_size, (within + 1) * loop.batch_size)))

        def validate(layout: Layout) -> dict[str, float]:
            losses = [probe(layout)["validation_loss"] for probe in probes]
            after(-(-done // config.round_steps), losses)
            return {f"loss {name}": loss for name, loss in zip(self.dataset.streams, losses, strict=True)}

        train(layout, causal, batches, loop, self.run, validate=validate, identity=identity)

    def _gather(self, reader: Position, rows: Sequence[int]) -> list[Packed]:
        return gather_rows(self.dataset, reader.share(rows), self.config.loop)

    def _probe_rows(self) -> list[list[int]]:
        """Some rows of each domain, always the same."""
        found, base = list[list[int]](), 0
        for stream in self.dataset.streams.values():
            count = min(self.config.probe_rows, stream.num_rows)
            order = Permutation(stream.num_rows, self.config.loop.seed, PROBES)
            found.append((base + order(np.arange(count))).tolist())
            base += stream.num_rows
        return found
