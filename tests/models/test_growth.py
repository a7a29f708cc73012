"""Grown models compute what they did before, here and in `transformers`, and go on learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies
from tests.train.toys import loop_config, markov_batches, new_run, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from tallow.errors import UsageError
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.formats import load_encoder, load_model, save_model
from tallow.models.growth import Growth, grow, grown_config
from tallow.models.growth.depth import deepen, deeper
from tallow.models.growth.width import widen, wider
from tallow.models.skeletons import Model, ModelConfig, new_model
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.recipe import parse_section
from tallow.train.loop import train

TOLERANCE = 1e-5
COMMON = {"vocab_size": 31, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_positions": 32}
LLAMA = {**COMMON, "num_kv_heads": 2, "intermediate_size": 48}
MIXTURE = {"num_experts": 4, "experts_per_token": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama untied": {**LLAMA, "tied_embeddings": False, "norm_eps": 1e-2},
    "qwen2": {**LLAMA, "family": "qwen2", "qkv_bias": True, "window": 4, "sliding_layers": (False, True)},
    "qwen3": {**LLAMA, "family": "qwen3", "qk_norm": "head", "qkv_bias": True, "attention_output_bias": True},
    "gpt2": {
        **{**LLAMA, "num_kv_heads": 4, "family": "gpt2", "norm": "layer", "norm_bias": True, "gated": False},
        **{"activation": "gelu_tanh", "positions": "learned", "qkv_bias": True},
        **{"attention_output_bias": True, "feed_forward_bias": True, "norm_eps": 1e-3},
    },
    "gemma2": {
        **{**LLAMA, "family": "gemma2", "norm_placement": "both", "norm_offset": True, "embedding_scale": True},
        **{"activation": "gelu_tanh", "head_dim": 8, "attention_scale": 0.2, "attention_softcap": 2.0},
        **{"logit_softcap": 3.0, "window": 4, "sliding_layers": (True, False)},
    },
    "olmo2": {**LLAMA, "family": "olmo2", "norm_placement": "post", "qk_norm": "hidden", "tied_embeddings": False},
    "gpt_neox": {
        **{**LLAMA, "num_kv_heads": 4, "family": "gpt_neox", "norm": "layer", "norm_bias": True, "gated": False},
        **{"activation": "gelu", "qkv_bias": True, "attention_output_bias": True, "feed_forward_bias": True},
        **{"parallel_residual": True, "tied_embeddings": False},
    },
    "mixtral": {**LLAMA, **MIXTURE, "family": "mixtral"},
    "bert": {**COMMON, "intermediate_size": 48, "num_token_types": 2},
}
WIDER = {"doubled": {"hidden_size": 64}, "tripled": {"hidden_size": 96, "intermediate_size": 52}}
DEEPER = {"deeper": {"num_layers": 5}, "all": {"num_layers": 3, "hidden_size": 64}}


def make(kind: str, seed: int = 0) -> Model:
    """A model whose every weight shows."""
    section: type[ModelConfig] = EncoderConfig if kind == "bert" else DecoderConfig
    return shown(new_model(parse_section(section, CONFIGS[kind], "model"), seed))


def shown(model: Model) -> Model:
    """The model with weights so large that each shows in its logits."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter * 8 if parameter.ndim > 1 else parameter)
            if parameter.ndim == 1 and parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


IDS_BT = torch.arange(22).view(2, 11) * 7 % 31


def logits(model: Model) -> Tensor:
    kind = BidirectionalContext if isinstance(model.config, EncoderConfig) else SequenceContext
    with torch.no_grad():
        return model.logits(model(IDS_BT, kind.plain(2, 11)))


def check(kind: str, settings: dict[str, Any], directory: Path) -> Model:
    """Grow a model and see that it computes the same, also in `transformers` after it is saved."""
    model = make(kind)
    before, growth = logits(model), Growth.model_validate(settings)
    assert before.std() > 0.2
    grown = grow(model, growth, seed=0).eval()
    assert grown.config == grown_config(model.config, growth)
    assert grown.num_parameters() > 1.2 * model.num_parameters()
    torch.testing.assert_close(logits(grown), before, rtol=0, atol=TOLERANCE)
    save_model(grown, None, directory)
    loaded = (load_encoder if kind == "bert" else load_model)(directory)
    torch.testing.assert_close(logits(loaded), before, rtol=0, atol=TOLERANCE)
    auto = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    theirs = auto.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS_BT).logits, before, rtol=0, atol=5 * TOLERANCE)
    return grown


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("how", WIDER)
def test_a_wider_model_computes_the_same(tmp_path: Path, kind: str, how: str) -> None:
    check(kind, WIDER[how], tmp_path)


