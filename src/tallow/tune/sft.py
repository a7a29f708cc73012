"""The tune stage: supervised fine-tuning on answers only, of all weights or of low-rank adapters."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from tallow.console import is_main_process, say
from tallow.data.batch import Packed
from tallow.data.permutation import Permutation
from tallow.data.reading.settings import ReadSettings
from tallow.data.records import Rejected
from tallow.data.sources import SourceNames
from tallow.errors import UsageError
from tallow.models.decoder import Decoder
from tallow.models.formats import load_model, load_tokenizer, save_model
from tallow.objectives.causal import causal
from tallow.parallel import ALONE, Position, join_world
from tallow.recipe import Section
from tallow.run import StageRun
from tallow.tokenizer.chat import CHATML, ChatTemplate
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.batch_plan import BatchPlan, plan_batches
from tallow.train.config import LoopConfig
from tallow.train.loop import train
from tallow.train.placing import lay_out
from tallow.train.trainable import refuse_quantized
from tallow.train.validation import HeldOut
from tallow.tune.adapter import save_adapter
from tallow.tune.examples import Example, check_learned, keep_fitting, pack, read_examples, to_packed
from tallow.tune.lora import LoraConfig, add_adapters, merge_adapters

TURN_END = "<|im_end|>"


class TuneLoopConfig(LoopConfig):
    """The training loop's settings, with the defaults of fine-tuning.

    Args:
        steps: Updates of the weights; None: as many as `tune.epochs` needs.
        batch_size: Packed rows of an update, over all processes.
        sequence_length: Tokens of a packed row; longer examples are left out.
    """

    batch_size: PositiveInt = 8
    sequence_length: PositiveInt = 512
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.0, ge=0)


class TuneConfig(Section):
    """Settings of the tune stage.

    Args:
        model: The model to start from.
        data: JSON, parquet or CSV files, directories and globs of conversations (`{"messages": [...]}` and other
            usual spellings) or of `{"prompt", "completion"}` records, or `tallow:pepys_chat`, the set that comes with
            the package.
        spelling: How the records of all files are spelled, where it cannot be told: `messages`, `sharegpt`, `alpaca`,
            `question`, `prompt`, `transcript` or `pairs`.
        learn_chosen: Of preferences learn the chosen answers, of answers with a label the good ones.
        max_bad_fraction: Above this share of records that are malformed, or that the chat template refuses, the stage
            fails.
        method: `full` trains all weights; `lora` trains low-rank adapters, kept in `adapter/` and merged into `model/`.
        lora: Settings of the adapters.
        epochs: Passes over the set; `loop.steps` goes before it.
        validation_fraction: Share of the examples held out, chosen by the hash of their tokens.
        loop: Settings of the training loop.
    """

    model: Path
    data: SourceNames = Field(min_length=1)
    spelling: Literal["messages", "sharegpt", "alpaca", "question", "prompt", "transcript", "pairs"] | None = None
    learn_chosen: bool = False
    max_bad_fraction: float = Field(default=0.1, ge=0, le=1)
    method: Literal["full", "lora"] = "full"
    lora: LoraConfig = LoraConfig()
    epochs: PositiveFloat = 1.0
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    loop: TuneLoopConfig = TuneLoopConfig()


def tune(config: TuneConfig, run: StageRun) -> dict[str, Any]:
    """Fine-tune a model on instructions; the product is `model/`, with LoRA also `adapter/`.

    Under `torchrun` all processes take part; they need to see the same files.

    Raises:
        DataError: Model or data cannot be read, no answer token is trained, or the end token never is.
        UsageError: The model is quantized, its tokenizer lacks what the chat template needs, or a row is longer than
            its context.
    """
    model, tokenizer = load_model(config.model, dtype=torch.float32), load_tokenizer(config.model)
    _check_model(model, config)
    give_template(tokenizer)
    sequence_length = config.loop.sequence_length
    row_tokens = sequence_length + 1  # the last token is a target only
    rejected = _set_aside(run)
    reading = ReadSettings(max_bad_fraction=config.max_bad_fraction)
    read = read_examples(config.data, tokenizer, rejected, config.spelling, reading, config.learn_chosen)
    examples = keep_fitting((example for example, _ in read), sequence_length)
    if rejected.bad:
        say(f"set aside {rejected.bad:,} records in {rejected.path} (first: {rejected.first})")
    ends = _end_ids(model, tokenizer)
    check_learned(examples, ends)
    training, held_out = hold_out(examples, config.validation_fraction)
    rows = pack(training, row_tokens)
    held_out_rows = pack(held_out, row_tokens)
    padding = 1 - sum(map(len, training)) / (len(rows) * row_tokens)
    say(f"{len(training):,} examples in {len(rows):,} rows of {sequence_length} tokens, {padding:.1%} of them padding")

    if config.method == "lora":
        add_adapters(model, config.lora, config.loop.seed)
    plan = plan_batches(config.loop, rows=max(1, math.ceil(config.epochs * len(rows))))
    loop = config.loop.model_copy(update={"steps": config.loop.steps or plan.steps})
    with join_world() as world:
        layout = lay_out(model, loop, world)
        reader = layout.reader
        plan.check_shares(reader.size)

        validation = _chunks(reader.share(held_out_rows), row_tokens, pad_id(tokenizer), loop)
        result = train(
            layout,
            causal,
            _batches(rows, plan, row_tokens, pad_id(tokenizer), loop, reader),
            loop,
            run,
            validate=HeldOut(causal, validation) if held_out_rows else None,
            identity={"rows": len(rows), "method": config.method},
        )
        weights = layout.gather()
        if world.is_main:
            here = world.size == 1 and layout.device.type == "cpu"
            _save(model if here else _whole(config, weights), tokenizer, ends, config, run)
    return {"examples": len(training), **result}


def _set_aside(run: StageRun) -> Rejected:
    """Keeps bad records in a file of the run, anew each time that the stage begins."""
    if not is_main_process():
        return Rejected()
    path = run.directory / "rejected.jsonl"
    path.unlink(missing_ok=True)
    return Rejected(path)


def _whole(config: TuneConfig, weights: Mapping[str, Tensor]) -> Decoder:
    """The model that was trained by several processes, or on a GPU."""
    model = load_model(config.model, dtype=torch.float32)
    if config.method == "lora":
        add_adapters(model, config.lora, config.loop.seed)
    model.load_state_dict(weights)
    return model


def _save(model: Decoder, tokenizer: Tokenizer, ends: Set[int], config: TuneConfig, run: StageRun) -> None:
    if config.method == "lora":
        save_adapter(model, run.directory / "adapter", str(config.model))
        merge_adapters(model)
    model.config = model.config.model_copy(update={"eos_ids": tuple(sorted({*model.config.eos_ids, *ends}))})
    save_model(model, tokenizer, run.directory / "model")


def hold_out(examples: Sequence[Example], fraction: float) -> tuple[list[Example], list[Example]]:
    """Training examples and held-out ones, told apart by the hash of their tokens: equal ones fall on one side."""
    threshold = fraction * 2**64
    held = [int.from_bytes(hashlib.sha256(str(example.ids).encode()).digest()[:8]) < threshold for example in examples]
    if all(held):
        return list(examples), []
    return (
        [example for example, out in zip(examples, held, strict=True) if not out],
        [example for example, out in zip(examples, held, strict=True) if out],
    )


def pad_id(tokenizer: Tokenizer) -> int:
    """A token for padding; it is masked everywhere, so any will do."""
    return next((token for token in (tokenizer.pad_id, tokenizer.eos_id) if token is not None), 0)


def _check_model(model: Decoder, config: TuneConfig) -> None:
    refuse_quantized(model, config.model)
    if config.loop.sequence_length > model.config.max_positions:
        raise UsageError(
            f"tune.loop.sequence_length is {config.loop.sequence_length}, but the model's context has "
            f"{model.config.max_positions} tokens",
            "shorten it",
        )


def give_template(tokenizer: Tokenizer) -> None:
    """A base model gets the ChatML template, if its tokenizer knows the tokens that it is written with."""
    if tokenizer.chat_template is None and tokenizer.backend.token_to_id(TURN_END) is not None:
        tokenizer.chat_template = ChatTemplate(CHATML, tokenizer.special_tokens)


def _end_ids(model: Decoder, tokenizer: Tokenizer) -> set[int]:
    """Tokens that end an answer: the model's own, the tokenizer's, and the chat template's end of a turn."""
    turn_end = tokenizer.backend.token_to_id(TURN_END)
    in_template = tokenizer.chat_template is not None and TURN_END in tokenizer.chat_template.source
    ends = {*model.config.eos_ids, tokenizer.eos_id, turn_end if in_template else None}
    return {token for token in ends if token is not None}


