"""Each optimizer: it learns, it resumes exactly, and it keeps as much as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, transition_matrix, weights
from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.models.decoder import Decoder
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.recipe import parse_section
from tallow.train.config import LoopConfig
from tallow.train.loop import train
from tallow.train.optimizer import make_optimizer
from tallow.train.optimizers.groups import split_hidden
from tallow.train.optimizers.method import Method
from tallow.train.optimizers.registry import AnyMethod
from tallow.train.update import Updater

METHODS: dict[str, type[Method]] = {
    kind.model_fields["name"].annotation.__args__[0]: kind for kind in get_args(get_args(AnyMethod)[0])
}
# so frequent that six steps see what is renewed from time to time, and once more after the third
FREQUENT: dict[str, dict[str, Any]] = {
    "galore": {"rank": 4, "every": 2},
    "shampoo": {"every": 2},
    "soap": {"every": 2},
    "sophia": {"every": 2},
}
LEARNING: dict[str, dict[str, Any]] = {"galore": {"rank": 4, "every": 20}, "sophia": {"every": 5}}
# learning rates that suit the toys below: a quadratic, and a Markov chain
RATES = {
    "adalomo": (0.1, 3e-2),
    "adafactor": (0.3, 0.1),
    "adam_mini": (0.05, 2e-2),
    "adamw": (0.1, 2e-2),
    "adamw8bit": (0.1, 2e-2),
    "galore": (0.1, 2e-2),
    "lion": (0.03, 5e-3),
    "lomo": (0.3, 0.3),
    "muon": (0.3, 2e-2),
    "schedule_free": (0.1, 3e-2),
    "shampoo": (0.1, 1e-2),
    "soap": (0.1, 2e-2),
    "sophia": (0.03, 3e-3),
}


class Stop(Exception):
    """Ends a run as suddenly as a signal that cannot be caught."""


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    config = loop_config(steps=6, save_every=3, optimizer={"name": name, **FREQUENT.get(name, {})})
    plain = markov_batches(config)

    def dying(step: int) -> list[Packed]:
        if step == 4:
            raise Stop
        return plain(step)

    whole, resumed = tiny_model(), tiny_model(seed=7)
    train(Layout(whole), causal, plain, config, new_run(tmp_path / "whole"))
    with pytest.raises(Stop):
        train(Layout(tiny_model()), causal, dying, config, new_run(tmp_path / "parts"))
    train(Layout(resumed), causal, plain, config, new_run(tmp_path / "parts"))
    assert torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(whole), weights(tiny_model()))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_reaches_the_optimum_of_a_badly_conditioned_quadratic(name: str) -> None:
    """Half the squared distance to a target after a linear map whose condition number is 30."""
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    map_MM = left @ torch.diag(torch.logspace(0, -1.5, 8)) @ left.T
    target = torch.randn(8, 6, generator=generator)
    weight, bias = nn.Parameter(torch.zeros(8, 6)), nn.Parameter(torch.zeros(6))
    rate = RATES[name][0]
    method = {"name": name, **LEARNING.get(name, {})}
    config = LoopConfig.model_validate({"optimizer": method, "learning_rate": rate, "weight_decay": 0.0})
    optimizer = make_optimizer({"layers.0.weight": weight, "norm.bias": bias}, config)
    steps = 600
    for step in range(1, steps + 1):
        if optimizer.wants_curvature(step):
            for parameter, curvature in ((weight, map_MM.square().sum(0)[:, None].expand(8, 6)), (bias, torch.ones(6))):
                parameter.grad = curvature.contiguous()
            optimizer.add_curvature(lambda gradient: gradient)
            optimizer.zero_grad()
        loss = (map_MM @ (weight - target)).square().sum() / 2 + (bias - 1).square().sum() / 2
        loss.backward()
        optimizer.set_learning_rate(rate if name == "schedule_free" else rate * (1 - step / (steps + 1)))
        optimizer.step()
        optimizer.zero_grad()
    optimizer.use_averages()
    first = (map_MM @ target).square().sum() / 2 + 3
    last = (map_MM @ (weight - target)).square().sum() / 2 + (bias - 1).square().sum() / 2
    assert last.item() < 2e-3 * first.item()


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"lomo"}))  # which is for models that have learned before
def test_approaches_the_entropy_of_a_markov_chain(tmp_path: Path, name: str) -> None:
    config = loop_config(
        steps=120,
        batch_size=16,
        sequence_length=32,
        warmup=0.1,
        log_every=60,
        learning_rate=RATES[name][1],
        optimizer={"name": name, **LEARNING.get(name, {})},
    )
    model = tiny_model()
    train(Layout(model), causal, markov_batches(config), config, new_run(tmp_path))
    own, best = losses(model, config)
    assert best - 0.002 < own < best + 0.03


def losses(model: Decoder, config: LoopConfig) -> tuple[float, float]:
    """The model's loss on fresh text of the chain, and that of who knows the chain."""
    log_matrix: Tensor = transition_matrix().log()
    own = best = 0.0
    for step in range(1000, 1010):
        [packed] = markov_batches(config)(step)
        example = causal(packed)
        with torch.no_grad():
            log_probs = model.logits(model(example.inputs_BT, example.context)).log_softmax(-1)
        own -= log_probs.gather(-1, example.targets_BT[..., None]).mean().item() / 10
        best -= log_matrix[example.inputs_BT, example.targets_BT].mean().item() / 10
    return own, best


