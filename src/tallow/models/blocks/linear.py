"""Linear layers and tables of vectors, as in PyTorch save for one thing.

On the meta device, where a model is built to learn its shape, they draw no random weights: there is no memory
for them, and drawing them there would import a good part of PyTorch's compiler (seconds, 80 MB).
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """`x W^T + b`; W is O × I."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Table(nn.Embedding):
    """Vectors by number."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
