"""Experts learn the toy to its optimum; balanced, they are used alike, and unbalanced they are not."""

from __future__ import annotations

import pytest
import torch

from tallow.models.config import DecoderConfig, RouterBalance
from tallow.models.decoder import Decoder, initialize
from tallow.objectives.causal import causal
from tallow.parallel import ALONE
from tallow.train.update import Updater

from .toys import VOCABULARY, loop_config, markov_batches, transition_matrix

STEPS, LAST = 220, 40
SHAPE = {"vocab_size": VOCABULARY, "max_positions": 64, "hidden_size": 32, "num_layers": 1, "num_heads": 2}
EXPERTS = {"num_kv_heads": 1, "intermediate_size": 16, "num_experts": 8, "experts_per_token": 1}


def learn(balance: RouterBalance, weight: float) -> tuple[float, float]:
    """In the last updates: nats above the best loss, and the largest load of an expert in multiples of the mean."""
    choices = {"normalize_expert_weights": False, "router_balance": balance, "router_balance_weight": weight}
    model = Decoder(DecoderConfig.model_validate({**SHAPE, **EXPERTS, **choices}))
    initialize(model, seed=0)
    config = loop_config(batch_size=16, sequence_length=32, learning_rate=1e-2)
    updater, batches, log_matrix = (
        Updater(model, causal, config, ALONE),
        markov_batches(config),
        transition_matrix().log(),
    )
    [mixture] = model.mixtures()
    excess, loads_E = 0.0, torch.zeros(mixture.num_experts)
    for step in range(STEPS):
        [packed] = batches(step)
        update = updater.update(step, [packed], config.learning_rate, "fp32")
        step_loads_E = mixture.take_loads()
        mixture.move_bias(step_loads_E)
        if step >= STEPS - LAST:
            best = -log_matrix[packed.tokens_BT[:, :-1], packed.tokens_BT[:, 1:]].mean().item()
            excess += (update.loss - best) / LAST
            loads_E += step_loads_E
    return excess, (loads_E.max() / loads_E.mean()).item()


@pytest.mark.parametrize(
    ("balance", "weight", "least", "most"), [("none", 1.0, 3.5, 8.0), ("loss", 0.1, 1.0, 1.3), ("bias", 0.02, 1.0, 1.7)]
)
def test_loads(balance: RouterBalance, weight: float, least: float, most: float) -> None:
    """Over four seeds the excess was at most 0.051, the largest load 4.15 to 6.15, 1.13 to 1.17 and 1.28 to 1.52."""
    excess, largest_load = learn(balance, weight)
    assert -0.01 < excess < 0.06
    assert least < largest_load < most
