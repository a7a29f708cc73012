"""Texts as vectors: the mean of a model's hidden states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from tallow.kernels.threads import single_thread
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.blocks.context import SequenceContext
from tallow.models.encoder import Encoder
from tallow.models.formats import load_encoder, load_model, load_tokenizer
from tallow.models.formats.hub import is_encoder
from tallow.models.skeletons import Model
from tallow.once import once
from tallow.tokenizer.tokenizer import Tokenizer

CHARS_PER_TOKEN = 16
"""So many characters of a text are looked at for each token that is wanted."""


class Embedder:
    """A model and its tokenizer.

    Args:
        path: A hub directory of an encoder or a decoder, or the .gguf file of a decoder.

    Raises:
        DataError: There is none, or it is broken.
    """

    def __init__(self, path: Path) -> None:
        encoder = path.is_dir() and is_encoder(path)
        model = (
            load_encoder(path, dtype=torch.float32, head=False) if encoder else load_model(path, dtype=torch.float32)
        )
        self.model: Model = model.eval()
        self.tokenizer: Tokenizer = load_tokenizer(path)

    @property
    def size(self) -> int:
        """Entries of a vector."""
        return self.model.config.hidden_size

    def embed(self, texts: pa.StringArray, max_tokens: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """N × D: of each text the mean over its first tokens, of length 1; and which texts have any token.

        One text after another, by one thread: so a vector depends on nothing but its text and the machine.
        """
        vectors_ND = np.zeros((len(texts), self.size), dtype=np.float32)
        found = np.zeros(len(texts), dtype=np.bool_)
        longest = min(max_tokens, self.model.config.max_positions)
        with torch.inference_mode(), single_thread():
            for row, text in enumerate(texts):
                start = (text.as_py() or "")[: CHARS_PER_TOKEN * max_tokens]
                if not start:
                    continue
                ids = self.tokenizer.encode(start, add_special_tokens=True)[:longest]
                if ids:
                    mean_D = self._hidden_TD(ids).double().mean(0)
                    vectors_ND[row] = (mean_D / mean_D.norm()).float().numpy()
                    found[row] = True
        return vectors_ND, found

    def _hidden_TD(self, ids: list[int]) -> torch.Tensor:
        kind = BidirectionalContext if isinstance(self.model, Encoder) else SequenceContext
        return self.model(torch.tensor([ids]), kind.plain(1, len(ids)))[0]


@once()
def load_embedder(path: Path, fingerprint: str) -> Embedder:  # noqa: ARG001
    """The embedder at `path`, loaded once a process while its `fingerprint` is the same."""
    return Embedder(path)
