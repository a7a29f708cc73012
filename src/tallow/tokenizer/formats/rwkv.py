"""RWKV's vocabularies: lines of an id, a Python literal of a string or of bytes, and how many bytes it has.

Text becomes, from left to right, always the longest token that fits. Id 0 is not in the file: it ends a text.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tallow.errors import DataError
from tallow.files import write_text
from tallow.tokenizer.formats.differences import cut, normalized, not_of_bytes, refusal, wrong_kind
from tallow.tokenizer.longest import longest_match_backend, longest_match_tokens
from tallow.tokenizer.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
MAX_LINE = 1 << 14
MAX_ID = 1 << 22
HINT = "take the file from where the model came from"


def read_rwkv(content: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a file.

    Raises:
        DataError: The file is broken, or lacks tokens for some bytes.
    """
    tokens = dict[bytes, int]()
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            id, token = _parsed(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{path} line {number} is no id with its token and its length", HINT) from error
        if token in tokens:
            raise DataError(f"{path} line {number} has a token that was there before", HINT)
        tokens[token] = id
    if not all(bytes([byte]) in tokens for byte in range(256)):
        raise DataError(f"{path} lacks tokens for some bytes, without which not all text can be encoded", HINT)
    if len(set(tokens.values())) < len(tokens) or END_OF_TEXT.encode() in tokens:
        raise DataError(f"{path} gives an id to two tokens", HINT)
    return Tokenizer.from_backend(longest_match_backend(tokens, {END_OF_TEXT: 0}), eos_token=END_OF_TEXT)


def write_rwkv(tokenizer: Tokenizer, out: Path) -> None:
    """Write such a file.

    Raises:
        UsageError: The tokenizer does not take the longest token that fits.
    """
    state = json.loads(tokenizer.backend.to_str())
    tokens = longest_match_tokens(state)
    if tokens is None:
        kinds = [*wrong_kind(state, ("WordPiece",)), *not_of_bytes(state), *normalized(state)]
        raise refusal("RWKV has no such tokenizer", [*kinds, *cut(state)])
    if min(tokens.values()) < 1:
        raise refusal("RWKV has no such tokenizer", ["it has a token with the id 0, which ends a text there"])
    lines = list[str]()
    for token, id in sorted(tokens.items(), key=lambda item: item[1]):
        try:
            literal = repr(token.decode())
        except UnicodeDecodeError:
            literal = repr(token)
        lines.append(f"{id} {literal} {len(token)}\n")
    write_text(out, "".join(lines))


def _parsed(line: bytes) -> tuple[int, bytes]:
    if len(line) > MAX_LINE:
        raise ValueError
    id, _, rest = line.decode().strip().partition(" ")
    literal, _, length = rest.rpartition(" ")
    token = ast.literal_eval(literal)
    if isinstance(token, str):
        token = token.encode()
    if not isinstance(token, bytes) or not token or len(token) != int(length) or not 0 < int(id) < MAX_ID:
        raise ValueError
    return int(id), token
