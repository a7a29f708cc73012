"""Small things to train, with known optima."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tallow.data.batch import Packed
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.run import StageRun
from tallow.train.config import LoopConfig

VOCABULARY = 8
TIMINGS = {"tokens_per_s", "flops_per_s", "step_s", "data_wait", "mfu", "memory_bytes", "peak_memory_bytes"}
"""Metrics that are others each time."""


def tiny_model(seed: int = 0) -> Decoder:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}
    model = Decoder(DecoderConfig.model_validate({"vocab_size": VOCABULARY, "max_positions": 64, **shape}))
    initialize(model, seed)
    return model


def loop_config(**settings: object) -> LoopConfig:
    defaults = {"steps": 12, "batch_size": 4, "sequence_length": 16, "precision": "fp32", "log_every": 1}
    return LoopConfig.model_validate({**defaults, "learning_rate": 3e-3, **settings})


def new_run(directory: Path, *, resume: bool = True) -> StageRun:
    directory.mkdir(parents=True, exist_ok=True)
    return StageRun(directory, resume=resume)


def transition_matrix() -> Tensor:
    """A Markov chain over the vocabulary, far from uniform: V V, rows sum to 1."""
    return (3 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(5))).softmax(-1)


@cache
def chain(step: int, rows: int, length: int) -> Tensor:
    """Text of that chain, the same each time: as many tests learn from it, it takes long to draw."""
    matrix, generator = transition_matrix(), torch.Generator().manual_seed(step)
    columns = [torch.randint(0, VOCABULARY, (rows,), generator=generator)]
    for _ in range(length):
        columns.append(torch.multinomial(matrix[columns[-1]], 1, generator=generator)[:, 0])
    return torch.stack(columns, dim=1)


def markov_batches(config: LoopConfig) -> Callable[[int], list[Packed]]:
    """Batches of that chain, as micro-batches of the configured size."""

    def batches(step: int) -> list[Packed]:
        tokens_BT = chain(step, config.batch_size, config.sequence_length).clone()
        size = config.micro_batch_size or config.batch_size
        return [pack(tokens) for tokens in tokens_BT.split(size)]

    return batches


def pack(tokens_BT: Tensor, trainable_BT: Tensor | None = None) -> Packed:
    documents_BT = torch.zeros_like(tokens_BT, dtype=torch.int32)
    return Packed(
        tokens_BT, documents_BT, torch.ones_like(tokens_BT, dtype=torch.bool) if trainable_BT is None else trainable_BT
    )


def weights(model: Decoder) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
