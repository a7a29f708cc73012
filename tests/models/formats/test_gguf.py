"""GGUF models: written, read back, refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from tallow.errors import DataError, TallowError, UsageError
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig, Rotary, RotaryScaling
from tallow.models.decoder import Decoder
from tallow.models.formats import Precision, load_model, load_tokenizer, save_gguf
from tallow.models.formats import gguf as gguf_format
from tallow.models.formats.gguf import _halves_from_pairs, _pairs_from_halves
from tallow.models.formats.gguf_config import ARCHITECTURES
from tallow.models.formats.gguf_file import GGUFFile
from tallow.tokenizer.tokenizer import Tokenizer

TINY: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 96,
    "max_positions": 64,
}
GEMMA: dict[str, Any] = {
    "norm_offset": True,
    "norm_placement": "both",
    "activation": "gelu_tanh",
    "embedding_scale": True,
    "head_dim": 32,
    "window": 8,
}
LAYER_NORM: dict[str, Any] = {
    "norm": "layer",
    "norm_bias": True,
    "gated": False,
    "qkv_bias": True,
    "attention_output_bias": True,
    "feed_forward_bias": True,
}


def scaled(kind: str, **values: Any) -> Rotary:
    return Rotary(theta=500.0, scaling=RotaryScaling.model_validate({"kind": kind, **values}))


CASES: dict[str, dict[str, Any]] = {
    "llama": {"rotary": Rotary(theta=500000.0), "norm_eps": 1e-6},
    "llama-wide": {"head_dim": 24, "tied_embeddings": False},
    "llama-biases": {"qkv_bias": True, "attention_output_bias": True, "feed_forward_bias": True},
    "llama-control": {"bos_id": 1, "eos_ids": (2, 7, 5), "pad_id": 0},
    "llama-linear": {"rotary": scaled("linear", factor=4.0)},
    "llama-llama3": {"rotary": scaled("llama3", factor=8.0, original_max_positions=32)},
    "llama-yarn": {"rotary": scaled("yarn", factor=4.0, original_max_positions=16, beta_fast=16.0)},
    "llama-yarn-magnitude": {"rotary": scaled("yarn", original_max_positions=16, attention_factor=1.1386294361119891)},
    "mistral": {"window": 8},
    "qwen2": {"qkv_bias": True},
    "qwen2-window": {"qkv_bias": True, "window": 8, "sliding_layers": (False, True, True)},
    "qwen3": {"qk_norm": "head", "head_dim": 32, "tied_embeddings": False},
    "gemma2": {**GEMMA, "sliding_layers": (True, False, True), "attention_softcap": 50.0, "logit_softcap": 30.0},
    "gemma2-big": {
        **GEMMA,
        "num_layers": 46,
        "sliding_layers": (True, False) * 23,
        "attention_softcap": 20.0,
        "logit_softcap": 10.0,
        "attention_scale": (64 / 4) ** -0.5,
    },
    "gemma3_text": {
        **GEMMA,
        "qk_norm": "head",
        "num_layers": 7,
        "sliding_layers": (True,) * 5 + (False, True),
        "rotary": Rotary(theta=1e6, scaling=RotaryScaling(kind="linear", factor=8.0)),
        "local_rotary": Rotary(theta=1e4),
    },
    "gemma3_text-pattern": {
        **GEMMA,
        "qk_norm": "head",
        "sliding_layers": (False, True, True),
        "rotary": Rotary(theta=1e6),
        "local_rotary": Rotary(theta=2e4),
    },
    "phi3": {"window": 16, "tied_embeddings": False},
    "phi3-longrope": {
        "num_kv_heads": 4,
        "rotary": scaled(
            "longrope",
            original_max_positions=16,
            short_factors=tuple(1 + 0.1 * i for i in range(8)),
            long_factors=tuple(1 + 0.7 * i for i in range(8)),
        ),
    },
    "olmo2": {"norm_placement": "post", "qk_norm": "hidden"},
    "gpt2": {**LAYER_NORM, "num_kv_heads": 4, "positions": "learned", "activation": "gelu_tanh"},
    "gpt_neox": {
        **LAYER_NORM,
        "num_kv_heads": 4,
        "activation": "gelu",
        "parallel_residual": True,
        "rotary": Rotary(fraction=0.25),
        "tied_embeddings": False,
    },
    "gpt_neox-odd": {
        **LAYER_NORM,
        "num_kv_heads": 4,
        "activation": "gelu",
        "head_dim": 44,
        "rotary": Rotary(fraction=0.69),
    },
    "starcoder2": {**LAYER_NORM, "activation": "gelu_tanh", "window": 8},
}


def make_model(name: str = "llama", **changes: Any) -> Decoder:
    """A model whose weights float16 holds exactly, none of them what it is initialized to."""
    config = DecoderConfig(**{**TINY, "family": name.partition("-")[0], **CASES[name], **changes})
    model = Decoder(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 1.5 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.3
            base = 0.0 if parameter.ndim > 1 or config.norm_offset else 1.0
            parameter.copy_((base + scale * noise).half())
    return model


def logits(model: Decoder) -> Tensor:
    ids_BT = torch.randint(0, TINY["vocab_size"], (1, 48), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.logits(model(ids_BT, SequenceContext.plain(1, 48)))


def roundtrip(model: Decoder, path: Path, precision: Precision = "f16") -> Decoder:
    save_gguf(model, None, path, precision)
    return load_model(path, dtype=torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_every_architecture_comes_back(tmp_path: Path, name: str) -> None:
    model = make_model(name)
    loaded = roundtrip(model, tmp_path / "model.gguf")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.family == model.config.family
    control = {"bos_id", "eos_ids", "pad_id"}
    assert loaded.config.model_dump(include=control) == model.config.model_dump(include=control)


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 0.0), ("f16", 2**-11), ("bf16", 2**-8)])
def test_float_precisions(tmp_path: Path, precision: Precision, tolerance: float) -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 / 3)
    loaded = roundtrip(model, tmp_path / "model.gguf", precision).state_dict()
    for name, expected in model.state_dict().items():
        limit = tolerance * expected.abs() if expected.ndim > 1 else torch.zeros_like(expected)
        assert ((loaded[name] - expected).abs() <= limit + 1e-7 * (tolerance > 0)).all(), name


@pytest.mark.parametrize("name", ["llama", "gemma2", "phi3", "gpt2"])
@pytest.mark.parametrize(("precision", "kind", "steps"), [("q8_0", Kind.Q8_0, 254), ("q4_0", Kind.Q4_0, 8)])
def test_quantized_precisions(tmp_path: Path, name: str, precision: Precision, kind: Kind, steps: int) -> None:
    """The model is that of its rounded weights, each within half a step of 8 bits, or one of 4 (which may be cut)."""
    model = make_model(name)
    loaded = roundtrip(model, tmp_path / "model.gguf", precision)
    state = {parameter: value.clone() for parameter, value in model.state_dict().items()}
    for parameter, value in state.items():
        if value.ndim < 2 or parameter == "embed_positions.weight":
            continue
        fine = parameter in ("embed.weight", "lm_head.weight")
        stored_kind, stored_steps = (Kind.Q8_0, 254) if fine else (kind, steps)
        rounded = torch.from_numpy(gguf.dequantize(gguf.quantize(value.numpy(), stored_kind), stored_kind))
        # the scale itself is rounded to float16, which 127 steps feel most
        limits = value.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) * 1.13 / stored_steps
        assert ((rounded - value).unflatten(-1, (-1, 32)).abs() <= limits).all(), parameter
        assert not torch.equal(rounded, value)
        state[parameter] = rounded
    model.load_state_dict(state)
    assert torch.equal(logits(loaded), logits(model))


def test_what_is_stored_how(tmp_path: Path) -> None:
    save_gguf(make_model("llama-biases", intermediate_size=40), None, tmp_path / "model.gguf", "q4_0")
    kinds = {name: tensor.kind for name, tensor in GGUFFile(tmp_path / "model.gguf").tensors.items()}
    assert kinds["token_embd.weight"] == Kind.Q8_0
    assert kinds["blk.0.attn_q.weight"] == Kind.Q4_0
    assert kinds["blk.0.attn_q.bias"] == kinds["blk.0.ffn_norm.weight"] == kinds["output_norm.weight"] == Kind.F32
    assert kinds["blk.0.ffn_down.weight"] == Kind.F16  # rows of 40
    assert "output.weight" not in kinds
    save_gguf(make_model("gpt2"), None, tmp_path / "gpt2.gguf", "f16")
    tensors = GGUFFile(tmp_path / "gpt2.gguf").tensors
    assert tensors["position_embd.weight"].kind == Kind.F32
    assert tensors["blk.2.attn_qkv.weight"].shape == (192, 64)
    assert "blk.0.attn_q.weight" not in tensors
    save_gguf(make_model("olmo2"), None, tmp_path / "olmo2.gguf", "q8_0")
    assert "output.weight" in GGUFFile(tmp_path / "olmo2.gguf").tensors  # llama.cpp wants it though it is tied


def test_names_and_keys_are_those_of_llama_cpp(tmp_path: Path) -> None:
    """Against the table of tensors of each architecture in the `gguf` package, and its reader."""
    for name in ("llama-llama3", *(name for name in CASES if "-" not in name)):
        save_gguf(make_model(name), None, tmp_path / "model.gguf", "f16")
        reader = gguf.GGUFReader(tmp_path / "model.gguf")
        arch = str(reader.fields["general.architecture"].contents())
        tensors = gguf.MODEL_TENSORS[next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)]
        layers = CASES[name].get("num_layers", TINY["num_layers"])
        known = {gguf.TENSOR_NAMES[tensor].format(bid=layer) for tensor in tensors for layer in range(layers)}
        assert {tensor.name.rpartition(".")[0] for tensor in reader.tensors} <= known
        assert f"{arch}.block_count" in reader.fields


def test_dtypes(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "model.gguf"
    expected: dict[Precision, torch.dtype] = {
        "f32": torch.float32,
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "q8_0": torch.float32,
    }
    for precision, dtype in expected.items():
        save_gguf(model, None, path, precision)
        assert {parameter.dtype for parameter in load_model(path).parameters()} == {dtype}
        assert {parameter.dtype for parameter in load_model(path, dtype=torch.bfloat16).parameters()} == {
            torch.bfloat16
        }


def test_weights_are_mapped(tmp_path: Path) -> None:
    """A change in the file shows in the model; training the model does not change the file."""
    path = tmp_path / "model.gguf"
    save_gguf(make_model("gpt2"), None, path, "f32")
    model = load_model(path)
    offsets = {name: tensor.offset for name, tensor in GGUFFile(path).tensors.items()}
    for name in ("token_embd.weight", "blk.1.attn_qkv.weight"):
        with open(path, "r+b") as file:
            file.seek(offsets[name])
            file.write(torch.tensor([5.0]).numpy().tobytes())
    state = model.state_dict()
    assert state["embed.weight"][0, 0] == state["layers.1.attention.q_proj.weight"][0, 0] == 5.0
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert path.read_bytes() == before


def test_rows_of_interleaved_heads() -> None:
    rows = torch.arange(12)
    assert _pairs_from_halves(rows, 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert torch.equal(_halves_from_pairs(_pairs_from_halves(rows, 2), 2), rows)


def test_fused_and_separate_projections_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's converter may fuse q, k and v of any architecture; whichever way, the model is the same."""
    model = make_model("llama-biases")
    save_gguf(model, None, tmp_path / "separate.gguf", "q8_0")
    monkeypatch.setitem(ARCHITECTURES, "llama", replace(ARCHITECTURES["llama"], fused_qkv=True))
    monkeypatch.setattr(gguf_format, "refuse_inexpressible", lambda *_: None)  # the `gguf` package knows it not yet
    save_gguf(model, None, tmp_path / "fused.gguf", "q8_0")
    assert "blk.0.attn_qkv.weight" in GGUFFile(tmp_path / "fused.gguf").tensors
    separate, together = (load_model(tmp_path / f"{name}.gguf").state_dict() for name in ("separate", "fused"))
    assert all(torch.equal(together[name], value) for name, value in separate.items())


