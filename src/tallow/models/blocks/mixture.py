"""A mixture of experts: several feed-forwards in a layer, of which a router chooses some for each token.

Sources: sparsely gated mixtures (arXiv 1701.06538), Mixtral (2401.04088, section 2.1), OLMoE (2409.02060). No expert
has a capacity, so no token is dropped, and a token's result does not depend on the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tallow.kernels.fused import gate
from tallow.models.blocks.balance import add_balance_loss
from tallow.models.blocks.context import Context
from tallow.models.config import Activation, DecoderConfig


class Mixture(nn.Module):
    """Experts and their router; the result is the sum of what a token's experts give, weighted by their scores.

    In training it counts how often each expert is chosen, until `take_loads`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = Experts(config)
        self.num_experts, self.experts_per_token = config.num_experts, config.experts_per_token
        self.scores, self.normalize_weights = config.router_scores, config.normalize_expert_weights
        self.balance, self.balance_weight = config.router_balance, config.balance_weight
        self._loads_E: Tensor | None = None

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        logits_NE = self.router(x_ND)
        scores_NE = logits_NE.softmax(-1) if self.scores == "softmax" else logits_NE.sigmoid()
        experts_NK = self.router.choose(scores_NE)
        if self.training:
            self._count(experts_NK, context)
            if self.balance == "loss":
                scores_NE = add_balance_loss(scores_NE, experts_NK, context, self.balance_weight)
        weights_NK = scores_NE.gather(1, experts_NK)
        if self.normalize_weights:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        return self.experts(x_ND, experts_NK, weights_NK).view_as(x_BTD)

    def take_loads(self) -> Tensor:
        """Tokens that each expert has computed in training since this was last asked, padding left aside: E, int64."""
        loads_E, self._loads_E = self._loads_E, None
        return torch.zeros(self.num_experts, dtype=torch.int64) if loads_E is None else loads_E

    def move_bias(self, loads_E: Tensor) -> None:
        """Make experts with less than the mean load likelier to be chosen, and those with more less likely.

        Each bias goes one step up or down (loss-free balancing, arXiv 2408.15664, algorithm 1); without biases nothing
        happens.

        Args:
            loads_E: Tokens that each expert computed in the last update, in all its batches on all processes.
        """
        bias_E = self.router.bias
        if bias_E is None:
            return
        loads_E = loads_E.to(bias_E.device, torch.float64)
        with torch.no_grad():
            bias_E.add_((loads_E.mean() - loads_E).sign().to(bias_E.dtype), alpha=self.balance_weight)

    def _count(self, experts_NK: Tensor, context: Context) -> None:
        if context.padding_BT is not None:
            experts_NK = experts_NK[~context.padding_BT.flatten()]
        loads_E = experts_NK.flatten().bincount(minlength=self.num_experts)
        self._loads_E = loads_E if self._loads_E is None else self._loads_E + loads_E


class Router(nn.Module):
    """Which experts compute a token, and with what weight.

    It computes in fp32 whatever the rest does: rounded scores change the choice (arXiv 2101.03961, section 2.4).
    `bias`, where there is one, shifts the choice alone; it has no gradient, for the loss does not move it.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.weight = _random(config.num_experts, config.hidden_size)
        self.experts_per_token = config.experts_per_token
        has_bias = config.router_balance == "bias"
        self.bias = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False) if has_bias else None

    def forward(self, x_ND: Tensor) -> Tensor:
        """Logits of the experts, N E, fp32."""
        with torch.autocast(x_ND.device.type, enabled=False):
            return F.linear(x_ND.float(), self.weight.float())

    def choose(self, scores_NE: Tensor) -> Tensor:
        """The experts with the highest scores, N K."""
        ranked_NE = scores_NE if self.bias is None else scores_NE + self.bias.float()
        return ranked_NE.topk(self.experts_per_token, dim=-1).indices


class Experts(nn.Module):
    """Gated feed-forwards (arXiv 2002.05202) of one shape, their weights stacked.

    The tokens are sorted by expert, so that each expert computes all of its tokens at once.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        experts, hidden, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.num_experts = experts
        self.gate_proj = Stack(experts, inner, hidden)
        self.up_proj = Stack(experts, inner, hidden)
        self.down_proj = Stack(experts, hidden, inner)
        self.activation: Activation = config.activation

    def forward(self, x_ND: Tensor, experts_NK: Tensor, weights_NK: Tensor) -> Tensor:
        """The weighted sum of the experts chosen for each token, N D."""
        order_M = experts_NK.flatten().argsort(stable=True)
        loads_E = experts_NK.flatten().bincount(minlength=self.num_experts)
        out_MD = self.compute(x_ND[order_M // experts_NK.shape[1]], loads_E)
        # back in the order of the tokens, where sums do not depend on how a device schedules additions
        out_NKD = out_MD[order_M.argsort()].unflatten(0, experts_NK.shape)
        return (out_NKD * weights_NK[..., None]).sum(1).to(x_ND.dtype)

    def compute(self, x_MD: Tensor, loads_E: Tensor) -> Tensor:
        """What each expert makes of its tokens, M D.

        Args:
            x_MD: The tokens of the first expert, then those of the second one, and so on.
            loads_E: How many each has.
        """
        gates_EID, ups_EID, downs_EDI = (stack.weight for stack in (self.gate_proj, self.up_proj, self.down_proj))
        return compute_experts(x_MD, loads_E, gates_EID, ups_EID, downs_EDI, self.activation)

    def num_parameters_each(self) -> int:
        """Weights of one expert."""
        return sum(parameter[0].numel() for parameter in self.parameters())


def compute_experts(
    x_MD: Tensor, loads_E: Tensor, gates_EID: Tensor, ups_EID: Tensor, downs_EDI: Tensor, activation: Activation
) -> Tensor:
    """What each of some experts makes of its tokens, which lie one expert's after the other's, M D.

    All weights get a gradient, also where there are no tokens.
    """
    # a slice for each expert would make a gradient of all experts for each; of `unbind` there is one for all
    each = zip(x_MD.split(loads_E.tolist()), gates_EID.unbind(), ups_EID.unbind(), downs_EDI.unbind(), strict=True)
    return torch.cat(
        [
            F.linear(gate(F.linear(x_nD, gate_ID), F.linear(x_nD, up_ID), activation), down_DI)
            for x_nD, gate_ID, up_ID, down_DI in each
            if len(x_nD) or not len(x_MD)
        ]
    )


class Stack(nn.Module):
    """The weights of one linear layer of each expert: E O I."""

    def __init__(self, experts: int, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = _random(experts, outputs, inputs)


def _random(*shape: int) -> nn.Parameter:
    """A weight as linear layers of PyTorch start with; on the meta device without drawing any (see `linear`)."""
    weight = nn.Parameter(torch.empty(shape))
    if not weight.is_meta:
        nn.init.uniform_(weight, -(shape[-1] ** -0.5), shape[-1] ** -0.5)
    return weight
