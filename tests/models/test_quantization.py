from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tallow.errors import UsageError
from tallow.kernels.quantized import dequantize, quantize_groups
from tallow.models.blocks.context import SequenceContext
from tallow.models.blocks.quantized import QuantizedEmbedding, QuantizedLinear
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.quantization import (
    TABLE_BITS,
    dequantize_modules,
    dequantized_state,
    model_bytes,
    num_weights,
    quantization_targets,
    quantize_modules,
    quantized_bits,
    quantized_modules,
    requantize_modules,
)

CONFIG = DecoderConfig(
    vocab_size=96, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=160, qkv_bias=True
)


def make_model(config: DecoderConfig = CONFIG) -> Decoder:
    model = Decoder(config)
    initialize(model, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model.eval()


@torch.inference_mode()
def logits(model: Decoder, ids_BT: Tensor) -> Tensor:
    return model.logits(model(ids_BT, SequenceContext.plain(len(ids_BT), ids_BT.shape[1])))


def random_ids(length: int = 24) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (2, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.01), (6, 0.04), (4, 0.15)])
def test_quantized_logits_are_close(bits: int, tolerance: float) -> None:
    model, ids = make_model(), random_ids()
    expected = logits(model, ids)
    found = logits(quantize_modules(model, bits, 32, embedding_bits=bits), ids)
    relative = (found - expected).norm() / expected.norm()
    assert 0 < relative < tolerance


