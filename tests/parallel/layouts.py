"""What each kind of model learns in ten updates, on one process or spread over several."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.processes import start
from tests.train.toys import loop_config

from tallow.data.batch import Packed
from tallow.files import read_json, write_json
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.skeletons import Model, new_model
from tallow.objectives import Objective
from tallow.objectives.causal import causal
from tallow.objectives.masked import masked
from tallow.parallel import Layout, ParallelConfig, World, join_world
from tallow.train.update import Update, Updater

VOCABULARY, ROWS, LENGTH, STEPS, RATE = 40, 8, 16, 10, 1e-3
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 4, "num_heads": 4, "intermediate_size": 64}
DECODER = {**SHAPE, "num_kv_heads": 2, "max_positions": LENGTH}
KINDS = {
    "decoder": DecoderConfig.model_validate(DECODER),
    "untied": DecoderConfig.model_validate({**DECODER, "tied_embeddings": False, "qk_norm": "head", "window": 6}),
    "experts": DecoderConfig.model_validate({**DECODER, "num_experts": 4, "router_balance": "loss"}),
    "biased experts": DecoderConfig.model_validate({**DECODER, "num_experts": 4, "router_balance": "bias"}),
    "encoder": EncoderConfig.model_validate({**SHAPE, "max_positions": LENGTH}),
}
"""Models whose number of layers `layers_for` chooses."""


def make(kind: str, seed: int, layers: int = 4) -> Model:
    model = new_model(KINDS[kind].model_copy(update={"num_layers": layers}), seed)
    for name, parameter in model.named_parameters():
        # with scores that are nearly alike rounding would choose the experts, and embeddings that pass by zero as they
        # learn would leave rounding alone to the norms
        if name.endswith(("router.weight", "embed.weight")):
            parameter.data.mul_(10)
    return model


def objective_of(kind: str) -> Objective:
    if kind == "encoder":
        return partial(masked, mask_id=VOCABULARY - 1, ordinary_V=torch.arange(VOCABULARY) < VOCABULARY - 1, seed=0)
    return causal


def rows_of(step: int) -> Packed:
    """Rows of two or three documents, some padded at the end, with very different numbers of targets."""
    generator = torch.Generator().manual_seed(step)
    shape = (ROWS, LENGTH + 1)
    tokens_BT = (torch.rand(shape, generator=generator) ** 3 * (VOCABULARY - 1)).long()  # some more often than others
    cuts_B2 = torch.randint(3, LENGTH - 3, (ROWS, 2), generator=generator)
    index_T = torch.arange(LENGTH + 1)
    documents_BT = (index_T >= cuts_B2.amin(1, keepdim=True)).int() + (index_T >= cuts_B2.amax(1, keepdim=True)).int()
    documents_BT[1, LENGTH - 1 :] = -1
    trainable_BT = documents_BT >= 0
    trainable_BT[0, 3:] = False
    numbers_B = torch.arange(step * ROWS, (step + 1) * ROWS)
    return Packed(tokens_BT, documents_BT, trainable_BT, numbers_B)


def micro_batches(packed: Packed, rows: Sequence[int], size: int) -> list[Packed]:
    assert packed.numbers_B is not None
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    tensors = (packed.tokens_BT, packed.documents_BT, packed.trainable_BT, packed.numbers_B)
    return [Packed(*(tensor[list(part)] for tensor in tensors)) for part in parts]


def make_updater(layout: Layout, kind: str) -> Updater:
    return Updater(layout, objective_of(kind), loop_config(learning_rate=RATE, clip_norm=0.5))


def update(updater: Updater, step: int, size: int) -> Update:
    """An update by the rows of a step, in micro-batches of so many."""
    rows = updater.layout.reader.share(range(ROWS))
    return updater.update(step, micro_batches(rows_of(step), rows, size), RATE, "fp32")


def learn(layout: Layout, kind: str, size: int, number: int = STEPS) -> dict[str, list[float]]:
    """Loss and gradient norm of each of so many updates, and the loss of held-out rows afterwards."""
    updater, objective = make_updater(layout, kind), objective_of(kind)
    updates = [update(updater, step, size) for step in range(1, number + 1)]
    with updater.scoring("fp32"):
        held_out = micro_batches(rows_of(10**6), layout.reader.share(range(ROWS)), size)
        scores = [layout.score(packed, objective) for packed in layout.level(held_out)]
    nats, targets = layout.sum(sum(nats for nats, _ in scores), sum(count for _, count in scores))
    return {
        "loss": [update.loss for update in updates],
        "gradient_norm": [update.gradient_norm for update in updates],
        "tokens": [update.tokens for update in updates],
        "held_out": [nats / targets],
    }


def learn_together(
    world: World,
    directory: Path,
    kind: str,
    layouts: Mapping[str, Mapping[str, Any]],
    layers: int | None,
    updates: int,
) -> None:
    """One process of several that learn in one layout after the other."""
    for name, settings in layouts.items():
        # each process starts from weights of its own; the main one's must win
        model = make(kind, world.rank, layers or layers_for(world.size, kind, settings))
        layout = Layout(model, ParallelConfig.model_validate(settings), world)
        report = learn(layout, kind, micro_batch_size(layout), updates)
        weights = layout.gather()
        if world.is_main:
            write_json(directory / f"{name}.json", report)
            save_file(weights, directory / f"{name}.safetensors")


def join(work: Callable[..., None], rank: int, size: int, port: int, *arguments: Any) -> None:
    """Do a process's part under the variables that torchrun sets."""
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(size), **place})
    with join_world() as world:
        work(world, *arguments)


