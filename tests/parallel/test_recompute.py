from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.parallel.layouts import KINDS, make, make_updater, update
from tests.train.toys import loop_config, markov_batches, new_run, pack, tiny_model, weights

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.objectives.causal import causal
from tallow.objectives.loss import summed_loss
from tallow.parallel import Layout
from tallow.parallel.recompute import Recompute, layers_to_recompute, measuring, recompute
from tallow.train import recomputation
from tallow.train.loop import train
from tallow.train.update import Updater


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["selective", "block"])
def test_learns_the_same_bit_for_bit(kind: str, how: Recompute) -> None:
    layouts = [Layout(make(kind, seed=0)) for _ in range(2)]
    layouts[1].recompute(how)
    updaters = [make_updater(layout, kind) for layout in layouts]
    for step in (1, 2, 3):
        plain, again = (update(updater, step, size=4) for updater in updaters)
        assert plain == again
    plain_weights, again_weights = (layout.gather() for layout in layouts)
    assert all(torch.equal(again_weights[name], value) for name, value in plain_weights.items())


def live_bytes(how: Recompute, count: int) -> int:
    """Bytes that a model's forward pass leaves for its backward pass."""
    model = Decoder(DecoderConfig(vocab_size=64, hidden_size=64, num_layers=4, intermediate_size=192))
    initialize(model, seed=0)
    recompute(list(model.layers)[:count], how)
    example = causal(pack(torch.ones(4, 65, dtype=torch.int64)))
    with torch.profiler.profile(profile_memory=True) as profile:
        loss = summed_loss(model, example)
    loss.backward()
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def test_what_is_kept_is_less() -> None:
    plain, selective, block = (live_bytes(how, 4) for how in ("none", "selective", "block"))
    layer = 4 * 64 * 64 * 4  # the hidden states of a layer
    assert plain > 50 * layer
    assert selective < 0.9 * plain
    assert block < 0.25 * plain
    assert block < live_bytes("block", 2) < plain


@pytest.mark.parametrize("how", ["selective", "block"])
def test_what_a_layer_keeps_is_measured(how: Recompute) -> None:
    """With a layer less that forgets, so much more is alive as was measured."""
    model = Decoder(DecoderConfig(vocab_size=64, hidden_size=64, num_layers=4, intermediate_size=192))
    example = causal(pack(torch.ones(4, 65, dtype=torch.int64)))
    with measuring(model.layers[0], how) as memory:
        summed_loss(model, example).backward()
    freed = (live_bytes("none", 4) - live_bytes(how, 4)) / 4
    assert memory.kept - memory.remembered == pytest.approx(freed, rel=0.15)


@pytest.mark.parametrize(("budget", "expected"), [(400, 0), (399, 2), (320, 2), (319, 3), (241, 3), (239, 4), (0, 4)])
def test_as_many_layers_forget_as_the_budget_asks_for(budget: float, expected: int) -> None:
    """Of four layers each keeps 100 and, if it forgets, 20; while it has its 100 again the others keep theirs."""
    assert layers_to_recompute(4, 100, 80, budget) == expected
    if 0 < expected < 4:
        assert expected * 20 + (4 - expected) * 100 + 80 <= budget


def test_the_budget_is_kept_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, spare = tiny_model(), tiny_model()
    config = loop_config(steps=3)
    train(Layout(plain), causal, markov_batches(config), config, new_run(tmp_path / "plain"))
    config = loop_config(steps=3, recompute="block", activation_mb=0.001)
    train(Layout(spare), causal, markov_batches(config), config, new_run(tmp_path / "spare"))
    assert "1 of 1 layers compute again" in capsys.readouterr().err
    assert torch.equal(weights(plain), weights(spare))


def test_a_budget_without_recomputation_is_refused() -> None:
    with pytest.raises(UsageError, match="activation_mb"):
        loop_config(activation_mb=100)


@pytest.mark.parametrize(("layers_left", "expected"), [(-1.0, 4), (2.5, None), (4.5, 0)])
def test_auto_gives_layers_what_the_device_has_left(
    monkeypatch: pytest.MonkeyPatch, layers_left: float, expected: int | None
) -> None:
    model = Decoder(DecoderConfig(vocab_size=64, hidden_size=64, num_layers=4, intermediate_size=192))
    initialize(model, seed=0)
    layout, packed = Layout(model), pack(torch.ones(4, 65, dtype=torch.int64))
    config = loop_config(recompute="block", activation_mb="auto")
    updater = Updater(layout, causal, config)
    memories = []
    for number in (1, 2):
        with measuring(layout.layers[0], "block") as memory:
            updater.rehearse(packed.first_rows(number), "fp32")
        memories.append(memory)
    layer = 4 * (memories[1].kept - memories[0].kept)
    kept_again = 4 * (memories[1].remembered - memories[0].remembered)
    # gradients in fp32, a copy in half the bits, and AdamW's two moments
    others = model.num_parameters() * (4 + 2 + 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    free = int(2 * (others + layers_left * layer / recomputation.KEPT_SHARE))
    monkeypatch.setattr(recomputation, "free_bytes", lambda: free)
    counts: list[int | None] = []
    monkeypatch.setattr(layout, "recompute", lambda _how, count: counts.append(count))
    recomputation.fit_recomputation(layout, lambda rows: updater.rehearse(rows, "fp32"), packed, config)
    assert counts == [layers_to_recompute(4, layer, layer - kept_again, layers_left * layer)]
    assert expected is None or counts == [expected]