def _batches(
    rows: Sequence[Sequence[Example]],
    plan: BatchPlan,
    row_tokens: int,
    pad: int,
    loop: LoopConfig,
    reader: Position = ALONE,
) -> Callable[[int], list[Packed]]:
    """Micro-batches of any step: the rows in an order of their own each epoch, batches running across epochs.

    As in a `TokenDataset`, a row's number is `epoch * len(rows) + row`.

    Args:
        reader: This process among those that share the rows.
    """

    def batches(step: int) -> list[Packed]:
        numbers = []
        for place in reader.share(plan.rows(step)):
            epoch, index = divmod(place, len(rows))
            numbers.append(epoch * len(rows) + int(Permutation(len(rows), loop.seed, epoch)(np.array([index]))[0]))
        chunks = _chunks([rows[number % len(rows)] for number in numbers], row_tokens, pad, loop)
        parts = torch.tensor(numbers).split([len(chunk.tokens_BT) for chunk in chunks])
        return [replace(chunk, numbers_B=part) for chunk, part in zip(chunks, parts, strict=True)]

    return batches


def _chunks(rows: Sequence[Sequence[Example]], row_tokens: int, pad: int, loop: LoopConfig) -> list[Packed]:
    """Rows as micro-batches."""
    size = loop.micro_batch_size or loop.batch_size
    return [to_packed(rows[start : start + size], row_tokens, pad) for start in range(0, len(rows), size)]