INEXPRESSIBLE = {
    "activation": ("llama", {"activation": "gelu"}),
    "attention_scale": ("llama", {"attention_scale": 0.5}),
    "rotary": ("llama", {"rotary": scaled("dynamic", factor=2.0)}),
    "attention_softcap": ("gemma2", {"attention_softcap": None}),
    "embedding_scale": ("qwen3", {"embedding_scale": True}),
    "parallel_residual": ("llama", {"parallel_residual": True}),
    "logit_softcap": ("llama", {"logit_softcap": 30.0}),
    "post_attention_norm": ("llama", {"norm_placement": "both"}),
    "another rule": ("llama", {"rotary": scaled("llama3", factor=8.0, high_freq_factor=5.0)}),
}


@pytest.mark.parametrize("case", INEXPRESSIBLE)
def test_what_gguf_cannot_express_is_refused(tmp_path: Path, case: str) -> None:
    name, changes = INEXPRESSIBLE[case]
    with pytest.raises(UsageError, match=case):
        save_gguf(make_model(name, **changes), None, tmp_path / "model.gguf", "f16")
    assert not list(tmp_path.iterdir())


def test_unknown_precision_and_family(tmp_path: Path) -> None:
    precision: Any = "q5_k"
    with pytest.raises(UsageError, match="q5_k"):
        save_gguf(make_model(), None, tmp_path / "model.gguf", precision)
    with pytest.raises(UsageError, match="no architecture for rwkv"):
        save_gguf(make_model(family="rwkv"), None, tmp_path / "model.gguf")


