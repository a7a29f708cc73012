"""µP as it trains: what is learned does not depend on the width, and learning rates differ by parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.test_optimizers import METHODS
from tests.train.toys import VOCABULARY, loop_config, markov_batches, new_run, tiny_model, weights
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tallow.errors import UsageError
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.formats import save_model
from tallow.models.initialization import BaseShape, Mup, Normal
from tallow.models.skeletons import learning_rate_factors, new_model
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.train.loop import train
from tallow.train.optimizer import make_optimizer

MUP = Mup(name="mup", base=BaseShape(hidden_size=32))
IDS_BT = torch.arange(16)[None] % VOCABULARY


def shape(width: int, **choices: Any) -> DecoderConfig:
    sizes = {
        "hidden_size": width,
        "num_heads": width // 16,
        "num_kv_heads": width // 16,
        "intermediate_size": 2 * width,
    }
    common = {"vocab_size": VOCABULARY, "max_positions": 64, "num_layers": 2}
    return DecoderConfig.model_validate({**common, **sizes, **choices})


def learn(config: DecoderConfig, rule: Normal | Mup, steps: int, directory: Path, rate: float = 0.02) -> Decoder:
    model = new_model(config, 0, rule)
    assert isinstance(model, Decoder)
    loop = loop_config(
        steps=steps,
        warmup=0,
        schedule="constant",
        learning_rate=rate,
        learning_rate_factors=learning_rate_factors(config, rule),
    )
    train(Layout(model), causal, markov_batches(loop), loop, new_run(directory))
    return model


def sizes(model: Decoder) -> tuple[Tensor, Tensor]:
    """Root mean squares of what the layers leave and of the logits."""
    seen: list[Tensor] = []
    hook = model.layers[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        logits_BTV = model.logits(model(IDS_BT, SequenceContext.plain(1, 16)))
    hook.remove()
    return seen[0].square().mean().sqrt(), logits_BTV.square().mean().sqrt()


@pytest.mark.parametrize("choices", [{}, {"tied_embeddings": False}, {"num_experts": 4, "experts_per_token": 2}])
def test_activations_after_some_steps_do_not_grow_with_the_width(tmp_path: Path, choices: dict[str, Any]) -> None:
    """The coordinate check of the paper (section 5 and figure 5), at eight times the width of the base."""
    growth = {}
    for rule in (MUP, Normal(name="depth_scaled")):
        narrow, wide = (
            sizes(learn(shape(width, **choices), rule, 4, tmp_path / f"{rule.name}{width}")) for width in (32, 256)
        )
        growth[rule.name] = [float(after / before) for before, after in zip(narrow, wide, strict=True)]
    assert all(0.6 < factor < 1.6 for factor in growth["mup"]), growth
    assert max(growth["depth_scaled"]) > 3, growth


@pytest.mark.parametrize("name", ["mup", "depth_scaled"])
def test_the_same_of_an_encoder(name: str) -> None:
    """Its layers normalize what they leave, so it is the logits that grow."""
    sizes = {}
    for width in (32, 256):
        config = EncoderConfig(
            vocab_size=64, hidden_size=width, num_layers=2, num_heads=width // 16, intermediate_size=2 * width
        )
        rule = MUP if name == "mup" else Normal(name="depth_scaled")
        model, context = new_model(config, 0, rule), BidirectionalContext.plain(1, 64)
        rates = {"learning_rate_factors": learning_rate_factors(config, rule)}
        optimizer = make_optimizer(dict(model.named_parameters()), loop_config(**rates))
        ids_BT = torch.arange(64)[None]
        for _ in range(4):
            loss_logits_TV = model.logits(model(ids_BT, context))[0]
            functional.cross_entropy(loss_logits_TV, ids_BT[0].flip(0)).backward()
            optimizer.set_learning_rate(3e-3)
            optimizer.step()
            optimizer.zero_grad()
        sizes[width] = model.logits(model(ids_BT, context)).square().mean().sqrt().item()
    growth = sizes[256] / sizes[32]
    assert 0.3 < growth < 1.5 if name == "mup" else growth > 3


@pytest.mark.parametrize("choices", [{}, {"tied_embeddings": False}, {"norm_offset": True, "family": "gemma2"}])
def test_other_programs_compute_the_same_logits(tmp_path: Path, choices: dict[str, Any]) -> None:
    gemma = {"norm_placement": "both", "embedding_scale": True, "activation": "gelu_tanh", "attention_scale": 0.25}
    gemma |= {"window": 8, "sliding_layers": (True, False)}
    config = shape(64, **choices, **({**gemma, "head_dim": 16} if "family" in choices else {}))
    model = learn(config, MUP, 3, tmp_path / "run").eval()
    save_model(model, None, tmp_path / "model")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    with torch.no_grad():
        ours_BTV = model.logits(model(IDS_BT, SequenceContext.plain(1, 16)))
        torch.testing.assert_close(theirs(IDS_BT).logits, ours_BTV, rtol=0, atol=1e-5)


def test_a_smaller_gain_that_learns_less_is_a_factor_on_the_logits(tmp_path: Path) -> None:
    """The tied output with the paper's factor in the forward pass (table 8) learns the same to rounding."""
    config = shape(128)
    folded = new_model(config, 0, MUP)
    assert isinstance(folded, Decoder)
    written = MultipliedDecoder(config)
    with torch.no_grad():
        for name, parameter in written.named_parameters():
            parameter.copy_(folded.get_parameter(name))
        written.norm.weight.fill_(1.0)
    factors = learning_rate_factors(config, MUP)
    for number, (model, rates) in enumerate(
        ((folded, factors), (written, {name: factor for name, factor in factors.items() if name != "norm.weight"}))
    ):
        loop = loop_config(steps=6, learning_rate=5e-3, epsilon=1e-15, clip_norm=1e9, learning_rate_factors=rates)
        train(Layout(model), causal, markov_batches(loop), loop, new_run(tmp_path / str(number)))
    context = SequenceContext.plain(1, 16)
    with torch.no_grad():
        torch.testing.assert_close(
            folded.logits(folded(IDS_BT, context)), written.logits(written(IDS_BT, context)), rtol=1e-3, atol=1e-4
        )


