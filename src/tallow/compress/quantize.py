"""The compress stage: a model directory in, a smaller one out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tallow.compress.rtn import round_to_nearest
from tallow.console import progress
from tallow.errors import UsageError
from tallow.models.decoder import Decoder
from tallow.models.formats import load_model, load_tokenizer, save_model
from tallow.models.quantization import Target, model_bytes, num_weights, quantization_targets
from tallow.recipe import Section
from tallow.run import StageRun

Method = Callable[[Decoder, Sequence[Target]], Iterator[float]]
"""Quantizes the targets of a model in place, and yields the relative error of each weight as it goes."""

METHODS: Mapping[str, Method] = {"rtn": round_to_nearest}


class CompressConfig(Section):
    """Settings of the compress stage.

    Args:
        model: The model to make smaller; it must not be quantized yet.
        method: `rtn`: round to nearest, in groups.
        bits: Of the linear layers' weights.
        group_size: Weights that share a scale. A row that it does not divide gets the largest smaller group that fits.
        embedding_bits: Of the token embedding and the output matrix; `auto` takes 6 beside 4 bits and 8 beside 8, null
            leaves them as they are.
        skip: Names of modules that stay as they are, with all below them (`lm_head`, `layers.0`).
    """

    model: Path
    method: Literal["rtn"] = "rtn"
    bits: Literal[4, 8] = 4
    group_size: Literal[32, 64, 128, 256] = 32
    embedding_bits: Literal["auto", 4, 6, 8] | None = "auto"
    skip: tuple[str, ...] = ()


def compress(config: CompressConfig, run: StageRun) -> dict[str, Any]:
    """Quantize a model; the product is the directory `model/`, metrics.jsonl has the error of each module.

    Raises:
        UsageError: The model is quantized already, or has nothing that can be.
        DataError: The model cannot be read, or its weights are not finite.
        CapacityError: The disk is full.
    """
    model, tokenizer = load_model(config.model), load_tokenizer(config.model)
    targets = quantization_targets(
        model, config.bits, config.group_size, embedding_bits=config.embedding_bits, skip=config.skip
    )
    if not targets:
        raise UsageError("the model has no weight that can be quantized so", "skip less, or choose smaller groups")
    bytes_before, errors = model_bytes(model), []
    with progress("quantize", len(targets), "modules") as bar:
        for target, error in zip(targets, METHODS[config.method](model, targets), strict=True):
            run.log(module=target.name, bits=target.bits, group_size=target.group_size, relative_error=error)
            errors.append(error)
            bar.advance()
    save_model(model, tokenizer, run.directory / "model")
    return {
        "original_bytes": bytes_before,
        "model_bytes": model_bytes(model),
        "bits_per_weight": 8 * model_bytes(model) / num_weights(model),
        "mean_relative_error": sum(errors) / len(errors),
        "max_relative_error": max(errors),
        "worst_module": targets[errors.index(max(errors))].name,
    }
