"""The pretrain stage: a decoder learns to continue text, or an encoder to fill in masked tokens, from random weights or
from a model's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt, ValidationError, model_validator

from tallow.console import say
from tallow.data.batch import Packed
from tallow.data.dataset import TokenDataset
from tallow.data.manifest import MANIFEST, load_manifest
from tallow.data.mixing.curriculum import CurriculumConfig
from tallow.data.mixing.mixture import DomainShare, MixtureConfig, sources_of
from tallow.data.mixing.plan import plan_order
from tallow.data.packing import Packing
from tallow.errors import DataError, UsageError
from tallow.files import hash_file, read_json, write_json
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.families import family_of
from tallow.models.formats import load_encoder, load_model, save_model
from tallow.models.growth import Growth, grow, grown_config
from tallow.models.initialization import AnyInitialization, Mup
from tallow.models.mup import base_config
from tallow.models.skeletons import Model, ModelConfig, learning_rate_factors, new_model, with_weights
from tallow.objectives import OBJECTIVES
from tallow.parallel import Position, join_world
from tallow.recipe import Section
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.batch_plan import plan_batches
from tallow.train.config import LoopConfig
from tallow.train.loop import train
from tallow.train.memory import check_memory
from tallow.train.placing import lay_out
from tallow.train.trainable import refuse_quantized
from tallow.train.validation import HeldOut, bytes_of_tokens

SHOWN_DOMAINS = 12
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PretrainConfig(Section):
    """Settings of the pretrain stage.

    Args:
        tokens: What the encode stage has written.
        tokenizer: The tokenizer of these tokens.
        init: A model to start from; None: random weights.
        grow: What the model of `init` grows to before it is trained further.
        objective: `causal` trains a decoder: each token predicts the next one. `masked` trains an encoder: some tokens
            are hidden and predicted from both sides; the tokenizer needs a mask token (`tokenizer.mask_token`).
        model: Shape of a new decoder, by default a small Llama; its vocabulary and control tokens are the tokenizer's
            where they are left out.
        encoder: Shape of a new encoder, by default a small BERT; likewise.
        initialization: The random weights of a new model: a name, or a name with settings; None: `depth_scaled` for
            decoders, `plain` for encoders.
        packing: How documents come to lie in rows. `split`: one after another, cut where a row is full, attention
            within documents; `concatenate`: likewise, attention across documents; `best_fit`: no document is cut that
            fits into a row. Held-out text is scored as with `split`.
        mixture: How much of the run comes from which sources; None: rows of all of them, each as often as the others.
            No row has documents of two domains.
        learned_mixture: What the stage mixture has written; its weights take the place of those of `mixture`.
        curriculum: Which rows come first; None: all in random order.
        token_budget: Tokens to train on, if `loop.steps` is not set; None: all of the training split, once.
        validation_tokens: Held-out tokens that a validation scores.
        save_dtype: How the model is saved. `fp32` is what was trained, so that tuning goes on from just that;
            `bf16` is half as large.
        loop: Settings of the training loop.
    """

    incidental = frozenset(("validation_tokens",))
    finishing = frozenset(("save_dtype",))

    tokens: Path
    tokenizer: Path
    init: Path | None = None
    grow: Growth | None = None
    objective: Literal["causal", "masked"] = "causal"
    model: DecoderConfig | None = None
    encoder: EncoderConfig | None = None
    initialization: AnyInitialization | None = None
    packing: Packing = "split"
    mixture: MixtureConfig | None = None
    learned_mixture: Path | None = None
    curriculum: CurriculumConfig | None = None
    token_budget: PositiveInt | None = None
    validation_tokens: PositiveInt = 65536
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        other, wanted = ("model", "encoder") if self.objective == "masked" else ("encoder", "model")
        if getattr(self, other) is not None:
            raise UsageError(
                f"pretrain.objective {self.objective} trains no model that pretrain.{other} could describe",
                f"name its shape in pretrain.{wanted}, or choose another objective",
            )
        if self.grow is not None and self.init is None:
            raise UsageError("grow is set, but there is no model that could grow", "name it in pretrain.init")
        if self.init is None:
            _check_length(self.shape, self.loop)
            family_of(self.shape).hub_config(self.shape)  # what could not be saved in the end is refused here
            self._check_initialization()
        elif getattr(self, wanted) is not None:
            raise UsageError(
                f"init and {wanted} are both set, but what init names has its shape", "leave one of them out"
            )
        elif self.initialization is not None:
            raise UsageError(
                "init and initialization are both set, but what init names has its weights", "leave one of them out"
            )
        return self

    def _check_initialization(self) -> None:
        if isinstance(self.initialization, Mup):
            base_config(self.shape, self.initialization.base)
            if not self.loop.optimizer.moves_entries:
                raise UsageError(
                    f"mup's learning rates are those of Adam and its kin, not of {self.loop.optimizer.name}",
                    "choose adamw, adamw8bit, adam_mini, lion or schedule_free",
                )

    @property
    def shape(self) -> ModelConfig:
        """The shape of a new model."""
        if self.objective == "masked":
            return self.encoder or EncoderConfig()
        return self.model or DecoderConfig()


def pretrain(config: PretrainConfig, run: StageRun) -> dict[str, Any]:
    """Train a causal or a masked language model; the product is `model/`.

    Under `torchrun` all processes take part; they need to see the same files.

    Returns:
        What `train` returns, with `parameters`, `validation_loss` and, of a causal model, `validation_bits_per_byte`.

    Raises:
        UsageError: Settings contradict each other or the model.
        DataError: An input is missing or broken, or inputs do not belong together.
        CapacityError: Memory or disk do not suffice.
        Interrupted: As `train` does.
    """
    tokenizer, manifest = Tokenizer.load(config.tokenizer), load_manifest(config.tokens)
    if manifest.tokenizer != tokenizer.fingerprint:
        raise DataError(
            f"the tokens in {config.tokens} were not made by the tokenizer in {config.tokenizer}",
            "run the encode stage with this tokenizer",
        )
    objective = OBJECTIVES[config.objective](tokenizer, config.loop.seed)
    model = _make(config, tokenizer) if config.init is None else _load(config, tokenizer)
    mixture = _mixture(config)
    domains = mixture and sources_of(mixture, [source.name for source in manifest.sources])
    dataset = TokenDataset(
        config.tokens, "train", config.loop.sequence_length, config.loop.seed, config.packing, domains
    )
    if config.packing == "best_fit":
        share = dataset.num_padding / (dataset.num_sequences * (config.loop.sequence_length + 1))
        say(f"best fit: {dataset.num_sequences:,} rows, of which {share:.2%} are padding")
    tokens = config.token_budget or dataset.num_tokens
    plan = plan_batches(config.loop, rows=math.ceil(tokens / dataset.tokens_per_sequence))
    loop = config.loop.model_copy(
        update={
            "steps": config.loop.steps or plan.steps,
            "learning_rate_factors": _rate_factors(config, model),
        }
    )
    run_rows = plan.rows((loop.steps or plan.steps) - 1).stop
    order, shares = plan_order(dataset, run_rows, mixture, config.curriculum)
    num_parameters = model.num_parameters()
    with join_world() as world:
        layout = lay_out(model, loop, world)
        reader = layout.reader
        plan.check_shares(reader.size)

        def batches(step: int) -> list[Packed]:
            return gather_rows(dataset, reader.share(order.numbers(plan.rows(step))), loop)

        if shares and world.is_main:
            _say_shares(shares)
            values = {name: share.model_dump(mode="json") for name, share in shares.items()}
            write_json(run.directory / "mixture.json", values)
        result = train(
            layout,
            objective,
            batches,
            loop,
            run,
            validate=_held_out(config, tokenizer, reader),
            identity={
                "model": model.config.model_dump(mode="json"),
                "init": str(config.init),
                "grow": config.grow and config.grow.model_dump(mode="json"),
                "initialization": config.initialization and config.initialization.model_dump(mode="json"),
                "tokens": hash_file(config.tokens / MANIFEST),
                **_order_settings(mixture, config.curriculum),
            },
        )
        weights = layout.gather()
        if world.is_main:
            product = with_weights(model.config, weights).to(DTYPES[config.save_dtype])
            save_model(product, tokenizer, run.directory / "model")
    return {"parameters": num_parameters, **result}


def _mixture(config: PretrainConfig) -> MixtureConfig | None:
    """The mixture that is set, with the weights that were learned, if any were."""
    if config.learned_mixture is None:
        return config.mixture
    try:
        learned = MixtureConfig.model_validate(read_json(config.learned_mixture, "learned mixture"))
    except ValidationError as error:
        raise DataError(f"{config.learned_mixture} is no mixture", "run the stage mixture again") from error
    if config.mixture is None:
        return learned
    return learned.model_copy(update={"max_epochs": config.mixture.max_epochs})


def _order_settings(mixture: MixtureConfig | None, curriculum: CurriculumConfig | None) -> dict[str, Any]:
    """What the order of rows depends on, where it is not the usual one."""
    parts = {"mixture": mixture, "curriculum": curriculum}
    return {name: part.result_settings() for name, part in parts.items() if part is not None}


def _say_shares(shares: Mapping[str, DomainShare]) -> None:
    """Tell what the run takes from where, the largest shares first, and what it repeats."""
    by_share = sorted(shares.items(), key=lambda item: -item[1].share)
    for name, each in by_share[:SHOWN_DOMAINS]:
        limited = (
            f" (not {each.weight:.2%}, which would repeat it too often)" if each.share < each.weight * 0.999 else ""
        )
        repeated = ", so what it has is repeated" if each.epochs > 1 else ""
        say(f"{name}: {each.share:.2%} of the run{limited}, {each.epochs:.2f} epochs{repeated}")
    if len(by_share) > SHOWN_DOMAINS:
        say(f"and {len(by_share) - SHOWN_DOMAINS:,} more domains, which mixture.json has")


def _make(config: PretrainConfig, tokenizer: Tokenizer) -> Model:
    """A new model with random weights."""
    shape = complete_shape(config.shape, tokenizer)
    _check(shape, tokenizer, config.loop)
    return new_model(shape, config.loop.seed, config.initialization)


def _rate_factors(config: PretrainConfig, model: Model) -> dict[str, float]:
    """Factors on learning rates: those that the recipe names, times those of the initialization."""
    own, more = config.loop.learning_rate_factors, learning_rate_factors(model.config, config.initialization)
    return {pattern: own.get(pattern, 1.0) * more.get(pattern, 1.0) for pattern in {**own, **more}}


def complete_shape(shape: ModelConfig, tokenizer: Tokenizer) -> ModelConfig:
    """The shape with what it leaves to the tokenizer."""
    filled = {
        "vocab_size": shape.vocab_size or tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id if shape.pad_id is None else shape.pad_id,
    }
    if isinstance(shape, DecoderConfig):
        filled |= {
            "bos_id": tokenizer.bos_id if shape.bos_id is None else shape.bos_id,
            "eos_ids": shape.eos_ids or (() if tokenizer.eos_id is None else (tokenizer.eos_id,)),
        }
    return shape.model_copy(update=filled)


def _load(config: PretrainConfig, tokenizer: Tokenizer) -> Model:
    """The model to start from, grown."""
    assert config.init is not None
    model = (load_encoder if config.objective == "masked" else load_model)(config.init, dtype=torch.float32)
    if isinstance(model, Decoder):
        refuse_quantized(model, config.init)
    _check(grown_config(model.config, config.grow) if config.grow else model.config, tokenizer, config.loop)
    return grow(model, config.grow, config.loop.seed) if config.grow else model


def _check(shape: ModelConfig, tokenizer: Tokenizer, loop: LoopConfig) -> None:
    if shape.vocab_size < tokenizer.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model's vocabulary {shape.vocab_size:,}",
            "name the tokenizer of the model, or leave model.vocab_size out",
        )
    _check_length(shape, loop)
    check_memory(shape, loop)


def _check_length(shape: ModelConfig, loop: LoopConfig) -> None:
    if loop.sequence_length > shape.max_positions:
        raise UsageError(
            f"sequences of {loop.sequence_length:,} tokens do not fit a context of {shape.max_positions:,}",
            "lower pretrain.loop.sequence_length or raise pretrain.model.max_positions",
        )


def gather_rows(dataset: TokenDataset, rows: Sequence[int], loop: LoopConfig) -> list[Packed]:
    """Windows as micro-batches."""
    size = loop.micro_batch_size or len(rows)
    return [dataset.gather(rows[start : start + size]) for start in range(0, len(rows), size)]


def _held_out(config: PretrainConfig, tokenizer: Tokenizer, reader: Position) -> HeldOut | None:
    """Windows from all over the validation split, always the same; None if it has no text to predict."""
    if load_manifest(config.tokens).splits["validation"].tokens < 2:
        say("there is no held-out text, so there is no validation")
        return None
    dataset = TokenDataset(config.tokens, "validation", config.loop.sequence_length, seed=0)
    wanted = math.ceil(config.validation_tokens / config.loop.sequence_length)
    rows = reader.share(dataset.rows(0, min(wanted, dataset.num_sequences)))
    # bits per byte are those of a text; tokens that are guessed from their neighbours make none
    bytes_V = bytes_of_tokens(tokenizer) if config.objective == "causal" else None
    # likewise the same chances for every seed, so that runs can be compared
    objective = OBJECTIVES[config.objective](tokenizer, 0)
    return HeldOut(objective, gather_rows(dataset, rows, config.loop), bytes_V)
