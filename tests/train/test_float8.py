from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model, transition_matrix, weights
from torch import Tensor, nn

from tallow.errors import UsageError
from tallow.models.formats import load_model, save_model
from tallow.objectives.causal import causal
from tallow.parallel import ALONE
from tallow.parallel.recompute import Recompute
from tallow.train.float8 import Float8Linear, use_float8
from tallow.train.loop import train
from tallow.train.placing import lay_out
from tallow.train.update import Updater

CPU = torch.device("cpu")


def by_hand(x: Tensor, bits: int, least_exponent: int, largest: float) -> Tensor:
    """Rounded to a float of so many bits of fraction, by arithmetic in fp64, with the scale that fills its range."""
    scale = x.double().abs().max() / largest
    scaled = x.double() / scale.float().double()
    exponents = scaled.abs().clamp(min=2.0**least_exponent).log2().floor()
    unit = 2.0 ** (exponents - bits)
    return (scaled / unit).round().mul(unit).clamp(-largest, largest) * scale.float().double()


def e4m3(x: Tensor) -> Tensor:
    return by_hand(x, 3, -6, 448.0)


def e5m2(x: Tensor) -> Tensor:
    return by_hand(x, 2, -14, 57344.0)


@pytest.mark.parametrize("rows", [32, 37])
@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_rounded_tensors(rows: int, bias: bool) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(48, 32, bias)
    x = torch.randn(1, rows, 48, requires_grad=True)
    outer = torch.randn(1, rows, 32) * 1e-4  # gradients are small: without a scale e5m2 would lose them
    layer = Float8Linear(linear)
    y = layer(x)
    y.backward(outer)
    assert x.grad is not None
    assert layer.weight.grad is not None
    rounded_x, rounded_w, rounded_g = e4m3(x.detach()[0]), e4m3(linear.weight.detach()), e5m2(outer[0])
    expected = rounded_x @ rounded_w.T + (linear.bias.detach().double() if bias else 0.0)
    torch.testing.assert_close(y.detach()[0].double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad[0].double(), rounded_g @ rounded_w, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(layer.weight.grad.double(), rounded_g.T @ rounded_x, rtol=1e-4, atol=1e-9)
    if bias:
        torch.testing.assert_close(layer.bias.grad, outer[0].sum(0))
    # and that is another thing than not to round at all
    assert (expected - linear(x.detach())[0].double()).abs().max() > 1e-3


def test_under_autocast_it_reads_and_writes_bfloat16() -> None:
    layer = Float8Linear(nn.Linear(32, 16))
    x = torch.randn(16, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("how", ["selective", "block"])
def test_what_layers_compute_again_is_the_same(how: Recompute) -> None:
    config, learned = loop_config(precision="float8"), list[Tensor]()
    for recompute in ("none", how):
        model = tiny_model()
        layout = lay_out(model, config, ALONE)
        layout.recompute(recompute)
        Updater(layout, causal, config).update(1, markov_batches(config)(0), 1e-2, "float8")
        learned.append(weights(model))
    assert torch.equal(*learned)


def test_what_is_not_finite_is_seen_in_the_result() -> None:
    layer = Float8Linear(nn.Linear(16, 16, bias=False))
    for bad in (math.nan, math.inf):
        x = torch.ones(16, 16)
        x[3, 4] = bad
        assert not layer(x)[3].isfinite().all()
    assert layer(torch.zeros(16, 16)).eq(0).all()


def test_only_linear_layers_within_layers_are_replaced_and_keep_their_names() -> None:
    model = tiny_model()
    before = dict(model.named_parameters())
    use_float8(model, CPU, processes=1)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    replaced = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    wanted = {"attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"}
    wanted |= {f"feed_forward.{name}_proj" for name in ("gate", "up", "down")}
    assert replaced == {f"layers.0.{name}" for name in wanted}


def test_sizes_that_do_not_fit_are_left_alone_or_refused() -> None:
    model = tiny_model()
    use_float8(model, CPU, processes=2)  # keys and values have 16 outputs, and each process would have 8 of them
    assert not isinstance(model.get_submodule("layers.0.attention.k_proj"), Float8Linear)
    assert isinstance(model.get_submodule("layers.0.attention.q_proj"), Float8Linear)
    with pytest.raises(UsageError, match="multiples of 128"):
        use_float8(tiny_model(), CPU, processes=8)


def test_a_model_that_was_trained_so_is_saved_as_any_other(tmp_path: Path) -> None:
    model = tiny_model()
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    use_float8(model, CPU, processes=1)
    save_model(model, None, tmp_path / "model")
    loaded = load_model(tmp_path / "model", dtype=torch.float32)
    assert not any(isinstance(module, Float8Linear) for module in loaded.modules())
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name])


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 9), False), ((9, 0), False)])
def test_gpus_without_it_are_refused(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    model = tiny_model()
    if refused:
        with pytest.raises(UsageError, match=r"8\.9, and it has 8\.0"):
            use_float8(model, torch.device("cuda", 0), processes=1)
    else:
        use_float8(model, torch.device("cuda", 0), processes=1)
        assert isinstance(model.get_submodule("layers.0.attention.q_proj"), Float8Linear)


def test_it_learns_a_markov_chain(tmp_path: Path) -> None:
    """The best loss is the chain's entropy; a model that learns nothing stays at that of its stationary states."""
    matrix = transition_matrix().double()
    stationary = torch.linalg.matrix_power(matrix, 64)[0]
    entropy = -(stationary[:, None] * matrix * matrix.log()).sum().item()
    unigram = -(stationary * stationary.log()).sum().item()
    config = loop_config(steps=80, batch_size=16, learning_rate=1e-2, precision="float8", device="cpu")
    layout = lay_out(tiny_model(), config, ALONE)
    result = train(layout, causal, markov_batches(config), config, new_run(tmp_path))
    assert result["loss"] < entropy + 0.1 * (unigram - entropy)