class MultipliedDecoder(Decoder):
    """A decoder 128 wide whose logits are divided by the growth since a base of 32."""

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        return super().logits(hidden_BTD) / 4


OTHERS = {"muon": {}, "soap": {"every": 1}, "shampoo": {"every": 1}, "galore": {"rank": 4}}
"""Optimizers that have groups of their own, with settings that fit a small matrix."""


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adam_mini", "lion", "schedule_free", *OTHERS])
def test_a_factor_is_as_a_smaller_learning_rate(name: str) -> None:
    """A matrix with a factor of 1/8 goes where it goes alone with an eighth of the learning rate; decay is the same."""
    start = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))

    def moved(rate: float, factors: dict[str, float], decay: float) -> Tensor:
        parameters = {"layers.0.weight": nn.Parameter(start.clone()), "layers.1.weight": nn.Parameter(start.clone())}
        optimizer = make_optimizer(
            parameters,
            loop_config(
                optimizer={"name": name, **OTHERS.get(name, {})},
                learning_rate=rate,
                learning_rate_factors=factors,
                weight_decay=decay,
            ),
        )
        for step in range(3):
            for parameter in parameters.values():
                parameter.grad = torch.randn(start.shape, generator=torch.Generator().manual_seed(step))
            optimizer.set_learning_rate(rate)
            optimizer.step()
        return parameters["layers.1.weight"].detach()

    torch.testing.assert_close(moved(0.08, {"layers.1.*": 0.125}, 0.1), moved(0.01, {}, 0.8), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(moved(0.08, {"layers.1.*": 0.125}, 0.1), moved(0.08, {}, 0.1), rtol=1e-4, atol=1e-5)


def test_factors_of_several_patterns_are_multiplied_and_kept_in_checkpoints(tmp_path: Path) -> None:
    factors = {"layers.*": 0.5, "*.attention.*": 0.5}
    config = loop_config(steps=4, save_every=2, learning_rate_factors=factors)
    whole = tiny_model()
    optimizer = make_optimizer(dict(whole.named_parameters()), config)
    optimizer.set_learning_rate(1.0)
    [rates] = [
        {
            name: group["lr"]
            for name, value in whole.named_parameters()
            for group in part.param_groups
            if any(value is other for other in group["params"])
        }
        for part in optimizer.parts
    ]
    assert rates["layers.0.attention.q_proj.weight"] == 0.25
    assert rates["layers.0.feed_forward.up_proj.weight"] == 0.5
    assert rates["embed.weight"] == 1.0
    train(Layout(whole), causal, markov_batches(config), config, new_run(tmp_path / "whole"))
    half = loop_config(steps=4, save_every=2, learning_rate_factors=factors)
    again = tiny_model(seed=3)
    (tmp_path / "whole" / "checkpoints" / "step-00000004").rename(tmp_path / "last")
    train(Layout(again), causal, markov_batches(half), half, new_run(tmp_path / "whole"))
    assert torch.equal(weights(again), weights(whole))
    with pytest.raises(UsageError, match="loop"):
        other = loop_config(steps=4, save_every=2)
        train(Layout(again), causal, markov_batches(half), other, new_run(tmp_path / "whole"))


def test_a_pattern_without_parameters_is_refused() -> None:
    with pytest.raises(UsageError, match=r"names layer\.\*, which is no parameter"):
        make_optimizer(dict(tiny_model().named_parameters()), loop_config(learning_rate_factors={"layer.*": 0.5}))


def test_who_moves_entries_says_so() -> None:
    """After one step the mean movement of a matrix's entries is near the learning rate, at any size."""
    for name in (name for name, kind in METHODS.items() if kind.moves_entries):
        for width in (32, 256):
            weight = nn.Parameter(torch.zeros(width, width))
            optimizer = make_optimizer({"layers.0.weight": weight}, loop_config(optimizer=name, learning_rate=0.01))
            weight.grad = 1e-3 * torch.randn(width, width, generator=torch.Generator().manual_seed(1))
            optimizer.set_learning_rate(0.01)
            optimizer.step()
            optimizer.use_averages()
            assert weight.abs().mean().item() == pytest.approx(0.01, rel=0.25), name
