from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tallow.errors import DataError
from tallow.files import directory_size
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.families.family import TensorMap
from tallow.models.formats.hub import load_directory, save_directory
from tallow.models.formats.quantized import unquantized
from tallow.models.quantization import quantize_modules, quantized_modules

CONFIG = DecoderConfig(
    vocab_size=96, hidden_size=64, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=160, max_positions=64
)


def make_model(**changes: Any) -> Decoder:
    model = Decoder(CONFIG.model_copy(update=changes))
    initialize(model, seed=0)
    return model.eval()


@torch.inference_mode()
def logits(model: Decoder) -> Tensor:
    ids_BT = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(1))
    return model.logits(model(ids_BT, SequenceContext.plain(2, 24)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("skip", [[], ["layers.0", "layers.1.attention.k_proj"]])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, dtype: torch.dtype, tied: bool, skip: list[str]) -> None:
    model = quantize_modules(make_model(tied_embeddings=tied).to(dtype), 4, 32, skip=skip)
    save_directory(model, None, tmp_path / "model")
    loaded = load_directory(tmp_path / "model")
    assert set(loaded.state_dict()) == set(model.state_dict())
    assert logits(loaded).dtype == dtype
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64])
def test_bits_follow_from_the_tensors(tmp_path: Path, bits: int, group_size: int) -> None:
    model = quantize_modules(make_model(), bits, group_size, embedding_bits=6)
    save_directory(model, None, tmp_path / "model")
    stored, loaded = quantized_modules(model), quantized_modules(load_directory(tmp_path / "model"))
    assert list(loaded) == list(stored)
    for name, module in loaded.items():
        assert (module.weight.bits, module.weight.group_size) == (
            stored[name].weight.bits,
            stored[name].weight.group_size,
        )
        assert module.weight.bits == (6 if name == "embed" else bits)
        assert torch.equal(module.codes, stored[name].codes)
        assert torch.equal(module.scales, stored[name].scales)


def test_fused_tensors_of_the_hub(tmp_path: Path) -> None:
    """Queries, keys and values are one tensor there; here some of them are quantized and some are not."""
    model = make_model(
        family="gpt2",
        norm="layer",
        norm_bias=True,
        positions="learned",
        gated=False,
        activation="gelu_tanh",
        num_kv_heads=4,
        intermediate_size=256,
        qkv_bias=True,
        attention_output_bias=True,
        feed_forward_bias=True,
    )
    quantize_modules(model, 8, 32, skip=["layers.0.attention.k_proj", "layers.1.attention"])
    save_directory(model, None, tmp_path / "model")
    assert torch.equal(logits(load_directory(tmp_path / "model")), logits(model))


def test_partly_quantized_tensors_go_by_our_names() -> None:
    maps = [
        TensorMap("qkv", ("q.weight", "k.weight")),
        TensorMap("norm", ("norm.weight",)),
        TensorMap("o", ("o.weight",)),
    ]
    left = [(item.hub, item.ours) for item in unquantized(maps, {"k.weight", "norm.weight"})]
    assert left == [("k.weight", ("k.weight",)), ("norm", ("norm.weight",))]


def test_loading_converts_activations_only(tmp_path: Path) -> None:
    model = quantize_modules(make_model(), 4, 32)
    save_directory(model, None, tmp_path / "model")
    loaded = load_directory(tmp_path / "model", dtype=torch.bfloat16)
    assert logits(loaded).dtype == torch.bfloat16
    assert torch.equal(logits(loaded), logits(model.to(torch.bfloat16)))


