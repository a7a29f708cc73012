"""GGUF models as llama.cpp has them: one file with the weights, the shape and the tokenizer.

Where llama.cpp lays tensors out otherwise than we do, they are changed on the way: rows of Llama's query and key
projections are reordered for its interleaved rotary embedding, Gemma's norms store `1 + weight`, and some
architectures keep projections fused.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

import gguf
import numpy as np
import torch
from gguf import MODEL_TENSOR, TENSOR_NAMES, GGMLQuantizationType, LlamaFileType
from torch import Tensor

from tallow.errors import DataError, UsageError
from tallow.files import atomic_file, fingerprint_files
from tallow.kernels.blocks import BlockWeight, has_native_blocks
from tallow.kernels.quantized import QuantizedWeight, unpack_codes
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.formats.gguf_config import (
    ARCHITECTURES,
    architecture_name,
    find_architecture,
    read_config,
    refuse_inexpressible,
    write_control_tokens,
    write_metadata,
)
from tallow.models.formats.gguf_file import CHUNK_ELEMENTS, GGUFFile
from tallow.models.formats.gguf_rotary import ROPE_TENSORS, rope_tensors
from tallow.models.formats.gguf_tokenizer import has_tokenizer, read_tokenizer, write_tokenizer
from tallow.models.quantization import dequantized_state, quantized_modules
from tallow.models.stored import StoredModel
from tallow.tokenizer.tokenizer import Tokenizer

IGNORED = ".attn_rot_embd.weight"
"""End of the names of buffers in older files that can be computed."""

Precision = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]

_OUTSIDE = {
    "embed": MODEL_TENSOR.TOKEN_EMBD,
    "embed_positions": MODEL_TENSOR.POS_EMBD,
    "norm": MODEL_TENSOR.OUTPUT_NORM,
    "lm_head": MODEL_TENSOR.OUTPUT,
}
_LAYER = {
    "attention_norm": MODEL_TENSOR.ATTN_NORM,
    "attention.q_proj": MODEL_TENSOR.ATTN_Q,
    "attention.k_proj": MODEL_TENSOR.ATTN_K,
    "attention.v_proj": MODEL_TENSOR.ATTN_V,
    "attention.o_proj": MODEL_TENSOR.ATTN_OUT,
    "attention.q_norm": MODEL_TENSOR.ATTN_Q_NORM,
    "attention.k_norm": MODEL_TENSOR.ATTN_K_NORM,
    "attention_post_norm": MODEL_TENSOR.ATTN_POST_NORM,
    "feed_forward_norm": MODEL_TENSOR.FFN_NORM,
    "feed_forward.gate_proj": MODEL_TENSOR.FFN_GATE,
    "feed_forward.up_proj": MODEL_TENSOR.FFN_UP,
    "feed_forward.down_proj": MODEL_TENSOR.FFN_DOWN,
    "feed_forward_post_norm": MODEL_TENSOR.FFN_POST_NORM,
}
_QKV = (MODEL_TENSOR.ATTN_Q, MODEL_TENSOR.ATTN_K, MODEL_TENSOR.ATTN_V)

_MATRIX_KINDS = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
}
_CODE_BITS = {GGMLQuantizationType.Q8_0: 8, GGMLQuantizationType.Q4_0: 4}
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}


class GGUFModel(StoredModel):
    """A GGUF model.

    Raises:
        DataError: The file is broken, or its architecture or a tensor type is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, fingerprint_files(path)
        self._file = file = GGUFFile(path)
        self._config = config = _config(file)
        self._dtype = _widest_dtype(file)
        with torch.device("meta"):
            self.model = Decoder(config).to(self._dtype).eval()
        shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}
        fused_gate_up = config.gated and "blk.0.ffn_gate.weight" not in file.tensors
        layout = _layout(shapes, "blk.0.attn_qkv.weight" in file.tensors, fused_gate_up)
        self._places: dict[str, tuple[str, slice]] = {}
        for name, ours in layout.items():
            self._places |= _places(file, name, {parameter: shapes[parameter] for parameter in ours})
        _refuse_other_tensors(file, layout)

    def read(self, name: str) -> Tensor | BlockWeight:
        tensor, rows = self._places[name]
        stored = self._file.tensors[tensor]
        if len(stored.shape) == 1:
            return self._read(name, self._dtype)
        if stored.is_plain or not has_native_blocks(stored.kind):
            return self._read(name, None)
        blocks = self._in_halves(name, self._file.blocks(tensor, rows))
        return BlockWeight(blocks, int(stored.kind), stored.shape[-1])

    def load(self, dtype: torch.dtype | None = None) -> Decoder:
        """As `StoredModel` says; no dtype: the widest that the file's matrices need, which is float32 for blocks."""
        dtype = dtype or self._dtype
        self.model.load_state_dict({name: self._read(name, dtype) for name in self._places}, assign=True)
        return self.model

    def load_tokenizer(self) -> Tokenizer:
        """The tokenizer in the file.

        Raises:
            DataError: There is none, or one of a kind that is not supported.
        """
        return read_tokenizer(self._file.metadata, self._file.path)

    def _read(self, name: str, dtype: torch.dtype | None) -> Tensor:
        tensor, rows = self._places[name]
        if self._config.norm_offset and _is_norm(name):
            return (self._file.read(tensor, torch.float32, rows) - 1.0).to(dtype)
        return self._in_halves(name, self._file.read(tensor, dtype, rows))

    def _in_halves(self, name: str, rows: Tensor) -> Tensor:
        heads = _interleaved_heads(name, self._config)
        return _halves_from_pairs(rows, heads) if heads else rows


