"""An encoder that says of each token which label it has (token classification; arXiv 1810.04805, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tallow.models.blocks.linear import Linear
from tallow.models.encoder import Encoder
from tallow.models.encoder_config import EncoderConfig


class Tagger(Encoder):
    """A linear layer on the hidden states of an encoder, without dropout.

    Args:
        config: The encoder's shape.
        labels: What the logits stand for, in their order (L of them).
    """

    def __init__(self, config: EncoderConfig, labels: Sequence[str]) -> None:
        super().__init__(config, head=False)
        self.labels = tuple(labels)
        self.classifier = Linear(config.hidden_size, len(self.labels))

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalized log-probabilities of each label at each place, B T L."""
        return self.classifier(hidden_BTD)
