"""Which instructions teach what some examples show: LESS (Xia et al., 2024, arXiv 2402.04333).

Adapters learn a part of the set; after each epoch the update that Adam would make for each example alone is compared
with the gradient of the target examples. The mean over epochs, weighted by their learning rates, is an example's score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from tallow.console import progress
from tallow.data.batch import Packed
from tallow.errors import DataError
from tallow.models.decoder import Decoder
from tallow.objectives.causal import causal
from tallow.objectives.loss import summed_loss
from tallow.parallel import ALONE
from tallow.recipe import Section
from tallow.train.config import LoopConfig
from tallow.train.optimizers.adamw import AdamWMethod
from tallow.train.placing import lay_out
from tallow.train.schedule import learning_rate
from tallow.train.update import Updater
from tallow.tune.examples import Example, pack, to_packed
from tallow.tune.lora import LoraConfig, add_adapters


class InfluenceConfig(Section):
    """How influence is measured.

    Args:
        lora: The adapters by whose gradients examples are compared.
        warmup_fraction: Share of the examples that the adapters learn first, drawn at random,
        warmup_examples: but at least so many.
        epochs: Passes over these; after each of them all examples are compared.
        batch_size: Examples of an update.
        learning_rate: At first; it falls linearly.
        projection: Numbers to which a gradient is projected. The cosine of two is kept with an error of about
            1 / sqrt(projection).
        seed: Names the adapters, the examples that are learned, and the projection.
    """

    lora: LoraConfig = LoraConfig()
    warmup_fraction: float = Field(default=0.05, gt=0, le=1)
    warmup_examples: PositiveInt = 64
    epochs: PositiveInt = 4
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-4
    projection: PositiveInt = 8192
    seed: int = Field(default=0, ge=0, lt=2**31)


def influence(
    model: Decoder,
    examples: Sequence[Example],
    targets: Mapping[str, Sequence[Example]],
    config: InfluenceConfig,
    pad_id: int = 0,
) -> Tensor:
    """How much each example teaches each kind of target: between -1 and 1, N by the number of kinds.

    Args:
        model: It gets adapters, and they are trained.
        examples: Those to choose from.
        targets: A few examples of each kind of task that is wanted; of a kind their mean gradient counts.
        config: How.
        pad_id: A token for padding.

    Raises:
        DataError: There are no examples, a kind of target has none, or gradients are not finite.
    """
    if not examples or not targets or not all(targets.values()):
        raise DataError("there is nothing to choose from, or nothing to choose by", "give examples and targets")
    add_adapters(model, config.lora, config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    count = min(len(examples), max(config.warmup_examples, math.ceil(config.warmup_fraction * len(examples))))
    learned = torch.randperm(len(examples), generator=generator)[:count].tolist()
    loop = LoopConfig(
        steps=config.epochs * math.ceil(count / config.batch_size) + 1,  # one more: the rate of the last would be 0
        batch_size=config.batch_size,
        sequence_length=max(map(len, examples)) - 1,
        learning_rate=config.learning_rate,
        schedule="linear",
        min_learning_rate_ratio=0.0,
        warmup=0.03,
        weight_decay=0.0,
        betas=(0.9, 0.999),
        optimizer=AdamWMethod(),
        precision="fp32",
        device="cpu",
    )
    updater = Updater(lay_out(model, loop, ALONE), causal, loop)
    gradients = _Gradients(model, updater, config, pad_id)
    scores_NK, rates = torch.zeros(len(examples), len(targets)), list[float]()
    step = 0
    with progress("influence", config.epochs * len(examples), "examples") as bar:
        for _ in range(config.epochs):
            before = step
            order = [learned[place] for place in torch.randperm(count, generator=generator).tolist()]
            for batch in _batches(examples, order, config.batch_size, pad_id):
                step += 1
                updater.update(step, batch, learning_rate(step, _steps(loop), loop), "fp32")
            rates.append(
                sum(learning_rate(at, _steps(loop), loop) for at in range(before + 1, step + 1)) / (step - before)
            )
            wanted_KP = torch.stack([gradients.mean(of_kind) for of_kind in targets.values()])
            wanted_KP /= wanted_KP.norm(dim=1, keepdim=True)
            for index, example in enumerate(examples):
                update_P = gradients.update(example)
                scores_NK[index] += rates[-1] * (wanted_KP @ update_P) / update_P.norm()
                bar.advance()
    scores_NK /= sum(rates)
    if not bool(scores_NK.isfinite().all()):
        raise DataError("a gradient is not finite, or zero", "lower the learning rate, or look at the data")
    return scores_NK


class _Gradients:
    """Projected gradients by the adapters, of one example at a time."""

    def __init__(self, model: Decoder, updater: Updater, config: InfluenceConfig, pad_id: int) -> None:
        self._model, self._updater, self._pad_id = model, updater, pad_id
        self._parameters = list(updater.parameters.values())
        size = sum(parameter.numel() for parameter in self._parameters)
        generator = torch.Generator().manual_seed(config.seed + 1)
        # One number for each weight, with a random sign (Weinberger et al., 2009, arXiv 0902.2206): inner products are
        # kept as well as by LESS's dense matrix of signs, which would take as many products as the model itself.
        self._places_P = torch.randint(config.projection, (size,), generator=generator)
        self._signs_P = torch.randint(2, (size,), generator=generator).float().mul_(2).sub_(1)
        self._size = config.projection

    def mean(self, examples: Sequence[Example]) -> Tensor:
        """Of the loss of some examples."""
        total = torch.zeros(self._size)
        for example in examples:
            total += self._project(torch.cat([gradient.flatten() for gradient in self._of(example)]))
        return total / len(examples)

    def update(self, example: Example) -> Tensor:
        """The direction in which Adam would go for one example alone (section 4.1)."""
        parts = []
        optimizer = self._updater.optimizer.parts[0]
        states = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, gradient in zip(self._parameters, self._of(example), strict=True):
            group, state = states[id(parameter)], optimizer.state[parameter]
            first, second = group["betas"]
            step = float(state["step"]) + 1
            mean = (first * state["exp_avg"] + (1 - first) * gradient) / (1 - first**step)
            square = (second * state["exp_avg_sq"] + (1 - second) * gradient.square()) / (1 - second**step)
            parts.append((mean / (square.sqrt() + group["eps"])).flatten())
        return self._project(torch.cat(parts))

    def _of(self, example: Example) -> Sequence[Tensor]:
        """By each parameter, of the mean loss of a target token."""
        packed = causal(to_packed([[example]], len(example), self._pad_id))
        self._model.eval()
        loss = summed_loss(self._model, packed) / packed.loss_mask_BT.sum()
        found = torch.autograd.grad(loss, self._parameters)
        self._model.train()
        return found

    def _project(self, vector_P: Tensor) -> Tensor:
        return torch.zeros(self._size).index_add_(0, self._places_P, vector_P * self._signs_P)


def _batches(examples: Sequence[Example], order: Sequence[int], size: int, pad_id: int) -> Iterator[list[Packed]]:
    """Examples in rows as long as the longest of a batch."""
    for start in range(0, len(order), size):
        batch = [examples[index] for index in order[start : start + size]]
        row_tokens = max(map(len, batch))
        yield [to_packed(pack(batch, row_tokens), row_tokens, pad_id)]


def _steps(loop: LoopConfig) -> int:
    assert loop.steps is not None
    return loop.steps
