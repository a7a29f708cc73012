"""Tokenizers in the files of other programs, read and written: one file here a format.

Files may be compressed by gzip. What a file is, its content tells.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

from tallow.errors import DataError, UsageError, reading
from tallow.files import directory_size
from tallow.tokenizer.formats.merges import read_merges, write_merges
from tallow.tokenizer.formats.rwkv import read_rwkv, write_rwkv
from tallow.tokenizer.formats.sentencepiece import read_sentencepiece, write_sentencepiece
from tallow.tokenizer.formats.tiktoken import read_tiktoken, write_tiktoken
from tallow.tokenizer.tokenizer import MAX_FILE_BYTES, Tokenizer

TokenizerFormat = Literal["tokenizer", "sentencepiece", "tiktoken", "gpt2", "rwkv"]
TOKENIZER_FORMATS: tuple[TokenizerFormat, ...] = get_args(TokenizerFormat)

IN_A_DIRECTORY = ("tokenizer.model", "spiece.model", "merges.txt", "vocab.bpe")
"""Names by which a file is found in a directory without tokenizer.json; other files have a name of their own."""
VOCABULARIES = (("merges.txt", "vocab.json"), ("vocab.bpe", "encoder.json"))
GZIP = b"\x1f\x8b"
RANKED = re.compile(rb"\s*[A-Za-z0-9+/]+={0,2} \d+\s*(\n|$)")
RWKV = re.compile(rb"\s*\d+ b?['\"]")
MERGES = re.compile(rb"#version|\S+ \S+\r?\n")
HINT = "supported: tokenizer.json, sentencepiece's .model, tiktoken's, GPT-2's merges beside ids, RWKV's vocabulary"


def has_tokenizer(path: Path) -> bool:
    """Whether a path is a file other than a model, or a directory with a tokenizer in it."""
    if path.is_dir():
        return (path / "tokenizer.json").exists() or find_tokenizer_file(path) is not None
    return path.is_file() and path.suffix != ".gguf"


def find_tokenizer_file(directory: Path) -> Path | None:
    """The file with the tokenizer in a directory that has no tokenizer.json."""
    named = (directory / name for name in IN_A_DIRECTORY)
    return next((path for path in (*named, *sorted(directory.glob("*.tiktoken"))) if path.is_file()), None)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file.

    Raises:
        DataError: The file is missing, broken, or none of those that are known.
    """
    content = _content(path)
    if content.lstrip()[:1] == b"{":
        if b'"bpe_ranks"' in content:
            return read_tiktoken(content, path)
        return Tokenizer.from_json(content, path)
    if RANKED.match(content):
        return read_tiktoken(content, path)
    if RWKV.match(content):
        return read_rwkv(content, path)
    if content[:1] == b"\x0a":
        return read_sentencepiece(content, path)
    if MERGES.match(content):
        for end, other in VOCABULARIES:
            beside = path.with_name(path.name.replace(end, other))
            if beside != path and beside.exists():
                return read_merges(_content(beside), content, path)
        raise DataError(f"{path} has merges, but their vocabulary is not beside it", "put vocab.json there")
    raise DataError(f"{path} is no tokenizer that tallow knows", HINT)


def convert_tokenizer(tokenizer: Tokenizer, to: TokenizerFormat, out: Path) -> dict[str, Any]:
    """Write a tokenizer in another format.

    Args:
        tokenizer: Any.
        to: The format.
        out: A directory for `tokenizer` and `gpt2`, else a file.

    Returns:
        `path`, `format`, `vocab_size`, and `bytes` (of what was written).

    Raises:
        UsageError: The format cannot hold it, or `out` cannot be written.
        CapacityError: The disk is full.
    """
    if (to in ("tokenizer", "gpt2")) != out.is_dir() and out.exists():
        what = "directory" if out.is_dir() else "file"
        raise UsageError(f"{out} is a {what}, which {to} is not written to", "give --out another name")
    match to:
        case "tokenizer":
            out.mkdir(parents=True, exist_ok=True)
            tokenizer.save(out)
        case "sentencepiece":
            write_sentencepiece(tokenizer, out)
        case "tiktoken":
            write_tiktoken(tokenizer, out)
        case "gpt2":
            write_merges(tokenizer, out)
        case "rwkv":
            write_rwkv(tokenizer, out)
    return {"path": str(out), "format": to, "vocab_size": tokenizer.vocab_size, "bytes": directory_size(out)}


def _content(path: Path) -> bytes:
    """Of a file, unpacked."""
    with reading(path, "tokenizer"), open(path, "rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
        if content.startswith(GZIP):
            file.seek(0)
            try:
                with gzip.open(file) as unpacked:
                    content = unpacked.read(MAX_FILE_BYTES + 1)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(f"{path} is cut short or damaged", "fetch it again") from error
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"tokenizer {path} is larger than {MAX_FILE_BYTES >> 20} MB", HINT)
    return content