# 1.5 heads of keys and values come out whole only where they are 4; OLMo 2's heads can only be multiplied
UNEVEN: list[tuple[str, dict[str, int]]] = [
    *(
        (kind, {"num_kv_heads": 3, "hidden_size": 48})
        for kind in ("llama untied", "qwen2", "qwen3", "gemma2", "mixtral")
    ),
    *((kind, {"hidden_size": 48}) for kind in ("gpt2", "gpt_neox")),
    *((kind, {"hidden_size": 40, "num_heads": 4}) for kind in ("llama", "qwen3", "gemma2", "olmo2")),
    ("llama", {"num_heads": 16, "num_kv_heads": 4}),
]


@pytest.mark.parametrize(("kind", "sizes"), UNEVEN)
def test_widths_that_are_no_multiples(tmp_path: Path, kind: str, sizes: dict[str, int]) -> None:
    grown = check(kind, {"intermediate_size": 60, **sizes}, tmp_path)
    assert grown.config.hidden_size == 32 or grown.config.norm_eps < make(kind).config.norm_eps


@given(data=strategies.data())
def test_any_shape_can_grow_to_any_larger_one(data: strategies.DataObject) -> None:
    """Heads and inner units to any number, the hidden size to any size, layers to any number; before pre-norms."""

    def at_least(size: int, most: int) -> int:
        return data.draw(strategies.integers(size, size + most))

    kv_heads, group, size = (data.draw(strategies.integers(1, 3)) for _ in range(3))
    shape = {"vocab_size": 31, "max_positions": 32, "num_kv_heads": kv_heads, "num_heads": kv_heads * group}
    shape |= {"hidden_size": at_least(1, 9), "intermediate_size": at_least(1, 9), "num_layers": at_least(1, 2)}
    norm: dict[str, Any] = data.draw(
        strategies.sampled_from([{}, {"norm": "layer", "norm_bias": True}, {"qk_norm": "head"}, {"norm_offset": True}])
    )
    switches = ("tied_embeddings", "embedding_scale", "parallel_residual", "qkv_bias", "feed_forward_bias", "gated")
    chosen = {name: data.draw(strategies.booleans(), label=name) for name in switches}
    config = DecoderConfig.model_validate({**shape, **norm, **chosen, "head_dim": 2 * size})
    model = shown(new_model(config, 0)).double()
    grown_kv_heads = at_least(kv_heads, 3)
    growth = Growth(
        num_layers=at_least(config.num_layers, 2),
        hidden_size=at_least(config.hidden_size, 20),
        num_kv_heads=grown_kv_heads,
        num_heads=grown_kv_heads * at_least(group, 3),
        intermediate_size=at_least(config.intermediate_size, 20),
    )
    wide = wider(config, growth)
    generator = torch.Generator().manual_seed(data.draw(strategies.integers(0, 9)))
    deep = deeper(wide, growth)
    grown = deepen(widen(model, wide, generator).double(), deep, "identity").double()
    torch.testing.assert_close(logits(grown), logits(model), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind != "bert"])
@pytest.mark.parametrize("how", DEEPER)
def test_a_deeper_model_computes_the_same(tmp_path: Path, kind: str, how: str) -> None:
    check(kind, DEEPER[how], tmp_path)


@pytest.mark.parametrize("kind", ["llama", "llama untied"])
def test_a_mixture_of_equal_experts_computes_the_same(tmp_path: Path, kind: str) -> None:
    grown = check(kind, {"num_experts": 4, "experts_per_token": 3}, tmp_path)
    assert isinstance(grown.config, DecoderConfig)
    assert (grown.config.family, grown.config.num_experts) == ("mixtral", 4)
    router = grown.get_parameter("layers.1.feed_forward.router.weight")
    assert router.std().item() == pytest.approx(0.02, rel=0.2)


def test_all_at_once_with_a_family_of_its_own(tmp_path: Path) -> None:
    settings = {"hidden_size": 48, "num_heads": 6, "num_kv_heads": 3, "num_layers": 3, "num_experts": 4}
    grown = check("llama", {**settings, "family": "mixtral"}, tmp_path)
    assert grown.config.family == "mixtral"


