"""One dial for pretraining: a size sets shape, batch, learning rate and tokens, unless the recipe sets them itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import field_validator, model_validator

from tallow.console import say
from tallow.data.manifest import load_manifest
from tallow.errors import DataError, UsageError
from tallow.files import read_json, write_json
from tallow.models.skeletons import ModelConfig
from tallow.plan.budget import MAX_EPOCHS
from tallow.plan.hyper_laws import BATCH_TOKENS, LEARNING_RATE, PowerLaw
from tallow.plan.loss_law import LossLaw
from tallow.plan.scaling import DEFAULT_RATIO, limited_tokens, load_scaling_laws
from tallow.plan.shapes import count_parameters, shape_of_size
from tallow.plan.sizes import format_size, parse_size
from tallow.recipe import Section, replace_settings
from tallow.run import StageRun, hash_input
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.pretrain import PretrainConfig, pretrain

SHAPE_FIELDS = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")
NOTE = "size.json"


class SizedPretrainConfig(PretrainConfig):
    """Settings of the pretrain stage, with the dial.

    Args:
        size: Parameters of the model, such as `30m`. It sets what is left out of its shape, `token_budget`,
            `loop.batch_size` and `loop.learning_rate`, by `scaling` or, without it, by published laws.
        scaling: What `tallow plan scaling` has fitted; None: that of the run, if it has one.
    """

    size: str | int | None = None
    scaling: Path | None = None

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, size: str | int | None) -> str | int | None:
        if size is not None:
            parse_size(size)
        return size

    @model_validator(mode="after")
    def _size_is_free(self) -> Self:
        if self.size is not None and self.init is not None:
            raise UsageError("init and size are both set, but what init names has its size", "leave one of them out")
        return self


class Choice(Section):
    """What the dial has come to.

    Args:
        settings: The settings that were left open, by name from the section on.
        reason: Where they come from.
    """

    settings: dict[str, int | float]
    reason: str


def pretrain_at_size(config: SizedPretrainConfig, run: StageRun) -> dict[str, Any]:
    """Train a causal or a masked language model; the product is `model/`.

    What `size` has set is noted in the run's `recipe.yaml`, and in a file, so that a run that goes on after an
    interruption goes on with the same.

    Returns:
        What `pretrain` returns.

    Raises:
        TallowError: As `pretrain` does.
        UsageError: There is no model of this size.
        DataError: `scaling` was fitted to other tokens, or cannot be read.
    """
    if config.size is None:
        return pretrain(config, run)
    note = run.directory / NOTE
    if note.exists():
        choice = Choice.model_validate(read_json(note, "note"))
    else:
        choice = choose(config)
        write_json(note, choice.model_dump())
    run.decide_together(choice.settings, choice.reason)
    say(f"{choice.reason}: " + ", ".join(f"{name} {value:,.4g}" for name, value in choice.settings.items()))
    return pretrain(replace_settings(config, choice.settings), run)


def choose(config: SizedPretrainConfig) -> Choice:
    """What the dial sets, of a recipe that names a size."""
    assert config.size is not None
    laws = None
    if config.scaling is not None:
        laws = load_scaling_laws(config.scaling)
        if (laws.data, laws.objective) != (hash_input(config.tokens), config.objective):
            raise DataError(
                f"the laws in {config.scaling} were fitted to other tokens than those of {config.tokens}",
                "run tallow plan scaling again, or set pretrain.scaling",
            )
    if laws is None:
        settings = open_settings(config, LEARNING_RATE, BATCH_TOKENS)
        source = f"by published laws, {DEFAULT_RATIO} tokens a parameter and Step Law"
    else:
        settings = open_settings(config, laws.learning_rate, laws.batch_tokens, laws.loss.law)
        source = f"by {config.scaling}"
    return Choice(settings=settings, reason=f"size {config.size}, {source}")


def open_settings(
    config: SizedPretrainConfig, rates: PowerLaw, batches: PowerLaw, losses: LossLaw | None = None
) -> dict[str, int | float]:
    """The settings of a run of `config.size` that the recipe leaves open, by name from the section on.

    Args:
        rates: Of the learning rate.
        batches: Of the tokens of a batch.
        losses: What says how many tokens are best; None: `DEFAULT_RATIO`.
    """
    assert config.size is not None
    size, part = parse_size(config.size), "encoder" if config.objective == "masked" else "model"
    given = config.encoder if config.objective == "masked" else config.model
    keep = frozenset(given.model_fields_set if given is not None else ()) & frozenset(SHAPE_FIELDS)
    vocabulary = config.shape.vocab_size or Tokenizer.load(config.tokenizer).vocab_size
    base: ModelConfig = config.shape.model_copy(update={"vocab_size": vocabulary})
    shape = shape_of_size(size, base, keep)
    parameters = count_parameters(shape)

    unique = load_manifest(config.tokens).splits["train"].tokens
    wanted = losses.best_tokens(parameters.total) if losses else DEFAULT_RATIO * parameters.total
    tokens = config.token_budget or limited_tokens(wanted, parameters.total, unique)
    if config.token_budget is None and config.loop.steps is None and tokens >= MAX_EPOCHS * unique:
        say(
            f"{format_size(parameters.total)} parameters want {format_size(wanted)} tokens; "
            f"there are {MAX_EPOCHS} epochs of {format_size(unique)}"
        )
    length, explicit = config.loop.sequence_length, config.loop.model_fields_set
    batch = max(1, round(batches.value(parameters.inner, tokens) / length))
    if "batch_size" in explicit:
        batch = config.loop.batch_size
    if config.loop.steps is not None:
        tokens = config.loop.steps * batch * length

    settings: dict[str, int | float] = {
        f"{part}.{name}": value
        for name in SHAPE_FIELDS
        if name not in keep and (value := getattr(shape, name, None)) is not None
    }
    if config.token_budget is None and config.loop.steps is None:
        settings["token_budget"] = tokens
    if "batch_size" not in explicit:
        settings["loop.batch_size"] = batch
    if "learning_rate" not in explicit:
        settings["loop.learning_rate"] = float(f"{rates.value(parameters.inner, tokens):.3g}")
    return settings
