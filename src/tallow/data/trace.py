"""Where a token came from: token → document → source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from tallow.data.encode import EncodeConfig
from tallow.data.manifest import TokenManifest, load_manifest
from tallow.data.shards import HINT, Shard, lineage_path
from tallow.errors import DataError, UsageError, reading
from tallow.recipe import load_recipe
from tallow.run import RECIPE
from tallow.tokenizer.tokenizer import Tokenizer

AROUND = 24
"""Tokens that are shown before and behind it."""


@dataclass(frozen=True)
class Trace:
    """A token and its document.

    Args:
        token: Its id.
        document: The document's id.
        source: The file that it came from.
        offset: Where in it, as readers count it: bytes of text and JSON lines, rows of parquet.
        position: Of the token in the document, from 0.
        length: Tokens of the document, the one that ends it counted.
        before, text, behind: The token's text, and those around it; empty if there is no tokenizer to tell.
    """

    token: int
    document: str
    source: str
    offset: int
    position: int
    length: int
    before: str = ""
    text: str = ""
    behind: str = ""

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


def trace(shard: Path, number: int, tokenizer: Path | None = None) -> Trace:
    """Say where a token of a shard came from.

    Args:
        shard: `…/tokens/train/shard-00000`, with or without `.npy`.
        number: Of the token in the shard, from 0.
        tokenizer: What tells its text; None: the one that the stage encode was given, if it is still there.

    Raises:
        DataError: There is no such shard, or it is damaged; the tokenizer is another one.
        UsageError: The shard has no such token.
    """
    name = shard.name.removesuffix(".npy")
    manifest = load_manifest(shard.parent.parent)
    split = manifest.splits.get(shard.parent.name)
    records = [record for record in split.shards if record.name == name] if split else []
    if not records:
        known = [f"{split}/{record.name}" for split, counts in manifest.splits.items() for record in counts.shards]
        raise DataError(
            f"{shard.parent.parent} has no shard {shard.parent.name}/{name}", f"it has {', '.join(known[:9])}"
        )
    opened = Shard.open(shard.parent, records[0], manifest.dtype)
    if not 0 <= number < len(opened.tokens):
        raise UsageError(f"{shard} has no token {number:,}", f"its tokens are 0 to {len(opened.tokens) - 1:,}")
    place = int(np.searchsorted(opened.starts, np.uint64(number), side="right")) - 1
    begin = int(opened.starts[place])
    end = int(opened.starts[place + 1]) if place + 1 < len(opened.starts) else len(opened.tokens)
    lineage = _lineage(shard.parent, name, place)
    spell = _tokenizer(shard.parent.parent, manifest, tokenizer)
    texts: dict[str, str] = {}
    if spell is not None:
        spans = {
            "before": (max(begin, number - AROUND), number),
            "text": (number, number + 1),
            "behind": (number + 1, min(end, number + 1 + AROUND)),
        }
        texts = {
            key: spell.decode(opened.tokens[first:last].tolist(), skip_special_tokens=False)
            for key, (first, last) in spans.items()
        }
    return Trace(
        token=int(opened.tokens[number]),
        document=lineage["id"],
        source=lineage["source"],
        offset=lineage["offset"],
        position=number - begin,
        length=end - begin,
        **texts,
    )


def _lineage(directory: Path, name: str, document: int) -> dict[str, Any]:
    path = lineage_path(directory, name)
    try:
        with reading(path, "lineage of a token shard"), pq.ParquetFile(path) as file:
            first = 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if document < first + rows:
                    return file.read_row_group(group).slice(document - first, 1).to_pylist()[0]
                first += rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged", HINT) from error
    raise DataError(f"{path} does not fit its token shard", HINT)


def _tokenizer(directory: Path, manifest: TokenManifest, given: Path | None) -> Tokenizer | None:
    recipe = directory.parent / RECIPE
    if given is None and recipe.is_file():
        try:
            given = EncodeConfig.model_validate(load_recipe(recipe)["encode"]).tokenizer
        except (UsageError, ValidationError, KeyError):
            return None
        if given is None or not given.is_dir():
            return None
    if given is None:
        return None
    tokenizer = Tokenizer.load(given)
    if tokenizer.fingerprint != manifest.tokenizer:
        raise DataError(
            f"{given} is not the tokenizer that {directory} was made with", "name that one with --tokenizer"
        )
    return tokenizer
