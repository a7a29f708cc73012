"""A model whose weights are still where they are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from tallow.kernels.blocks import BlockWeight
from tallow.models.decoder import Decoder


class StoredModel(ABC):
    """A model whose weights are read one at a time, so that whoever brings them into another form needs memory for that
    form and one weight.

    Args:
        model: Its architecture: on the meta device, with quantized modules where codes are stored.
        path: The file or directory; None for a model that is in memory only.
        files: `fingerprint_files` of it, from before anything of it was read.
    """

    model: Decoder
    path: Path | None
    files: str

    @abstractmethod
    def read(self, name: str) -> Tensor | BlockWeight:
        """A tensor by its name in `model.state_dict()`. Nobody else holds it: its memory goes with it.

        A matrix may be of a narrower dtype than the model's, or in blocks; then the model's dtype holds it exactly.

        Raises:
            DataError: It is missing, broken, or of another shape than the model's.
        """

    @abstractmethod
    def load(self, dtype: torch.dtype | None = None) -> Decoder:
        """The whole model, its tensors mapped from the file where that can be.

        Args:
            dtype: Of all weights; None leaves them as stored.

        Raises:
            DataError: As `read`, for any tensor.
        """


class LoadedModel(StoredModel):
    """A model that is in memory already.

    Args:
        model: It.
        source: Where it has come from.
    """

    def __init__(self, model: Decoder, source: StoredModel | None = None) -> None:
        self.model = model
        self.path, self.files = (source.path, source.files) if source is not None else (None, "")
        self._state = model.state_dict()

    def read(self, name: str) -> Tensor:
        return self._state[name]

    def load(self, dtype: torch.dtype | None = None) -> Decoder:
        return self.model if dtype is None else self.model.to(dtype)