def test_config_names_the_quantization(tmp_path: Path) -> None:
    save_directory(quantize_modules(make_model(), 4, 64), None, tmp_path / "model")
    section = json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]
    names = section.pop("modules")
    assert section == {"quant_method": "tallow", "bits": 4, "group_size": 64, "embedding_bits": 6}
    assert len(names) == 1 + 2 * 7
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {f"{name}.{part}" for name in names for part in ("codes", "scales")} < set(stored)
    assert "model.layers.0.input_layernorm.weight" in stored
    save_directory(make_model(), None, tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def edit_config(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "config.json"
    values = json.loads(path.read_text())
    change(values["quantization_config"])
    path.write_text(json.dumps(values))


def edit_tensors(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    path = directory / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


NAME = "layers.0.attention.o_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda section: section.update(quant_method="gptq"), "gptq"),
        (lambda section: section.update(modules=None), "does not name its modules"),
        (lambda section: section["modules"].append("layers.9.attention.o_proj"), r"layers\.9"),
        (lambda section: section["modules"].append("layers.0"), r"layers\.0"),
        (lambda section: section["modules"].append(NAME), "o_proj"),
        (lambda section: section["modules"].remove(NAME), "o_proj"),
    ],
)
def test_broken_sections_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    save_directory(quantize_modules(make_model(), 4, 32), None, tmp_path / "model")
    edit_config(tmp_path / "model", change)
    with pytest.raises(DataError, match=message):
        load_directory(tmp_path / "model")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop(f"{NAME}.codes"),
        lambda tensors: tensors.pop(f"{NAME}.scales"),
        lambda tensors: tensors.update({f"{NAME}.codes": tensors[f"{NAME}.codes"][:5]}),
        lambda tensors: tensors.update({f"{NAME}.codes": tensors[f"{NAME}.codes"].view(torch.int8)}),
        lambda tensors: tensors.update({f"{NAME}.codes": tensors[f"{NAME}.codes"].float()}),
        lambda tensors: tensors.update({f"{NAME}.codes": tensors[f"{NAME}.codes"][0]}),
        lambda tensors: tensors.update({f"{NAME}.codes": tensors[f"{NAME}.codes"][:, :0]}),
        lambda tensors: tensors.update({f"{NAME}.codes": tensors[f"{NAME}.codes"][:, :-1].contiguous()}),
        lambda tensors: tensors.update({f"{NAME}.codes": torch.zeros(64, 40, dtype=torch.uint8)}),
        lambda tensors: tensors.update({f"{NAME}.codes": torch.zeros(64, 48, dtype=torch.int8)}),
        lambda tensors: tensors.update({f"{NAME}.codes": torch.zeros(64, 64, dtype=torch.uint8)}),
        lambda tensors: tensors.update({f"{NAME}.scales": tensors[f"{NAME}.scales"].float()}),
        lambda tensors: tensors.update({f"{NAME}.scales": tensors[f"{NAME}.scales"][0]}),
        lambda tensors: tensors.update({f"{NAME}.scales": tensors[f"{NAME}.scales"][:, :0]}),
        lambda tensors: tensors.update(
            {f"{NAME}.{part}": tensors[f"{NAME}.{part}"][:32] for part in ("codes", "scales")}
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    save_directory(quantize_modules(make_model(), 4, 32), None, tmp_path / "model")
    edit_tensors(tmp_path / "model", change)
    with pytest.raises(DataError, match=r"o_proj|codes"):
        load_directory(tmp_path / "model")


MEASURE_LOADING = """
import sys, torch
from pathlib import Path
from tallow.models.formats.hub import load_directory
from tallow.run import peak_rss_bytes
before = peak_rss_bytes()
model = load_directory(Path(sys.argv[1]))
touched = sum(int(tensor.view(-1).view(torch.uint8)[::512].sum()) for tensor in model.state_dict().values())
print(peak_rss_bytes() - before)
"""


def test_loading_maps_the_weights(tmp_path: Path) -> None:
    model = Decoder(CONFIG.model_copy(update={"vocab_size": 60_000, "hidden_size": 512, "head_dim": 16}))
    save_directory(quantize_modules(model, 8, 32), None, tmp_path / "model")
    size = directory_size(tmp_path / "model")
    assert size > 30e6
    output = subprocess.run(
        [sys.executable, "-c", MEASURE_LOADING, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert int(output.stdout) < 1.3 * size


def test_every_module_of_a_loaded_model_is_whole(tmp_path: Path) -> None:
    save_directory(quantize_modules(make_model(), 4, 32), None, tmp_path / "model")
    loaded = load_directory(tmp_path / "model")
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    assert all(module.weight.bits in (4, 6) for module in quantized_modules(loaded).values())