def test_logits_are_those_of_the_dequantized_model() -> None:
    quantized, plain, ids = quantize_modules(make_model(), 4, 32), make_model(), random_ids()
    plain.load_state_dict(dict(dequantized_state(quantized)))
    torch.testing.assert_close(logits(quantized, ids), logits(plain, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_rounding_error_is_half_a_scale(bits: int) -> None:
    plain, quantized = make_model(), quantize_modules(make_model(), bits, 32, embedding_bits=bits)
    state = dequantized_state(quantized)
    rounded_scale = 2 ** (bits - 1) * 2**-11  # what rounding a scale to float16 moves the largest code by, in scales
    for name, module in quantized_modules(quantized).items():
        scales = module.scales.float().repeat_interleave(32, dim=1)
        errors = (state[f"{name}.weight"] - plain.get_parameter(f"{name}.weight").detach()) / scales
        highest = 2 ** (bits - 1) - 1
        codes = (state[f"{name}.weight"] / scales).round()
        cut = ((codes == highest) & (bits < 8)) | ((codes == -8) & (bits == 4))
        assert float(errors[~cut].abs().max()) <= 0.5 + rounded_scale
        assert float(errors.abs().max()) <= (2 if bits == 4 else 1) + rounded_scale


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_embedding_looks_up_and_projects_the_same_table(bits: int) -> None:
    table_VD = torch.randn(96, 64, generator=torch.Generator().manual_seed(2))
    weight = quantize_groups(table_VD, bits, 32)
    embedding = QuantizedEmbedding(weight, torch.float32)
    ids, unpacked = random_ids(5), dequantize(weight)
    assert torch.equal(embedding(ids), unpacked[ids])
    assert embedding(ids[:, :0]).shape == (2, 0, 64)
    hidden = torch.randn(2, 3, 64)
    torch.testing.assert_close(embedding.project(hidden), hidden @ unpacked.T, rtol=1e-4, atol=1e-4)
    with pytest.raises(IndexError):
        embedding(torch.tensor([96]))


def test_casting_changes_activations_and_leaves_the_weights_alone() -> None:
    model, ids = quantize_modules(make_model(), 4, 32), random_ids()
    expected = logits(model, ids)
    before = {name: (module.codes.clone(), module.scales.clone()) for name, module in quantized_modules(model).items()}
    model = copy.deepcopy(model).to(torch.bfloat16)
    found = logits(model, ids)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() / expected.norm() < 0.02
    for name, module in quantized_modules(model).items():
        assert torch.equal(module.codes, before[name][0])
        assert torch.equal(module.scales, before[name][1])
    assert torch.equal(logits(model.to(torch.float32), ids)[0].isfinite(), torch.ones(24, 96, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generates_greedily_token_by_token(dtype: torch.dtype) -> None:
    model = quantize_modules(make_model(), 8, 32).to(dtype)
    ids = [1, 2, 3]
    for _ in range(5):
        ids.append(int(logits(model, torch.tensor([ids]))[0, -1].argmax()))
    assert len(ids) == 8


def test_state_can_be_exchanged() -> None:
    first, second, ids = make_model(), make_model(), random_ids()
    initialize(second, seed=5)
    quantize_modules(first, 4, 32)
    quantize_modules(second, 4, 32)
    expected = logits(second, ids)
    assert not torch.equal(logits(first, ids), expected)
    first.load_state_dict(second.state_dict(), assign=True)
    assert torch.equal(logits(first, ids), expected)


def test_groups_shrink_to_what_divides_the_row() -> None:
    config = DecoderConfig(
        vocab_size=40, hidden_size=576, num_layers=1, num_heads=9, num_kv_heads=3, intermediate_size=80
    )
    targets = {target.name: target for target in quantization_targets(Decoder(config), 4, 128)}
    assert targets["layers.0.attention.q_proj"].group_size == 64
    assert "layers.0.feed_forward.down_proj" not in targets  # its rows of 80 have no groups of 32
    assert "layers.0.feed_forward.up_proj" in targets


def test_embedding_and_output_matrix_have_bits_of_their_own() -> None:
    untied = CONFIG.model_copy(update={"tied_embeddings": False})
    model = quantize_modules(make_model(untied), 4, 32, embedding_bits=8)
    bits = {name: module.weight.bits for name, module in quantized_modules(model).items()}
    assert bits.pop("embed") == bits.pop("lm_head") == 8
    assert set(bits.values()) == {4}
    for linear_bits, table_bits in ((4, 6), (6, 6), (8, 8)):
        targets = {target.name: target.bits for target in quantization_targets(make_model(untied), linear_bits, 32)}
        assert targets.pop("embed") == targets.pop("lm_head") == table_bits
        assert set(targets.values()) == {linear_bits}
    plain = quantize_modules(make_model(), 4, 32, embedding_bits=None)
    assert isinstance(plain.embed, nn.Embedding)


def test_skipped_modules_stay() -> None:
    model = quantize_modules(make_model(), 4, 32, skip=["layers.1", "layers.0.attention.q_proj"])
    names = quantized_modules(model)
    assert "layers.0.attention.k_proj" in names
    assert "layers.0.attention.q_proj" not in names
    assert not any(name.startswith("layers.1.") for name in names)
    with pytest.raises(UsageError, match=r"layers\.7"):
        quantize_modules(make_model(), 4, 32, skip=["layers.7"])


def test_a_quantized_model_is_refused() -> None:
    with pytest.raises(UsageError, match="already"):
        quantize_modules(quantize_modules(make_model(), 8, 32), 4, 32)


def test_biases_and_gradients_of_inputs_pass_through() -> None:
    linear = nn.Linear(64, 32)
    weight = quantize_groups(linear.weight, 8, 32)
    quantized = QuantizedLinear(weight, linear.bias)
    x = torch.randn(3, 64, requires_grad=True)
    quantized(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, dequantize(weight).sum(0).expand(3, -1))
    assert linear.bias.grad is not None


@pytest.mark.parametrize("bits", [6, 8])
def test_rounding_again_gives_the_same_codes(bits: int) -> None:
    model = quantize_modules(make_model(), bits, 32, embedding_bits=bits)
    for name, module in quantized_modules(model).items():
        again = quantize_groups(dequantized_state(model)[f"{name}.weight"], bits, 32)
        assert torch.equal(again.codes, module.codes)
        assert torch.equal(again.scales, module.scales)


def test_sizes_count_every_weight_once() -> None:
    plain, quantized = make_model(), quantize_modules(make_model(), 4, 32, embedding_bits=4)
    assert num_weights(quantized) == num_weights(plain) == plain.num_parameters()
    assert model_bytes(plain) == 4 * num_weights(plain)
    matrices = sum(parameter.numel() for parameter in plain.parameters() if parameter.ndim == 2)
    rest = num_weights(plain) - matrices
    assert model_bytes(quantized) == matrices * 4.5 / 8 + rest * 4
    assert set(dequantized_state(quantized)) == set(dict(plain.named_parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantized_modules_hold_what_the_codes_stand_for(dtype: torch.dtype) -> None:
    quantized = quantize_modules(make_model(), 4, 32, skip=["layers.0"])
    expected = dict(dequantized_state(quantized))
    names = list(quantized_modules(quantized))
    plain = dequantize_modules(copy.deepcopy(quantized), dtype)
    assert quantized_bits(plain) is None
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in make_model().named_parameters()]
    for name, parameter in plain.named_parameters():
        wanted = dtype if name.removesuffix(".weight") in names else torch.float32
        torch.testing.assert_close(parameter.detach(), expected[name].to(wanted), rtol=0, atol=0)
    if dtype == torch.float32:
        torch.testing.assert_close(logits(plain, random_ids()), logits(quantized, random_ids()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(4, 8), (8, 4)])
def test_requantized_weights_are_the_unpacked_ones_rounded_anew(before: int, after: int) -> None:
    model = quantize_modules(make_model(), before, 64, skip=["layers.0"])
    stored = {name: module.weight for name, module in quantized_modules(model).items()}
    assert quantized_bits(model) == before
    requantize_modules(model, after, 32)
    assert quantized_bits(model) == after
    assert list(quantized_modules(model)) == list(stored)  # what was left out the first time stays out
    for name, module in quantized_modules(model).items():
        bits = TABLE_BITS[after] if name == "embed" else after
        expected = quantize_groups(dequantize(stored[name]), bits, 32)
        assert module.weight.bits == expected.bits
        assert module.weight.group_size == expected.group_size
        assert torch.equal(module.codes, expected.codes)
        assert torch.equal(module.scales, expected.scales)
    assert quantized_modules(model)["layers.1.attention.q_proj"].get_parameter("bias").any()
    assert logits(model, random_ids()).isfinite().all()


@pytest.mark.parametrize("embedding_bits", [8, None])
def test_requantizing_leaves_codes_that_have_their_bits_already(embedding_bits: int | None) -> None:
    model = quantize_modules(make_model(), 4, 64, embedding_bits=8)
    table = model.embed.codes
    requantize_modules(model, 8, 32, embedding_bits=embedding_bits)
    assert model.embed.codes is table
    assert {module.weight.bits for module in quantized_modules(model).values()} == {8}


def test_requantized_embedding_keeps_its_dtype() -> None:
    model = quantize_modules(make_model().bfloat16(), 8, 32)
    requantize_modules(model, 4, 32, embedding_bits=4)
    embed = quantized_modules(model)["embed"]
    assert isinstance(embed, QuantizedEmbedding)
    assert (embed.weight.bits, embed.dtype) == (4, torch.bfloat16)
