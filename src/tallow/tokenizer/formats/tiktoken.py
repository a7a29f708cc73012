"""tiktoken's vocabularies: byte strings with ranks, by which they are merged.

Two files are read: lines of a token in base64 and its rank (`cl100k_base.tiktoken`), which do not say how text is cut
before, so that the vocabulary must be a known one; and JSON, as the package `tiktoken` of npm has it, with `pat_str`,
`special_tokens` and `bpe_ranks`. Both are written, too.

tiktoken merges whatever two tokens side by side make a token, the one of the smallest rank first, and takes a piece
that is a token as it is. `tallow.tokenizer.formats.pairs` says how that becomes a list of pairs.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from tallow.errors import DataError
from tallow.files import write_text
from tallow.kernels.text.bpe import O200K, cl100k_pattern
from tallow.kernels.text.word_counts import GPT2
from tallow.tokenizer.formats.differences import cut, normalized, not_of_bytes, refusal, wrong_kind
from tallow.tokenizer.formats.pairs import all_pairs, last_pairs
from tallow.tokenizer.sealed import library_errors
from tallow.tokenizer.spelling import byte_alphabet, byte_letters
from tallow.tokenizer.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
MAX_TOKENS = 1 << 22
MAX_TOKEN_BYTES = 1 << 12
HINT = "take the file from where the model came from"

GPT2_ATOMIC = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
CL100K_ATOMIC = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|"
    r"\s+(?!\S)|\s"
)
"""tiktoken's newer spellings of two rules. At the end of a text the second leaves line ends and spaces together, where
cl100k's older one cuts; this is the same for a vocabulary without tokens that go on behind a line end."""

AMBIGUOUS = re.compile(r"\{\d*,?\d*\}\+|\$|\(\?[a-z]*[msx]|\\[bBhHRXAzZGK]|&&|\[\^?\[|(?<!\[)\^")
"""What the two regular expression engines read in different ways, or might: `{1,3}+`, anchors, flags but `i`, sets."""


class Encoding(NamedTuple):
    """A known vocabulary: the rule for cutting text, control tokens, and how many other tokens there are."""

    pattern: str
    special: Mapping[str, int]
    tokens: int


ENCODINGS = {
    "r50k_base": Encoding(GPT2, {END_OF_TEXT: 50256}, 50256),
    "p50k_base": Encoding(GPT2, {END_OF_TEXT: 50256}, 50280),
    "cl100k_base": Encoding(
        cl100k_pattern(3),
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        100256,
    ),
    "o200k_base": Encoding(O200K, {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}, 199998),
}