def edit(path: Path, key: str, value: Any) -> None:
    """Write the file anew with one metadata value changed, or taken out (None)."""
    file = GGUFFile(path)
    metadata = {name: old for name, old in file.metadata.items() if name != key}
    metadata |= {} if value is None else {key: value}
    tensors = [
        gguf_format._OutTensor(tensor.name, Kind.F32, tensor.shape, (tensor.name,)) for tensor in file.tensors.values()
    ]
    values = {name: file.read(name, torch.float32).clone() for name in file.tensors}
    gguf_format._write_header(path, metadata, tensors)
    with open(path, "ab") as out:
        for tensor in tensors:
            gguf_format._pad(out)
            gguf_format._write_rows(out, values[tensor.name], Kind.F32)


WRONG = {
    "general.architecture": ("mamba", "mamba"),
    "llama.block_count": (5, "5 layers"),
    "llama.block_count ": (1 << 31, "layers"),
    "llama.embedding_length": (32, "token_embd.weight"),
    "llama.feed_forward_length": (64, "feed_forward_length"),
    "llama.attention.head_count": (0, "not describe a model"),
    "llama.attention.head_count ": (3, "not describe a model|attention.head_count"),
    "llama.attention.key_length": (128, "values differ"),
    "llama.attention.value_length": (8, "values differ"),
    "llama.attention.head_count_kv": (3, "num_kv_heads"),
    "llama.attention.head_count_kv ": ([1, 2], "not a whole number"),
    "llama.context_length": (None, "lacks llama.context_length"),
    "llama.context_length ": ("long", "not a whole number: long"),
    "llama.attention.layer_norm_rms_epsilon": (0.0, "not describe a model"),
    "llama.rope.dimension_count": (64, "not describe a model"),
    "llama.rope.freq_base": (float("inf"), "not a finite number"),
    "llama.rope.scaling.type": ("su", "rotary scaling 'su'"),
}


