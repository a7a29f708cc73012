"""What processes that share each matrix product compute."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.parallel.layouts import DECODER, make, make_updater, rows_of, together, update
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from tallow.data.batch import Packed
from tallow.errors import UsageError
from tallow.files import read_json, write_json
from tallow.kernels.fused import IGNORED
from tallow.models.config import DecoderConfig
from tallow.models.skeletons import Model, new_model
from tallow.objectives.causal import causal
from tallow.objectives.loss import WHOLE
from tallow.parallel import Layout, ParallelConfig, World
from tallow.parallel.cut_vocabulary import CutVocabulary
from tallow.parallel.recompute import measuring
from tallow.train.health import Health

SHAPES: dict[str, dict[str, Any]] = {
    "biases": {
        "positions": "learned",
        "norm": "layer",
        "norm_bias": True,
        "qkv_bias": True,
        "attention_output_bias": True,
        "feed_forward_bias": True,
        "gated": False,
        "activation": "gelu_tanh",
        "parallel_residual": True,
    },
    "norms": {"qk_norm": "hidden", "norm_placement": "post", "tied_embeddings": False, "vocab_size": 43},
    "caps": {
        "norm_offset": True,
        "norm_placement": "both",
        "embedding_scale": True,
        "logit_softcap": 2.0,
        "attention_softcap": 1.0,
        "qk_norm": "head",
        "head_dim": 6,
        "vocab_size": 41,
    },
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"num_kv_heads": 1}, "2 processes cannot share 1 heads of keys and values evenly"),
    "inner": ({"intermediate_size": 63}, "cannot share layers.0.feed_forward.gate_proj.weight evenly: 63"),
    "vocabulary": ({"vocab_size": 1}, "cannot share embed.weight: 1"),
}
TENSOR = ParallelConfig(tensor=2)
PLACES, TOKENS = 4000, 6


def model_of(shape: str) -> Model:
    model = new_model(DecoderConfig.model_validate({**DECODER, "num_layers": 2, **SHAPES[shape]}), seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases and norms start at 0 and 1, where some mistakes would not show
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def rows(length: int) -> Packed:
    whole = rows_of(0)
    tokens, documents, trainable = (
        tensor[:, : length + 1] for tensor in (whole.tokens_BT, whole.documents_BT, whole.trainable_BT)
    )
    return Packed(tokens, documents, trainable, whole.numbers_B)


def gradients(layout: Layout) -> dict[str, Tensor]:
    """Of two micro-batches whose places two processes cannot share evenly; in one of them one process has none."""
    loss, _ = layout.backpropagate([rows(15), rows(1)], causal, nullcontext)
    found = {"loss": torch.tensor(loss), "norm": torch.tensor(layout.gradient_norm())}
    for name, parameter in layout.parameters.items():
        gradient = parameter.grad
        assert gradient is not None, name
        found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return found


def update_ratio(layout: Layout) -> float:
    """As the metrics of a run tell it, of its first update."""
    updater = make_updater(layout, "decoder")
    health = Health(updater, "fp32")
    with health.watching(True):
        update(updater, 1, size=4)
    return health.read(own_s=1.0, flops_per_s=1.0)["update_ratio"]


def some_logits() -> tuple[Tensor, Tensor]:
    logits_NV = torch.randn(PLACES, TOKENS, generator=torch.Generator().manual_seed(0)) * 3
    logits_NV[0] = torch.tensor([1e4, -1e4, 0.0, 1e4, 5.0, 1.0])
    targets_N = torch.randint(TOKENS, (PLACES,), generator=torch.Generator().manual_seed(1))
    targets_N[1] = IGNORED
    return logits_NV, targets_N


def refusal(shape: dict[str, Any], world: World) -> str:
    with pytest.raises(UsageError) as refused:
        Layout(new_model(DecoderConfig.model_validate({**DECODER, **shape}), 0), TENSOR, world)
    return refused.value.message


def unknown(world: World) -> str:
    model = make("decoder", seed=0)
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    with pytest.raises(UsageError) as refused:
        Layout(model, TENSOR, world)
    return refused.value.message


def compute(world: World, directory: Path) -> None:
    """Write what one of two processes finds."""
    for name in SHAPES:
        layout = Layout(model_of(name), TENSOR, world)
        layout.recompute("selective" if name == "norms" else "block" if name == "caps" else "none")
        with measuring(layout.model.layers[0], "selective") as memory:
            found = gradients(layout)
        assert memory.kept > 0
        if world.is_main:
            save_file(found, directory / f"{name}.safetensors")
    ratio = update_ratio(Layout(make("decoder", seed=0), TENSOR, world))
    refusals = {name: refusal(shape, world) for name, (shape, _) in REFUSED.items()} | {"unknown": unknown(world)}

    torch.manual_seed(0)
    logits_NV, targets_N = some_logits()
    half = TOKENS // 2
    own_NV = logits_NV[:, world.rank * half : (world.rank + 1) * half].clone().requires_grad_()
    vocabulary = CutVocabulary(world.rank * half, world.group)
    loss = vocabulary.cross_entropy(own_NV, targets_N)
    loss.backward()
    assert own_NV.grad is not None
    drawn_N = vocabulary.draw(logits_NV[2:3].expand(PLACES, -1)[:, world.rank * half : (world.rank + 1) * half])
    found = {"loss": loss.detach(), "gradient": own_NV.grad, "drawn": drawn_N}
    save_file(found, directory / f"vocabulary{world.rank}.safetensors")
    if world.is_main:
        write_json(directory / "refusals.json", refusals)
        write_json(directory / "ratio.json", {"update_ratio": ratio})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tensor")
    together(2, compute, directory)
    return directory


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_one_process(shape: str, found: Path) -> None:
    expected = gradients(Layout(model_of(shape)))
    shared = load_file(found / f"{shape}.safetensors")
    assert shared.keys() == expected.keys()
    for name, value in expected.items():
        # the gradient of a bias on keys is zero but for rounding
        tolerance = 1e-5 * value.abs().max().item() + 1e-8
        torch.testing.assert_close(
            shared[name], value, atol=tolerance, rtol=0, msg=lambda message, name=name: f"{name}: {message}"
        )


def test_a_share_that_all_have_counts_once(found: Path) -> None:
    alone = update_ratio(Layout(make("decoder", seed=0)))
    assert read_json(found / "ratio.json")["update_ratio"] == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_divided_is_refused(what: str, found: Path) -> None:
    assert REFUSED[what][1] in read_json(found / "refusals.json")[what]


def test_parameters_without_a_place_are_refused(found: Path) -> None:
    assert read_json(found / "refusals.json")["unknown"] == "tensor parallelism does not know how to place scale"


def test_losses_of_shares_of_the_logits(found: Path) -> None:
    logits_NV, targets_N = some_logits()
    logits_NV.requires_grad_()
    loss = WHOLE.cross_entropy(logits_NV, targets_N)
    loss.backward()
    assert logits_NV.grad is not None
    for rank, share_NV in enumerate(logits_NV.grad.chunk(2, dim=1)):
        own = load_file(found / f"vocabulary{rank}.safetensors")
        assert own["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
        torch.testing.assert_close(own["gradient"], share_NV, atol=1e-6, rtol=0)


def test_drawn_tokens_are_alike_on_all_processes_and_follow_the_logits(found: Path) -> None:
    first, second = (load_file(found / f"vocabulary{rank}.safetensors")["drawn"] for rank in range(2))
    assert torch.equal(first, second)
    shares_V = first.bincount(minlength=TOKENS) / PLACES
    expected_V = F.softmax(some_logits()[0][2], dim=-1)
    deviation_V = (expected_V * (1 - expected_V) / PLACES).sqrt()
    assert ((shares_V - expected_V).abs() <= 4 * deviation_V + 1e-3).all()
