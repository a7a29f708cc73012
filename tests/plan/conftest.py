"""Tokens of a made-up size, and runs that end as a known law says, without any training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tallow.data.manifest import TokenCounts, TokenManifest, save_manifest
from tallow.models.families import family_of
from tallow.plan.dial import SizedPretrainConfig
from tallow.plan.hyper_laws import LEARNING_RATE
from tallow.plan.loss_law import LossLaw
from tallow.plan.shapes import count_parameters
from tallow.run import StageRun, hash_input
from tallow.work import fingerprint_stage

LAW = LossLaw(irreducible=1.8, parameters_factor=60, parameters_exponent=0.3, tokens_factor=700, tokens_exponent=0.4)
VOCABULARY = 300
SPEED = 2e10  # operations a second
BEST_RATE = 0.25  # of the published one


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return make_tokens(tmp_path / "tokens", 10**9)


def make_tokens(directory: Path, count: int, validation: int = 10**6) -> Path:
    """A directory that says it has so many tokens."""
    directory.mkdir()
    splits = {
        "train": TokenCounts(tokens=count, documents=1, bytes=count, shards=()),
        "validation": TokenCounts(tokens=validation, documents=1, bytes=validation, shards=()),
    }
    manifest = TokenManifest(tokenizer="a", vocab_size=VOCABULARY, eos_id=0, dtype="uint16", splits=splits, sources=())
    save_manifest(manifest, directory)
    return directory


@pytest.fixture
def config(tokens: Path) -> SizedPretrainConfig:
    return make_config(tokens)


def make_config(tokens: Path, **settings: Any) -> SizedPretrainConfig:
    values = {
        "tokens": tokens,
        "tokenizer": tokens.parent,
        "model": {"vocab_size": VOCABULARY},
        "loop": {"sequence_length": 64, "precision": "fp32"},
    }
    return SizedPretrainConfig.model_validate(values | settings)


class Pretender:
    """Does runs in no time: their loss is the law's, more with a learning rate that is not the best, and a little
    noise.

    Args:
        noise: Standard deviation of the logarithm of a loss.
    """

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise
        self.done: list[Path] = []

    def __call__(self, config: SizedPretrainConfig, directory: Path) -> Mapping[str, Any]:
        run = StageRun(directory)
        inputs = {"tokens": hash_input(config.tokens), "tokenizer": "b"}
        fingerprint = fingerprint_stage("pretrain", config, inputs)
        earlier = run.finished(fingerprint)
        if earlier is not None:
            return earlier
        self.done.append(directory)
        run.begin("pretrain", config, inputs)
        result = self.result(config)
        run.log(step=1, tokens_per_s=result["tokens_per_s"])
        product = directory / "model"
        product.mkdir()
        (product / "config.json").write_text(json.dumps(family_of(config.shape).hub_config(config.shape)))
        run.finish(fingerprint, inputs, product, result)
        return result

    def result(self, config: SizedPretrainConfig) -> dict[str, Any]:
        parameters, loop = count_parameters(config.shape), config.loop
        batch = loop.batch_size * loop.sequence_length
        steps = loop.steps or -(-(config.token_budget or 10**6) // batch)
        tokens = steps * batch
        best = BEST_RATE * LEARNING_RATE.value(parameters.inner, tokens)
        chance = np.random.default_rng([parameters.total, tokens]).standard_normal()
        loss = LAW.loss(parameters.total, tokens) + 0.02 * np.log(loop.learning_rate / best) ** 2
        return {
            "parameters": parameters.total,
            "steps": steps,
            "tokens": tokens,
            "tokens_per_s": SPEED / (6 * parameters.total),
            "validation_loss": float(loss * np.exp(self.noise * chance)),
        }