@pytest.mark.parametrize("kind", ["llama", "qwen2", "bert"])
def test_a_stack_repeats_the_layers(kind: str) -> None:
    model = make(kind)
    stacked = grow(model, Growth(num_layers=5, layers="stack"), seed=0)
    before = model.state_dict()
    for name, value in stacked.state_dict().items():
        source = name
        if name.startswith("layers."):
            _, index, below = name.split(".", 2)
            source = f"layers.{int(index) % 2}.{below}"
        assert torch.equal(value, before[source]), name
    assert (logits(stacked) - logits(model)).abs().max() > 1e-2
    if isinstance(stacked.config, DecoderConfig) and kind == "qwen2":
        assert stacked.config.sliding_layers == (False, True, False, True, False)


def test_new_layers_are_spread_over_the_old_ones() -> None:
    grown = grow(make("llama"), Growth(num_layers=5), seed=0)
    ends = [grown.get_parameter(f"layers.{layer}.attention.o_proj.weight") for layer in range(5)]
    silent = [not weight.any() for weight in ends]
    assert silent == [False, True, True, False, True]


def copies_differ(model: Model, settings: dict[str, Any]) -> bool:
    """Whether what was copied is no longer what it was copied from."""
    if "hidden_size" in settings:
        one, other = model.embed.weight.chunk(2, dim=1)
    elif "num_experts" in settings:
        one, other, *_ = model.get_parameter("layers.0.feed_forward.experts.up_proj.weight")
    else:
        one, other = (model.get_parameter(f"layers.{layer}.feed_forward.up_proj.weight") for layer in (0, 1))
    return not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"hidden_size": 64}, {"num_layers": 3}, {"num_layers": 2, "layers": "stack"}, {"num_experts": 4}],
    ids=["wider", "deeper", "stacked", "experts"],
)
def test_what_is_new_learns(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The loss goes on from where it was, falls, and copies come to differ."""
    small = tiny_model()
    config = loop_config(steps=24, batch_size=8, sequence_length=32, log_every=1, learning_rate=1e-2)
    before, short = new_run(tmp_path / "before"), config.model_copy(update={"steps": 8})
    train(Layout(small), causal, markov_batches(config), short, before)
    grown = grow(small, Growth.model_validate(settings), seed=0)
    assert not copies_differ(grown, settings)
    start = {name: parameter.detach().clone() for name, parameter in grown.named_parameters()}
    after = new_run(tmp_path / "after")
    # copies move together at first, so that the wider model goes as far with a smaller learning rate
    train(Layout(grown), causal, markov_batches(config), config.model_copy(update={"learning_rate": 3e-3}), after)
    reached = [record["loss"] for record in before.metrics()][-1]
    losses = [record["loss"] for record in after.metrics()]
    if "layers" not in settings:
        assert losses[0] == pytest.approx(reached, abs=0.1)
    assert sum(losses[-3:]) / 3 < reached - 0.05
    assert copies_differ(grown, settings)
    still = [name for name, parameter in grown.named_parameters() if torch.equal(parameter, start[name])]
    assert still == []


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("llama", {"num_layers": 1}, "2 layers cannot grow to 1"),
        ("llama", {"hidden_size": 16}, "hidden_size 32 cannot grow to 16"),
        ("llama", {"hidden_size": 40}, "num_kv_heads 2 does not come out whole where 4 grows to 5"),
        ("llama", {"num_heads": 4, "num_kv_heads": 4}, "2 query heads to each of 2"),
        ("olmo2", {"num_heads": 6, "num_kv_heads": 3}, "normalized together can only be multiplied"),
        ("bert", {"hidden_size": 48}, "32 can only be multiplied, not grow to 48"),
        ("bert", {"num_layers": 3}, "normalize what they pass on"),
        ("bert", {"num_experts": 4}, "encoders have no experts"),
        ("bert", {"num_heads": 8}, "would not make up hidden_size 32"),
        ("mixtral", {"num_experts": 8}, "mixture of 4 experts already"),
        ("qwen3", {"num_experts": 4}, "format of mixtral cannot express this model"),
        ("gpt2", {"num_heads": 8}, "format of gpt2 cannot express this model: .*head_dim"),
        ("gpt2", {"num_experts": 4}, "experts are gated"),
        ("llama", {"num_experts": 2, "experts_per_token": 3}, "experts_per_token 3 is more than"),
    ],
)
def test_what_cannot_be_is_refused(kind: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        grow(make(kind), Growth.model_validate(settings), seed=0)


def test_growth_that_names_no_size_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing that grows"):
        parse_section(Growth, {"layers": "stack"}, "pretrain.grow")