def together(size: int, work: Callable[..., None], *arguments: Any) -> None:
    """Let `size` processes do `work`, a function of a module that is given the `World` first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(join, work, rank, size, port, *arguments) for rank in range(size)]
    for process in processes:
        process.join(timeout=600)  # what hangs must end, what is slow on a busy machine must not
    assert [process.exitcode for process in processes] == [0] * size


def run_layouts(
    size: int,
    directory: Path,
    kind: str,
    layouts: Mapping[str, Mapping[str, Any]],
    *,
    layers: int | None = None,
    updates: int = STEPS,
) -> dict[str, tuple[dict[str, list[float]], dict[str, torch.Tensor]]]:
    """What `size` processes report of each layout, and the weights that they end with.

    Args:
        layers: Of the model; None: as `layers_for` has it.
    """
    together(size, learn_together, directory, kind, layouts, layers, updates)
    return {
        name: (read_json(directory / f"{name}.json"), load_file(directory / f"{name}.safetensors")) for name in layouts
    }


def layers_for(size: int, kind: str, settings: Mapping[str, Any]) -> int:
    """Of the models of a kind that so many processes are tried with in these settings: few, as each message takes
    milliseconds where processes share a core.

    That layers follow each other is tried with two processes and the plain decoder, and with two processes' pipelines.
    Else there is one layer for each stage.
    """
    stages = settings.get("pipeline", 1)
    if size <= 2 and (kind == "decoder" or stages > 1):
        return 2 * stages
    return stages * (2 if settings.get("schedule") in ("interleaved", "zero_bubble") else 1)


def micro_batch_size(layout: Layout) -> int:
    """For two micro-batches a process, of different sizes if there are rows enough.

    One for four processes without ZeRO and pipelines: what else there is adds up gradients as two processes do.
    """
    rows = ROWS // layout.mesh.rows
    if layout.world.size > 2 and not layout.config.zero and layout.config.pipeline == 1:
        return rows
    return max(1, rows // 2 + (rows > 2))


@cache
def alone(kind: str, layers: int, steps: int = STEPS) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """What one process learns, all rows of an update at once."""
    layout = Layout(make(kind, 0, layers))
    return learn(layout, kind, ROWS, steps), layout.gather()