@pytest.mark.parametrize("name", sorted(METHODS))
def test_keeps_at_least_what_the_memory_estimate_counts(name: str) -> None:
    parameters = {"layers.0.weight": nn.Parameter(torch.randn(128, 256))}
    config = LoopConfig.model_validate({"optimizer": {"name": name} | ({"rank": 16} if name == "galore" else {})})
    optimizer = make_optimizer(parameters, config)
    for _ in range(2):
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    kept = sum(tensor.nbytes for tensor in optimizer.state()[0].values()) / (128 * 256)
    assert METHODS[name].state_bytes <= kept < METHODS[name].state_bytes + 24
    if name in ("adafactor", "galore", "adam_mini", "lion", "muon", "adamw8bit"):
        assert kept < 4.5, "it is chosen because it keeps less than AdamW's 8 bytes"


def test_when_a_schedule_free_run_is_validated_changes_nothing(tmp_path: Path) -> None:
    runs = []
    for validate_every in (1, 100):
        config = loop_config(steps=5, optimizer="schedule_free", validate_every=validate_every)
        model = tiny_model()
        train(
            Layout(model),
            causal,
            markov_batches(config),
            config,
            new_run(tmp_path / str(validate_every)),
            validate=lambda _: {"validation_loss": 0.0},
        )
        runs.append(weights(model))
    assert torch.equal(*runs)


def test_a_finished_schedule_free_run_gives_its_averages_again(tmp_path: Path) -> None:
    config = loop_config(steps=5, optimizer="schedule_free")
    first, again = tiny_model(), tiny_model(seed=3)
    train(Layout(first), causal, markov_batches(config), config, new_run(tmp_path))
    train(Layout(again), causal, markov_batches(config), config, new_run(tmp_path))
    assert torch.equal(weights(first), weights(again))


