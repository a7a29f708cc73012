"""Which tokenizers our own code encodes, several times faster than the library and with the same ids.

- Byte-level BPE without a normalizer whose pre-tokenizer is one of the well-known rules (GPT-2's, cl100k's with any
  limit for digits, o200k's) and whose model has a token for each byte.
- Longest match over bytes (`tallow.tokenizer.longest`), for which the library takes the square of a text's length.

All others, texts with tokens that were added to the vocabulary and are not special, and BPE on machines without our C++
stay with the library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from tallow.kernels.text.bpe import SPLIT_RULES, BpeEncoder, BpeVocabulary, SplitRule
from tallow.kernels.text.encoder import Encoder
from tallow.kernels.text.longest_match import LongestMatch
from tallow.kernels.text.word_counts import GPT2
from tallow.tokenizer.longest import longest_match_tokens
from tallow.tokenizer.spelling import byte_alphabet

MAX_SYMBOLS = 1 << 24


def direct_encoder(backend: tokenizers.Tokenizer, ids: Mapping[int, int], readable: Sequence[str]) -> Encoder | None:
    """What encodes as `backend` does, without what it puts around a text; None where only the library can.

    Args:
        backend: Any tokenizer.
        ids: What stands for some of its ids in the result.
        readable: The added tokens that a text may spell.
    """
    stops = [token for token in readable if token]
    if isinstance(backend.model, models.WordPiece):
        tokens = longest_match_tokens(json.loads(backend.to_str()))
        return None if tokens is None else LongestMatch({token: ids.get(id, id) for token, id in tokens.items()}, stops)
    if not isinstance(backend.model, models.BPE) or backend.normalizer is not None or not BpeEncoder.available():
        return None
    rule = _rule(backend.pre_tokenizer)
    if rule is None:
        return None
    model = json.loads(backend.to_str())["model"]
    vocabulary = _vocabulary(model, rule, ids, stops) if _is_plain(model) else None
    return None if vocabulary is None else BpeEncoder(vocabulary)


def _rule(pre_tokenizer: pre_tokenizers.PreTokenizer | None) -> SplitRule | None:
    if pre_tokenizer is None:
        return None
    state = json.loads(pre_tokenizer.__getstate__())
    steps = state.get("pretokenizers", [state])
    pattern = GPT2
    if len(steps) == 2 and steps[0]["type"] == "Split":
        split = steps[0]
        if split["behavior"] != "Isolated" or split["invert"] or "Regex" not in split["pattern"]:
            return None
        pattern = split["pattern"]["Regex"]
    last = steps[-1]
    if len(steps) > 2 or last["type"] != "ByteLevel" or last["add_prefix_space"] or last["use_regex"] != len(steps) % 2:
        return None
    return SPLIT_RULES.get(pattern)


def _is_plain(model: Mapping[str, Any]) -> bool:
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    return not any(model.get(name) for name in odd)


def _vocabulary(
    model: Mapping[str, Any], rule: SplitRule, ids: Mapping[int, int], stops: Sequence[str]
) -> BpeVocabulary | None:
    letters = byte_alphabet()
    symbols: dict[str, int] = model["vocab"]
    if not symbols.keys() >= letters.keys() or max(symbols.values()) >= MAX_SYMBOLS:
        return None
    of_byte = np.zeros(256, dtype=np.int32)
    for letter, byte in letters.items():
        of_byte[byte] = symbols[letter]
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    merges = np.array(
        [(symbols[left], symbols[right], symbols[left + right]) for left, right in pairs], dtype=np.int32
    ).reshape(-1, 3)
    id_of_symbol = np.arange(max(symbols.values()) + 1, dtype=np.uint32)
    for symbol, id in ids.items():
        if symbol < len(id_of_symbol):
            id_of_symbol[symbol] = id
    whole = {}
    if model.get("ignore_merges"):
        for token, symbol in symbols.items():
            if token and letters.keys() >= set(token):
                whole[bytes(letters[letter] for letter in token)] = symbol
    return BpeVocabulary(rule, of_byte, merges, id_of_symbol, whole, stops)