def read_tiktoken(content: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a file, of either kind.

    Args:
        content: Of the file.
        path: To be named in errors.

    Raises:
        DataError: The file is broken, or does not say how text is cut.
    """
    if content.lstrip()[:1] == b"{":
        state = _json(content, path)
        try:
            ranks = dict(_runs(state["bpe_ranks"], path))
            special = {str(token): int(id) for token, id in state["special_tokens"].items()}
            pattern = str(state["pat_str"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} is no tiktoken vocabulary ({error!r})", HINT) from error
        return from_ranks(ranks, pattern, special, path)
    ranks = dict(_lines(content, path))
    for encoding in ENCODINGS.values():
        if encoding.tokens == len(ranks):
            return from_ranks(ranks, encoding.pattern, encoding.special, path)
    raise DataError(
        f"{path} has {len(ranks):,} tokens and does not say how text is cut before they are merged",
        'give it as JSON: {"pat_str": …, "special_tokens": {…}, "bpe_ranks": "! 0 TOKEN TOKEN …"}',
    )


def from_ranks(ranks: Mapping[bytes, int], pattern: str, special: Mapping[str, int], path: Path) -> Tokenizer:
    """The tokenizer of byte strings with ranks, which are their ids.

    Args:
        ranks: By bytes; all 256 bytes are there.
        pattern: What matches the pieces into which text is cut, as tiktoken takes it.
        special: Ids of control tokens by their spelling.
        path: To be named in errors.

    Raises:
        DataError: Bytes are missing, ids occur twice, or the pattern cannot be expressed.
    """
    ids = [*ranks.values(), *special.values()]
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise DataError(f"{path} lacks tokens for some bytes, without which not all text can be encoded", HINT)
    if len(set(ids)) < len(ids) or not 0 <= min(ids) <= max(ids) < MAX_TOKENS:
        raise DataError(f"{path} gives an id to two tokens, or one that is too large", HINT)
    letters = byte_letters()
    spelled = {token: "".join([letters[byte] for byte in token]) for token in ranks}
    if not special.keys().isdisjoint(spelled.values()):
        raise DataError(f"{path} has special tokens that are others, too", HINT)
    pairs = last_pairs(ranks)
    whole = pairs is None
    merges = [(spelled[left], spelled[right]) for left, right in (all_pairs(ranks) if pairs is None else pairs)]
    vocabulary = {**{spelled[token]: id for token, id in ranks.items()}, **special}
    with library_errors(f"{path} is broken", HINT):
        backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_translated(pattern, ranks, path)), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return Tokenizer.from_backend(backend, eos_token=END_OF_TEXT if END_OF_TEXT in special else None)


def write_tiktoken(tokenizer: Tokenizer, out: Path) -> None:
    """Write JSON if `out` ends in `.json`, else lines, which say nothing of special tokens and the cutting of text.

    Raises:
        UsageError: tiktoken has no such tokenizer.
    """
    state = json.loads(tokenizer.backend.to_str())
    ranks, pattern = _ranks(state), split_of(state)
    if differences := list(_differences(state, ranks, pattern)):
        raise refusal("tiktoken has no such tokenizer", differences)
    assert ranks is not None
    if out.suffix != ".json":
        lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
        return write_text(out, "".join(lines))
    lines, line = list[str](), list[str]()
    expected = -1
    for token, rank in ranks.items():
        if rank != expected:
            lines.append(" ".join(line))
            line = ["!", str(rank)]
        line.append(base64.b64encode(token).decode())
        expected = rank + 1
    ids = {token["content"]: token["id"] for token in state["added_tokens"]}
    runs = "\n".join([*lines[1:], " ".join(line)])
    write_text(out, json.dumps({"pat_str": pattern, "special_tokens": ids, "bpe_ranks": runs}))
    return None


def _differences(state: Mapping[str, Any], ranks: object, pattern: str | None) -> Iterator[str]:
    """In what a tokenizer is not of tiktoken's kind."""
    kinds = [*wrong_kind(state, ("BPE",)), *not_of_bytes(state)]
    yield from kinds
    yield from normalized(state)
    if pattern is None:
        yield from cut(state) if state["pre_tokenizer"] else ("it does not cut text into words",)
    if ranks is None and not kinds:
        yield "it does not merge in the order of its ids"
    plain = [token["content"] for token in state["added_tokens"] if not token["special"]]
    if plain:
        yield f"it has added tokens that are not special ones ({plain[0]})"


def _ranks(state: Mapping[str, Any]) -> dict[bytes, int] | None:
    """Byte strings with their ids in the order of these; None if they are not what they are merged by."""
    model, letters = state["model"], byte_alphabet()
    added = {token["content"] for token in state["added_tokens"]}
    if model["type"] != "BPE":
        return None
    ranks = {
        bytes(letters[letter] for letter in token): id
        for token, id in sorted(model["vocab"].items(), key=lambda item: item[1])
        if token not in added and letters.keys() >= set(token)
    }
    if not all(bytes([byte]) in ranks for byte in range(256)):
        return None
    merges = [
        tuple(bytes(letters[letter] for letter in part) for part in pair)
        for pair in model["merges"]
        if letters.keys() >= set("".join(pair))
    ]
    pairs = last_pairs(ranks)
    expected = all_pairs(ranks) if pairs is None else pairs
    return ranks if merges == expected and bool(model.get("ignore_merges")) == (pairs is None) else None


def split_of(state: Mapping[str, Any]) -> str | None:
    """The regular expression that cuts text before byte-level BPE; None where something else does."""
    steps = (state["pre_tokenizer"] or {}).get("pretokenizers", [state["pre_tokenizer"]])
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return GPT2
        case [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
        case _:
            return None


def _translated(pattern: str, ranks: Iterable[bytes], path: Path) -> str:
    """The pattern in the library's dialect, in which some of tiktoken's says something else without a word."""
    if pattern == GPT2_ATOMIC:
        return GPT2
    if pattern == CL100K_ATOMIC and not any(re.search(rb"[\r\n][^\r\n]", token) for token in ranks):
        return cl100k_pattern(3)
    if AMBIGUOUS.search(pattern):
        raise DataError(
            f"the regular expression in {path} means something else to other libraries",
            "write it without anchors, {1,3}+, and flags but (?i:…)",
        )
    return pattern


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error})", HINT) from error


def _runs(text: str, path: Path) -> Iterator[tuple[bytes, int]]:
    """Tokens of lines that give a sign, the rank of the first token, and tokens."""
    for line in text.split("\n"):
        if line:
            _, first, *tokens = line.split(" ")
            for rank, token in enumerate(tokens, int(first)):
                yield _decoded(token.encode(), path), rank


def _lines(content: bytes, path: Path) -> Iterator[tuple[bytes, int]]:
    for number, line in enumerate(content.splitlines(), 1):
        token, _, rank = line.strip().partition(b" ")
        if token and not rank.isdigit():
            raise DataError(f"{path} line {number} is no token with its rank", HINT)
        if token:
            yield _decoded(token, path), int(rank)


def _decoded(token: bytes, path: Path) -> bytes:
    try:
        decoded = base64.b64decode(token, validate=True)
    except binascii.Error as error:
        raise DataError(f"{path} has a token that is not in base64: {token[:40]!r}", HINT) from error
    if not 0 < len(decoded) <= MAX_TOKEN_BYTES:
        raise DataError(f"{path} has a token of {len(decoded)} bytes", HINT)
    return decoded
