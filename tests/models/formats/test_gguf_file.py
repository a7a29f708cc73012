"""The container: what it says is read exactly, and no file, however broken, gets more than a `DataError`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.gguf.dequant import dequantize as reference_dequantize

from tallow.errors import DataError, TallowError
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats import gguf_file, load_model, load_tokenizer, save_gguf
from tallow.models.formats.gguf_file import GGUFFile
from tallow.tokenizer.tokenizer import Tokenizer

ROWS, COLUMNS = 6, 512


def write(path: Path, metadata: dict[str, object], tensors: dict[str, tuple[np.ndarray, Kind]]) -> GGUFFile:
    """A file by the `gguf` package's own writer."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint64(key, value)
            case float():
                writer.add_float64(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


def random_blocks(kind: Kind, generator: np.random.Generator) -> np.ndarray:
    """Quantized rows with sensible scales: every byte random, but the float16 scales between 2^-7 and 2."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (ROWS * COLUMNS // gguf.GGML_QUANT_SIZES[kind][0], block_bytes), dtype=np.uint8)
    for start in {Kind.Q4_1: (0, 2), Kind.Q5_1: (0, 2), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,)}.get(
        kind, (0,)
    ):
        scales = (2.0 ** generator.uniform(-7, 1, (len(blocks), 1))).astype(np.float16)
        blocks[:, start : start + 2] = scales.view(np.uint8)
    return blocks.reshape(ROWS, -1)


QUANTIZED = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("chunk", [COLUMNS, gguf_file.CHUNK_ELEMENTS])
def test_quantized_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, chunk: int) -> None:
    monkeypatch.setattr(gguf_file, "CHUNK_ELEMENTS", chunk)
    blocks = random_blocks(kind, np.random.default_rng(0))
    file = write(tmp_path / "model.gguf", {}, {"a": (blocks, kind)})
    expected = torch.from_numpy(gguf.dequantize(blocks, kind))
    assert file.tensors["a"].shape == expected.shape == (ROWS, COLUMNS)
    assert torch.equal(file.read("a"), expected)
    assert torch.equal(file.read("a", torch.bfloat16), expected.bfloat16())
    assert torch.equal(file.read("a", rows=slice(2, 5)), expected[2:5])


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZED if "5_" not in kind.name or "K" in kind.name])
def test_dequantization_against_transformers(tmp_path: Path, kind: Kind) -> None:
    """An implementation of its own, which has all these types but Q5_0 and Q5_1."""
    blocks = random_blocks(kind, np.random.default_rng(1))
    ours = write(tmp_path / "model.gguf", {}, {"a": (blocks, kind)}).read("a")
    theirs = reference_dequantize(torch.from_numpy(blocks), int(kind)).reshape(ours.shape)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_float_tensors_are_mapped_and_private(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float32).reshape(4, 16)
    half = values.astype(np.float16)
    brain = gguf.quantize(values, Kind.BF16)
    path = tmp_path / "model.gguf"
    file = write(path, {}, {"f32": (values, Kind.F32), "f16": (half, Kind.F16), "bf16": (brain, Kind.BF16)})
    mapped = {name: file.read(name) for name in file.tensors}
    assert [tensor.dtype for tensor in mapped.values()] == [torch.float32, torch.float16, torch.bfloat16]
    for tensor in mapped.values():
        assert torch.equal(tensor.float(), torch.from_numpy(values))
    with open(path, "r+b") as raw:  # what changes in the file shows: nothing was copied
        raw.seek(file.tensors["f32"].offset)
        raw.write(struct.pack("<f", 7.0))
    assert mapped["f32"][0, 0] == 7.0
    before = path.read_bytes()
    mapped["f16"].fill_(3.0)
    assert path.read_bytes() == before
    assert torch.equal(file.read("bf16", torch.float16, slice(1, 3)), torch.from_numpy(half[1:3]))
    assert torch.equal(file.read("f32", rows=slice(3, 4)), torch.from_numpy(values[3:4]))


def test_metadata(tmp_path: Path) -> None:
    values = {
        "a": 2**40,
        "b": 1.5,
        "c": True,
        "d": "grüße",
        "e": ["x", "", "▁y"],
        "f": [1, -2, 3],
        "g": [0.25],
        "h": [True, False],
    }
    assert write(tmp_path / "model.gguf", values, {}).metadata == {"general.architecture": "llama", **values}


def header(tensors: int = 0, keys: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + rest


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def tensor(shape: list[int], kind: int = 0, offset: int = 0, name: bytes = b"t") -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARRAY, STRING, UINT32 = 9, 8, 4
DAMAGED = {
    "empty": (b"", "no GGUF file"),
    "a few bytes": (b"GGUF", "no GGUF file"),
    "another format": (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
    "version 1": (header(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "a part of several": (header(keys=1, rest=string(b"split.count") + struct.pack("<IH", 2, 3)), "several files"),
    "endless keys": (header(keys=2**60), "metadata keys"),
    "endless tensors": (header(tensors=2**63), "tensors"),
    "missing keys": (header(keys=60000), "ends within its header"),
    "endless string": (header(keys=1, rest=string(b"k", 2**62)), "ends within its header"),
    "negative string": (header(keys=1, rest=string(b"k", 2**64 - 1)), "ends within its header"),
    "endless array": (header(keys=1, rest=string(b"k") + struct.pack("<IIQ", ARRAY, UINT32, 2**61)), "ends within"),
    "endless strings": (header(keys=1, rest=string(b"k") + struct.pack("<IIQ", ARRAY, STRING, 2**61)), "strings"),
    "arrays of arrays": (header(keys=1, rest=string(b"k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)), "arrays of arrays"),
    "unknown value": (header(keys=1, rest=string(b"k") + struct.pack("<I", 77)), "unknown type 77"),
    "not UTF-8": (header(keys=1, rest=string(b"\xff\xfe")), "UTF-8"),
    "twice a key": (header(keys=2, rest=2 * (string(b"k") + struct.pack("<II", UINT32, 1))), "twice"),
    "odd alignment": (
        header(keys=1, rest=string(b"general.alignment") + struct.pack("<II", UINT32, 24)),
        "alignment is 24",
    ),
    "no dimensions": (header(tensors=1, rest=tensor([])), "0 dimensions"),
    "many dimensions": (header(tensors=1, rest=tensor([1] * 9)), "9 dimensions"),
    "empty tensor": (header(tensors=1, rest=tensor([4, 0])), "empty"),
    "huge tensor": (header(tensors=1, rest=tensor([2**62, 2**62])), "does not lie inside"),
    "tensor beyond the end": (header(tensors=1, rest=tensor([4], offset=2**63) + bytes(64)), "does not lie inside"),
    "tensors over each other": (
        header(tensors=8, rest=b"".join(tensor([32], name=b"%d" % i) for i in range(8)) + bytes(160)),
        "does not lie inside",
    ),
    "twice a tensor": (header(tensors=2, rest=2 * tensor([4]) + bytes(64)), "twice"),
    "half a block": (header(tensors=1, rest=tensor([40], kind=2) + bytes(64)), "multiple of 32"),
    "unknown type": (header(tensors=1, rest=tensor([4], kind=200) + bytes(64)), "unknown type 200"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    raw, complaint = DAMAGED[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=complaint):
        GGUFFile(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        GGUFFile(tmp_path / "none.gguf")
    with pytest.raises(DataError, match="directory"):
        GGUFFile(tmp_path)


def test_type_without_dequantization_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", {}, {"a": (np.zeros((2, 8), np.int32), Kind.I32)})
    with pytest.raises(DataError, match="I32"):
        file.read("a")


def test_file_cut_short_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    file = write(path, {}, {"a": (random_blocks(Kind.Q8_0, np.random.default_rng(0)), Kind.Q8_0)})
    with open(path, "r+b") as raw:
        raw.truncate(file.tensors["a"].offset + 100)
    with pytest.raises(DataError, match="ends within"):
        file.read("a")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Tokenizer]) -> bytes:
    """A whole small model with a tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    tokenizer = make_tokenizer()
    config = DecoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
        max_positions=64,
    )
    model = Decoder(config)
    initialize(model, seed=0)
    save_gguf(model, tokenizer, path, "q4_0")
    return path.read_bytes()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "model.gguf"


def load_all(path: Path) -> None:
    """Success or an error of ours; anything else fails the test."""
    for load in (load_model, load_tokenizer):
        with suppress(TallowError):
            load(path)


@given(data=st.data())
def test_truncated_anywhere(whole: bytes, damaged: Path, data: st.DataObject) -> None:
    damaged.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError):
        load_model(damaged)
    load_all(damaged)


@given(data=st.data())
def test_changed_bytes(whole: bytes, damaged: Path, data: st.DataObject) -> None:
    """Most of the file is weights and tokens, so half of the changes go to the first kilobytes and the tensor list."""
    raw = bytearray(whole)
    description = whole.index(b"token_embd.weight")
    places = st.one_of(
        st.integers(0, 1500), st.integers(description, description + 800), st.integers(0, len(whole) - 1)
    )
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=6)):
        raw[place] = value
    damaged.write_bytes(raw)
    load_all(damaged)