def test_a_schedule_free_run_is_validated_and_ends_with_averages() -> None:
    """The weights to use are the averages of those at which steps of the inner optimizer end (arXiv 2405.15682)."""
    weight = nn.Parameter(torch.zeros(2, 2))
    config = loop_config(optimizer="schedule_free", weight_decay=0.0)
    optimizer = make_optimizer({"weight": weight}, config)
    optimizer.set_learning_rate(0.1)
    inner, inner_steps = torch.zeros(2, 2), []
    second = torch.zeros(2, 2)
    for step in range(1, 6):
        gradient = torch.randn(2, 2, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        optimizer.step()
        second = 0.999 * second + 0.001 * gradient**2
        inner = inner - 0.1 * gradient / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        inner_steps.append(inner)
    average = torch.stack(inner_steps).mean(0)
    trained = weight.detach().clone()
    with optimizer.averaged():
        torch.testing.assert_close(weight.detach(), average, atol=1e-6, rtol=1e-5)
    assert torch.equal(weight, trained)
    optimizer.use_averages()
    torch.testing.assert_close(weight.detach(), average, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(trained, average)


def test_a_recipe_names_an_optimizer_with_or_without_settings() -> None:
    bare = parse_section(LoopConfig, {"optimizer": "galore"}, "pretrain.loop")
    full = parse_section(LoopConfig, {"optimizer": {"name": "galore", "rank": 128}}, "pretrain.loop")
    assert bare == full
    assert parse_section(LoopConfig, bare.model_dump(mode="json"), "pretrain.loop") == bare
    assert LoopConfig().optimizer.name == "adamw"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "adamw", "rank": 3}, "unknown setting pretrain.loop.optimizer.adamw.rank"),
        ("adamx", "'adamx'.*'adamw'"),
        ({"name": "galore", "rank": 0}, "rank: input should be greater than 0"),
    ],
)
def test_what_an_optimizer_does_not_have_is_refused(value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_section(LoopConfig, {"optimizer": value}, "pretrain.loop")


def test_only_matrices_of_the_layers_are_hidden() -> None:
    hidden, others = split_hidden(dict(tiny_model().named_parameters()))
    assert all("proj" in name for name in hidden)
    assert {name.split(".")[-2] for name in others} >= {"embed", "norm", "attention_norm"}
    assert len(hidden) == 7


def test_lomo_goes_on_where_a_model_has_learned() -> None:
    """What a trained model lacks to the best loss is halved."""
    config, model = loop_config(batch_size=16, sequence_length=32), tiny_model()
    batches = markov_batches(config)
    updater = Updater(Layout(model), causal, config)
    for step in range(1, 31):
        updater.update(step, batches(step), 1e-2, "fp32")
    before, best = losses(model, config)
    updater = Updater(Layout(model), causal, loop_config(optimizer="lomo", weight_decay=0.0))
    for step in range(1, 101):
        updater.update(step, batches(step), RATES["lomo"][1] * (1 - step / 101), "fp32")
    after, _ = losses(model, config)
    assert before - best > 0.03
    assert after - best < (before - best) / 2


@pytest.mark.parametrize("name", ["lomo", "adalomo"])
def test_what_is_updated_in_the_backward_pass_keeps_no_gradient(name: str) -> None:
    """There is never more than one, and all weights move."""
    model = tiny_model()
    before = {key: value.clone() for key, value in model.named_parameters()}
    updater = Updater(Layout(model), causal, loop_config(optimizer=name))
    most = 0

    def count(_parameter: Tensor) -> None:
        nonlocal most
        most = max(most, sum(parameter.grad is not None for parameter in model.parameters()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    found = updater.find(1, markov_batches(loop_config())(0), 0.1, "fp32")
    plain = Updater(Layout(tiny_model()), causal, loop_config()).find(1, markov_batches(loop_config())(0), 0.1, "fp32")
    assert most == 1
    assert found.loss == plain.loss
    assert found.gradient_norm == pytest.approx(plain.gradient_norm, rel=1e-5)
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters())


def test_what_is_updated_in_the_backward_pass_takes_whole_batches() -> None:
    config = loop_config(optimizer="adalomo", micro_batch_size=2)
    with pytest.raises(UsageError, match="whole batch"):
        Updater(Layout(tiny_model()), causal, config).update(1, markov_batches(config)(0), 0.1, "fp32")
    with pytest.raises(UsageError, match="fp16"):
        loop_config(optimizer="adalomo", precision="fp16")
