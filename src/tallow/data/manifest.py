"""What a directory of documents or of tokens says about itself: `manifest.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import NonNegativeInt, ValidationError

from tallow.errors import DataError
from tallow.files import read_json, write_json
from tallow.recipe import Section

MANIFEST = "manifest.json"
SPLITS = ("train", "validation")


class SourceRecord(Section):
    """A file that documents came from: its name in their `source` column, its SHA-256, and what it gave."""

    name: str
    sha256: str
    documents: NonNegativeInt
    bytes: NonNegativeInt


class DocumentCounts(Section):
    """One split of the documents; `bytes` is text in UTF-8."""

    documents: NonNegativeInt
    bytes: NonNegativeInt
    parts: tuple[str, ...]


class DocumentManifest(Section):
    """`documents/manifest.json`.

    Args:
        splits: Counts of `train` and `validation`.
        sources: Every file that was read, with what was read from it, before anything was dropped.
        dropped: How many documents were dropped for each reason, such as `duplicate` or `gopher.min_words`.
        rejected: Records that could not be used; `rejected.jsonl` has them.
    """

    format: Literal["tallow.documents.v2"] = "tallow.documents.v2"
    splits: dict[str, DocumentCounts]
    sources: tuple[SourceRecord, ...]
    dropped: dict[str, NonNegativeInt]
    rejected: NonNegativeInt


class ShardRecord(Section):
    """One shard: `<name>.npy` has its tokens, `<name>.documents.npy` where each document in it starts."""

    name: str
    tokens: NonNegativeInt
    documents: NonNegativeInt


class TokenCounts(Section):
    """One split of the tokens; `bytes` is the text, in UTF-8, that they stand for (end tokens stand for none)."""

    tokens: NonNegativeInt
    documents: NonNegativeInt
    bytes: NonNegativeInt
    shards: tuple[ShardRecord, ...]


class TokenManifest(Section):
    """`tokens/manifest.json`.

    Args:
        tokenizer: Fingerprint of the tokenizer.
        vocab_size: Every token id is below it.
        eos_id: The token that ends each document.
        dtype: How ids are stored.
        splits: Counts and shards of `train` and `validation`.
        sources: The files that the documents came from.
    """

    format: Literal["tallow.tokens.v1"] = "tallow.tokens.v1"
    tokenizer: str
    vocab_size: NonNegativeInt
    eos_id: NonNegativeInt
    dtype: Literal["uint16", "uint32"]
    splits: dict[str, TokenCounts]
    sources: tuple[SourceRecord, ...]


Manifest = TypeVar("Manifest", DocumentManifest, TokenManifest)


def load_document_manifest(directory: Path) -> DocumentManifest:
    """Read the manifest of a directory of documents.

    Raises:
        DataError: It is missing, broken, or of something else.
    """
    return _load(DocumentManifest, directory, "documents", "prepare")


def load_manifest(directory: Path) -> TokenManifest:
    """Read the manifest of a directory of tokens.

    Raises:
        DataError: It is missing, broken, or of something else.
    """
    return _load(TokenManifest, directory, "tokens", "encode")


def save_manifest(manifest: DocumentManifest | TokenManifest, directory: Path) -> None:
    """Write the manifest into a directory."""
    write_json(directory / MANIFEST, manifest.model_dump(mode="json"))


def _load(kind: type[Manifest], directory: Path, what: str, stage: str) -> Manifest:
    path = directory / MANIFEST
    hint = f"name what the stage {stage} has written, or run it again"
    if not path.is_file():
        raise DataError(f"{directory} holds no {what}: {path} is missing", hint)
    try:
        return kind.model_validate(read_json(path, "manifest"))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{path} is not a manifest of {what} ({place}: {problem['msg']})", hint) from error
