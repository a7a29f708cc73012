"""GPT-2's two files: ids by token (`encoder.json`, `vocab.json`) and merges (`vocab.bpe`, `merges.txt`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tallow.console import say
from tallow.errors import DataError
from tallow.files import write_text
from tallow.kernels.text.word_counts import GPT2
from tallow.tokenizer.formats.differences import (
    cut,
    cut_otherwise,
    normalized,
    not_of_bytes,
    refusal,
    vocabulary_of,
    wrong_kind,
)
from tallow.tokenizer.formats.tiktoken import split_of
from tallow.tokenizer.sealed import library_errors
from tallow.tokenizer.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
HINT = "take both files from where the model came from"


def read_merges(vocabulary: bytes, merges: bytes, path: Path) -> Tokenizer:
    """The tokenizer of the two files, which cuts text by GPT-2's rule.

    Args:
        vocabulary: Of `encoder.json`.
        merges: Of `vocab.bpe`.
        path: To be named in errors.

    Raises:
        DataError: A file is broken, or they do not belong together.
    """
    try:
        ids = json.loads(vocabulary)
        pairs = [line.split(" ") for line in merges.decode().split("\n") if line and not line.startswith("#version")]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no vocabulary with merges ({error})", HINT) from error
    if not isinstance(ids, dict) or not all(type(id) is int and id >= 0 for id in ids.values()):
        raise DataError(f"the vocabulary beside {path} does not give ids by token", HINT)
    if not all(len(pair) == 2 for pair in pairs):
        raise DataError(f"{path} has a line that is not a pair of tokens", HINT)
    if any(right.endswith("</w>") for _, right in pairs):
        raise DataError(
            f"{path} marks the ends of words, which GPT-2's kind does not", "take the model's tokenizer.json"
        )
    say(f"{path} does not say how text is cut before pairs are merged; taking GPT-2's rule")
    with library_errors(f"{path} does not fit its vocabulary", HINT):
        backend = tokenizers.Tokenizer(models.BPE(ids, [(left, right) for left, right in pairs]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if END_OF_TEXT in ids:
        backend.add_special_tokens([END_OF_TEXT])
    return Tokenizer.from_backend(backend, eos_token=END_OF_TEXT if END_OF_TEXT in ids else None)


def write_merges(tokenizer: Tokenizer, out: Path) -> None:
    """Write `vocab.json` and `merges.txt` into a directory.

    Raises:
        UsageError: The tokenizer is not of GPT-2's kind, or has more than the two files say.
    """
    state = json.loads(tokenizer.backend.to_str())
    model = state["model"]
    if differences := list(_differences(state)):
        raise refusal("GPT-2's files cannot hold this tokenizer", differences)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    write_text(out / "merges.txt", "\n".join(lines) + "\n")


def _differences(state: Mapping[str, Any]) -> Iterator[str]:
    """In what a tokenizer is not of GPT-2's kind."""
    model = state["model"]
    yield from wrong_kind(state, ("BPE",))
    yield from not_of_bytes(state)
    yield from normalized(state)
    yield from cut_otherwise(split_of(state), GPT2, "GPT-2")
    if split_of(state) is None:
        yield from cut(state)
    if model.get("ignore_merges"):
        yield "it takes a word that is a token as it is, before it merges any"
    known = vocabulary_of(state)
    outside = [token["content"] for token in state["added_tokens"] if token["content"] not in known]
    if outside:
        yield f"it has tokens beside its vocabulary ({outside[0]})"
