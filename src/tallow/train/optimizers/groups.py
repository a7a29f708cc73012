"""Which parameters are treated alike."""

from __future__ import annotations

import re

from tallow.train.optimizers.method import Groups, Parameters


def decay_groups(parameters: Parameters, weight_decay: float) -> Groups:
    """Matrices, which decay, and vectors (biases and norms), which do not; a group that would be empty is left out."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def split_hidden(parameters: Parameters) -> tuple[Parameters, Parameters]:
    """The matrices of the repeated layers, and all else: embeddings, the output matrix, vectors.

    A repeated layer has its number in its parameters' names (`layers.3.attention.q_proj.weight`).
    """
    hidden = {
        name: parameter for name, parameter in parameters.items() if parameter.ndim == 2 and re.search(r"\.\d+\.", name)
    }
    return hidden, {name: parameter for name, parameter in parameters.items() if name not in hidden}
