"""A model that computes its own loss: what layouts wrap."""

from __future__ import annotations

from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.models.skeletons import Layered
from tallow.objectives import Objective
from tallow.objectives.loss import WHOLE, Vocabulary, summed_loss


class Learner(nn.Module):
    """A micro-batch in, its loss out, so that all weights are used within one `forward`."""

    vocabulary: Vocabulary

    def __init__(self, model: Layered) -> None:
        super().__init__()
        assert isinstance(model, nn.Module)
        self.model = model
        self.vocabulary = WHOLE
        self.layers: nn.ModuleList = model.layers

    def forward(self, packed: Packed, objective: Objective, drawn_targets: bool = False) -> tuple[Tensor, int]:
        """The loss of all targets together, in nats (float64), and their number.

        Args:
            drawn_targets: As `summed_loss` has it.
        """
        example = objective(packed)
        loss = summed_loss(self.model, example, drawn_targets=drawn_targets, vocabulary=self.vocabulary)
        return loss, int(example.loss_mask_BT.sum())