@pytest.mark.parametrize("key", WRONG)
def test_wrong_metadata(tmp_path: Path, key: str) -> None:
    value, complaint = WRONG[key]
    save_gguf(make_model(), None, tmp_path / "model.gguf", "f32")
    edit(tmp_path / "model.gguf", key.strip(), value)
    with pytest.raises(DataError, match=complaint):
        load_model(tmp_path / "model.gguf")


def test_old_linear_scaling(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "model.gguf"
    save_gguf(model, None, path, "f32")
    edit(path, "llama.rope.scale_linear", 4.0)
    assert load_model(path).config.rotary.scaling == RotaryScaling(kind="linear", factor=4.0)


def test_factors_of_another_rule_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(make_model("llama-llama3"), None, path, "f32")
    raw = bytearray(path.read_bytes())
    offset = GGUFFile(path).tensors["rope_freqs.weight"].offset
    raw[offset : offset + 4] = torch.tensor([3.0]).numpy().tobytes()
    path.write_bytes(raw)
    with pytest.raises(DataError, match="another rule"):
        load_model(path)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(make_model(), None, path, "f16")
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with pytest.raises(DataError, match=r"no tensor blk\.1\.ffn_up\.weight"):
        load_model(path)


def test_unexplained_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    save_gguf(make_model("llama-biases"), None, path, "f16")
    path.write_bytes(path.read_bytes().replace(b"blk.0.attn_output.bias", b"blk.0.attn_sinks0.bias"))
    with pytest.raises(DataError, match=r"blk\.\d\.attn_(sinks0|output)\.bias, which its architecture"):
        load_model(path)


def test_model_without_tokenizer(tmp_path: Path, make_tokenizer: Callable[..., Tokenizer]) -> None:
    save_gguf(make_model(), None, tmp_path / "model.gguf")
    with pytest.raises(DataError, match="no tokenizer"):
        load_tokenizer(tmp_path / "model.gguf")
    with pytest.raises(UsageError, match="320 tokens, but the model's vocabulary is 80"):
        save_gguf(make_model(), make_tokenizer(), tmp_path / "other.gguf")
    assert not (tmp_path / "other.gguf").exists()


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_format, "_write_rows", fail)
    with pytest.raises(TallowError) as caught:
        save_gguf(make_model(), None, path)
    assert caught.value.exit_code == 4
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]
