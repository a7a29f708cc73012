"""Which parameters are treated alike."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from math import prod

from torch.distributed.tensor import DTensor

from tallow.errors import UsageError
from tallow.train.optimizers.method import Common, Groups, Parameters

RATE_FACTOR = "rate_factor"
"""Of a group: what its learning rate is multiplied by; 1 where a group has none."""


def decay_groups(parameters: Parameters, common: Common) -> Groups:
    """Matrices, which decay, and vectors (biases and norms), which do not; a group that would be empty is left out."""
    matrices = {name: parameter for name, parameter in parameters.items() if parameter.ndim >= 2}
    vectors = {name: parameter for name, parameter in parameters.items() if parameter.ndim < 2}
    return [*rate_groups(matrices, common, common.weight_decay), *rate_groups(vectors, common, 0.0)]


def rate_groups(parameters: Parameters, common: Common, weight_decay: float) -> Groups:
    """Parameters by the factor on their learning rate.

    What a weight loses in a step by decay is the product of the two, and is to be the same for all: so the decay of a
    group is divided by its factor.
    """
    by_factor: Groups = []
    factors = {name: common.rate_factors.get(name, 1.0) for name in parameters}
    for factor in dict.fromkeys(factors.values()):
        group = {
            "params": [parameter for name, parameter in parameters.items() if factors[name] == factor],
            "lr": common.learning_rate * factor,
            "weight_decay": weight_decay / factor,
        }
        by_factor.append(group if factor == 1.0 else {**group, RATE_FACTOR: factor})
    return by_factor


def can_go_together(parameters: Parameters) -> bool | None:
    """`foreach` of optimizers that update many parameters at once: processes must divide all of them, or none."""
    return None if len({isinstance(parameter, DTensor) for parameter in parameters.values()}) < 2 else False


def match_factors(patterns: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    """The factor of each parameter: the product of those of all patterns that match its name, where it is not 1.

    Args:
        names: Of all parameters that are trained, also of those that other processes have.

    Raises:
        UsageError: A pattern matches no parameter.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"loop.learning_rate_factors names {pattern}, which is no parameter that is trained",
                f"there is, for example, {next(iter(names))}; * stands for anything",
            )
    factors = {
        name: prod(factor for pattern, factor in patterns.items() if fnmatchcase(name, pattern)) for name in names
    }
    return {name: factor for name, factor in factors.items() if factor != 1.0}


def split_hidden(parameters: Parameters) -> tuple[Parameters, Parameters]:
    """The matrices of the repeated layers, and all else: embeddings, the output matrix, vectors.

    A repeated layer has its number in its parameters' names (`layers.3.attention.q_proj.weight`).
    """
    hidden = {
        name: parameter for name, parameter in parameters.items() if parameter.ndim == 2 and re.search(r"\.\d+\.", name)
    }
    return hidden, {name: parameter for name, parameter in parameters.items() if name not in hidden}
