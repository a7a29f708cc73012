"""The pretrain stage: a decoder learns to continue text, from random weights or from a model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import PositiveInt, model_validator

from tallow.console import say
from tallow.data.batch import Packed
from tallow.data.dataset import TokenDataset
from tallow.data.manifest import MANIFEST, load_manifest
from tallow.errors import DataError, UsageError
from tallow.files import hash_file
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.families import find_family
from tallow.models.formats import load_model, save_model
from tallow.objectives.causal import causal
from tallow.parallel import World, join_world
from tallow.recipe import Section
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.config import LoopConfig
from tallow.train.loop import train
from tallow.train.memory import check_memory
from tallow.train.trainable import refuse_quantized
from tallow.train.validation import HeldOut, bytes_of_tokens

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PretrainConfig(Section):
    """Settings of the pretrain stage.

    Args:
        tokens: What the encode stage has written.
        tokenizer: The tokenizer of these tokens.
        init: A model to start from; None: random weights.
        model: Shape of a new model, by default a small Llama; its vocabulary and control tokens are the tokenizer's
            where they are left out.
        token_budget: Tokens to train on, if `loop.steps` is not set; None: all of the training split, once.
        validation_tokens: Held-out tokens that a validation scores.
        save_dtype: How the model is saved. `fp32` is what was trained, so that tuning goes on from just that;
            `bf16` is half as large.
        loop: Settings of the training loop.
    """

    tokens: Path
    tokenizer: Path
    init: Path | None = None
    model: DecoderConfig | None = None
    token_budget: PositiveInt | None = None
    validation_tokens: PositiveInt = 65536
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    loop: LoopConfig = LoopConfig()

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        if self.init is None:
            shape = self.model or DecoderConfig()
            _check_length(shape, self.loop)
            find_family(shape.family).hub_config(shape)  # what could not be saved in the end is refused here
        elif self.model is not None:
            raise UsageError("init and model are both set, but what init names has its shape", "leave one of them out")
        return self


def pretrain(config: PretrainConfig, run: StageRun) -> dict[str, Any]:
    """Train a causal language model; the product is `model/`.

    Under `torchrun` all processes take part; they need to see the same files.

    Returns:
        What `train` returns, with `parameters`, `validation_loss` and `validation_bits_per_byte`.

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
    model = _make(config, tokenizer) if config.init is None else _load(config, tokenizer)
    dataset = TokenDataset(config.tokens, "train", config.loop.sequence_length, config.loop.seed)
    loop = config.loop.model_copy(update={"steps": _steps(config, dataset)})
    with join_world() as world:
        if loop.batch_size < world.size:
            raise UsageError(
                f"{world.size} processes cannot share batches of {loop.batch_size}", "raise loop.batch_size"
            )

        def batches(step: int) -> list[Packed]:
            return _gather(dataset, world.share(dataset.rows(step, loop.batch_size)), loop)

        result = train(
            model,
            causal,
            batches,
            loop,
            run,
            validate=_held_out(config, model, tokenizer, world),
            identity={
                "model": model.config.model_dump(mode="json"),
                "init": str(config.init),
                "tokens": hash_file(config.tokens / MANIFEST),
            },
            world=world,
        )
        if world.is_main:
            save_model(model.to(DTYPES[config.save_dtype]), tokenizer, run.directory / "model")
    return {"parameters": model.num_parameters(), **result}


def _make(config: PretrainConfig, tokenizer: Tokenizer) -> Decoder:
    """A new model with random weights."""
    shape = config.model or DecoderConfig()
    filled = {
        "vocab_size": shape.vocab_size or tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id if shape.bos_id is None else shape.bos_id,
        "eos_ids": shape.eos_ids or (() if tokenizer.eos_id is None else (tokenizer.eos_id,)),
        "pad_id": tokenizer.pad_id if shape.pad_id is None else shape.pad_id,
    }
    shape = shape.model_copy(update=filled)
    _check(shape, tokenizer, config.loop)
    model = Decoder(shape)
    initialize(model, config.loop.seed)
    return model


def _load(config: PretrainConfig, tokenizer: Tokenizer) -> Decoder:
    """The model to start from."""
    assert config.init is not None
    model = load_model(config.init, dtype=torch.float32)
    refuse_quantized(model, config.init)
    _check(model.config, tokenizer, config.loop)
    return model


def _check(shape: DecoderConfig, tokenizer: Tokenizer, loop: LoopConfig) -> None:
    if shape.vocab_size < tokenizer.vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, but the model's vocabulary {shape.vocab_size:,}",
            "name the tokenizer of the model, or leave model.vocab_size out",
        )
    _check_length(shape, loop)
    check_memory(shape, loop)


def _check_length(shape: DecoderConfig, loop: LoopConfig) -> None:
    if loop.sequence_length > shape.max_positions:
        raise UsageError(
            f"sequences of {loop.sequence_length:,} tokens do not fit a context of {shape.max_positions:,}",
            "lower pretrain.loop.sequence_length or raise pretrain.model.max_positions",
        )


def _steps(config: PretrainConfig, dataset: TokenDataset) -> int:
    tokens_per_step = config.loop.batch_size * config.loop.sequence_length
    return config.loop.steps or math.ceil((config.token_budget or dataset.num_tokens) / tokens_per_step)


def _gather(dataset: TokenDataset, rows: Sequence[int], loop: LoopConfig) -> list[Packed]:
    """Windows as micro-batches."""
    size = loop.micro_batch_size or len(rows)
    return [dataset.gather(rows[start : start + size]) for start in range(0, len(rows), size)]


def _held_out(config: PretrainConfig, model: Decoder, tokenizer: Tokenizer, world: World) -> HeldOut | None:
    """Windows from all over the validation split, always the same; None if it has no text to predict."""
    if load_manifest(config.tokens).splits["validation"].tokens < 2:
        say("there is no held-out text, so there is no validation")
        return None
    dataset = TokenDataset(config.tokens, "validation", config.loop.sequence_length, seed=0)
    wanted = math.ceil(config.validation_tokens / config.loop.sequence_length)
    rows = world.share(dataset.rows(0, min(wanted, dataset.num_sequences)))
    return HeldOut(model, causal, _gather(dataset, rows, config.loop), bytes_of_tokens(tokenizer), world)