def load_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a GGUF file.

    Raises:
        DataError: The file is broken, has no tokenizer, or one of a kind that is not supported.
    """
    return read_tokenizer(GGUFFile(path).metadata, path)


def has_gguf_tokenizer(path: Path) -> bool:
    """Whether a GGUF file brings a tokenizer.

    Raises:
        DataError: The file is broken.
    """
    return has_tokenizer(GGUFFile(path).metadata)


def save_gguf(model: Decoder, tokenizer: Tokenizer | None, path: Path, precision: Precision = "f16") -> None:
    """Write a GGUF file that llama.cpp loads; atomic.

    Matrices have the precision, vectors (norms, biases) and learned positions are float32. A matrix whose rows do not
    divide into blocks of 32 is F16; with `q4_0` the embedding and the output matrix are Q8_0, as llama.cpp
    keeps them finer too. Quantized weights are written without loss: as Q8_0 all of them, as Q4_0 those of 4 bits.

    Raises:
        UsageError: The precision is unknown, the place cannot be written, or llama.cpp has no place for
            something in the model or the tokenizer.
        CapacityError: The disk is full.
    """
    if precision not in get_args(Precision):
        raise UsageError(f"GGUF precision {precision!r} is not known", f"use one of {', '.join(get_args(Precision))}")
    config = model.config
    if config.num_experts:
        raise UsageError("models with experts cannot be written as GGUF", "keep the model as safetensors")
    tensors = list(_tensors_to_write(config, precision))
    metadata = write_metadata(config)
    refuse_inexpressible(config, metadata, {tensor.name: tensor.shape for tensor in tensors})
    metadata |= {"general.type": "model", "general.file_type": int(_FILE_TYPES[precision])}
    metadata |= {"general.quantization_version": gguf.GGML_QUANT_VERSION}
    metadata |= write_tokenizer(tokenizer, config.vocab_size) if tokenizer else {"tokenizer.ggml.model": "none"}
    metadata |= write_control_tokens(config)
    parameters, rope = dequantized_state(model), rope_tensors(config)
    quantized = {f"{name}.weight": module.weight for name, module in quantized_modules(model).items()}
    with atomic_file(path) as temporary:
        _write_header(temporary, metadata, tensors)
        with open(temporary, "ab") as file:
            for tensor in tensors:
                _pad(file)
                for name in tensor.parameters:
                    if name in quantized and quantized[name].bits <= _CODE_BITS.get(tensor.kind, 0):
                        blocks = _as_stored(name, _blocks(quantized[name], tensor.kind), config)
                        file.write(blocks.cpu().numpy().data)
                    else:
                        value = rope[name] if name in rope else _as_stored(name, parameters[name], config)
                        _write_rows(file, value, tensor.kind)
            _pad(file)


# ---- reading ---------------------------------------------------------------------------------------


def _config(file: GGUFFile) -> DecoderConfig:
    find_architecture(file.metadata)
    rope = {name: file.read(name, torch.float32) for name in ROPE_TENSORS if name in file.tensors}
    return read_config(file.metadata, {name: tensor.shape for name, tensor in file.tensors.items()}, rope)


def _widest_dtype(file: GGUFFile) -> torch.dtype:
    """The dtype that holds all matrices as they are; vectors, always float32, don't count."""
    dtypes = {tensor.dtype for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def _refuse_other_tensors(file: GGUFFile, layout: Container[str]) -> None:
    """Leaving a weight out would compute something else than the model's authors did."""
    for name in file.tensors:
        if name not in layout and name not in ROPE_TENSORS and not name.endswith(IGNORED):
            raise DataError(
                f"{file.path} has the tensor {name}, which its architecture does not explain",
                "this model is not supported",
            )


def _places(file: GGUFFile, name: str, shapes: dict[str, torch.Size]) -> Iterator[tuple[str, tuple[str, slice]]]:
    """Where the parameters lie that share the tensor `name`, whose rows are theirs in this order."""
    stored = file.tensors.get(name)
    if stored is None:
        raise DataError(f"{file.path} has no tensor {name}", "it does not hold the whole model")
    expected = (sum(shape[0] for shape in shapes.values()), *next(iter(shapes.values()))[1:])
    if stored.shape != expected:
        raise DataError(
            f"tensor {name} in {file.path} has the shape {stored.shape}, but its metadata says {expected}",
            "metadata and tensors are not of the same model",
        )
    start = 0
    for parameter, shape in shapes.items():
        yield parameter, (name, slice(start, start + shape[0]))
        start += shape[0]


# ---- writing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _OutTensor:
    """A tensor to write: the rows of `parameters` (names of ours), one after the other."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    parameters: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block_elements * block_bytes


def _tensors_to_write(config: DecoderConfig, precision: Precision) -> Iterator[_OutTensor]:
    architecture = ARCHITECTURES[architecture_name(config.family)]
    for name, divisors in rope_tensors(config).items():
        yield _OutTensor(name, GGMLQuantizationType.F32, tuple(divisors.shape), (name,))
    shapes = _parameter_shapes(config)
    layout = _layout(shapes, architecture.fused_qkv, architecture.fused_gate_up and config.gated)
    if config.tied_embeddings and architecture.always_output:
        layout["output.weight"] = ["embed.weight"]
    for name, ours in layout.items():
        shape = (sum(shapes[parameter][0] for parameter in ours), *shapes[ours[0]][1:])
        yield _OutTensor(name, _kind(name, shape, precision), shape, tuple(ours))


def _parameter_shapes(config: DecoderConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in Decoder(config).named_parameters()}


def _as_stored(parameter: str, tensor: Tensor, config: DecoderConfig) -> Tensor:
    if config.norm_offset and _is_norm(parameter):
        return tensor.float() + 1.0
    heads = _interleaved_heads(parameter, config)
    return _pairs_from_halves(tensor, heads) if heads else tensor


def _kind(name: str, shape: tuple[int, ...], precision: Precision) -> GGMLQuantizationType:
    """The type a tensor is stored in."""
    if len(shape) < 2 or name == "position_embd.weight":
        return GGMLQuantizationType.F32
    kind = _MATRIX_KINDS[precision]
    if precision == "q4_0" and name in ("token_embd.weight", "output.weight"):
        kind = GGMLQuantizationType.Q8_0
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _write_header(path: Path, metadata: dict[str, Any], tensors: list[_OutTensor]) -> None:
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif key != "general.architecture":  # which the writer adds
            add[type(value)](key, value)
    for tensor in tensors:
        # the dtype only says that the shape is in elements, not bytes
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _write_rows(file: IO[bytes], tensor: Tensor, kind: GGMLQuantizationType) -> None:
    """Quantize and write some rows at a time, so that memory stays small."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    step = max(1, CHUNK_ELEMENTS // rows.shape[-1])
    for first in range(0, len(rows), step):
        values = rows[first : first + step].float().cpu().contiguous().numpy()
        with np.errstate(all="ignore"):  # a block of zeros divides by its scale
            file.write(np.ascontiguousarray(gguf.quantize(values, kind)).data)


def _blocks(weight: QuantizedWeight, kind: GGMLQuantizationType) -> Tensor:
    """Blocks of the same values, O × bytes of a row. Rounded anew, with scales of their own, they would be others."""
    block_elements, _ = gguf.GGML_QUANT_SIZES[kind]
    codes_OGb = unpack_codes(weight).view(torch.uint8).unflatten(1, (-1, block_elements))
    if kind == GGMLQuantizationType.Q4_0:
        low, high = (codes_OGb + 8).chunk(2, dim=2)
        codes_OGb = low | high << 4
    scales_OG = weight.scales.repeat_interleave(weight.group_size // block_elements, dim=1)
    return torch.cat([scales_OG.view(torch.uint8).unflatten(1, (-1, 2)), codes_OGb], dim=2).flatten(1)


def _pad(file: IO[bytes]) -> None:
    file.write(bytes(-file.tell() % gguf.GGUF_DEFAULT_ALIGNMENT))


# ---- names and layouts -----------------------------------------------------------------------------


def _module(parameter: str) -> str:
    """A parameter's module, without the number of its layer."""
    module = parameter.rpartition(".")[0]
    return module.split(".", 2)[2] if module.startswith("layers.") else module


def _layout(parameters: Iterable[str], fused_qkv: bool, fused_gate_up: bool) -> dict[str, list[str]]:
    """GGUF's tensors, each with our parameters whose rows it holds, in their order."""
    layout: dict[str, list[str]] = {}
    for parameter in parameters:
        module, kind = _module(parameter), parameter.rpartition(".")[2]
        if not parameter.startswith("layers."):
            name = TENSOR_NAMES[_OUTSIDE[module]]
        else:
            tensor = _LAYER[module]
            if fused_qkv and tensor in _QKV:
                tensor = MODEL_TENSOR.ATTN_QKV
            elif fused_gate_up and tensor == MODEL_TENSOR.FFN_GATE:
                tensor = MODEL_TENSOR.FFN_UP
            name = TENSOR_NAMES[tensor].format(bid=parameter.split(".")[1])
        layout.setdefault(f"{name}.{kind}", []).append(parameter)
    return layout


def _is_norm(parameter: str) -> bool:
    return _module(parameter).endswith("norm") and parameter.endswith(".weight")


def _interleaved_heads(parameter: str, config: DecoderConfig) -> int:
    """How many heads of a parameter's rows llama.cpp keeps in pairs; 0 for none."""
    if not ARCHITECTURES[architecture_name(config.family)].interleaved_rotary:
        return 0
    heads = {"attention.q_proj": config.num_heads, "attention.k_proj": config.num_kv_heads}
    return heads.get(_module(parameter), 0)


def _pairs_from_halves(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head from order 0 … d/2-1, d/2 … d-1 to 0, d/2, 1, d/2+1, …"""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _halves_from_pairs(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `_pairs_from_halves`."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
