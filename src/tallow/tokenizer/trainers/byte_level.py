"""Vocabularies over bytes, each of which a letter stands for (GPT-2's alphabet): any text can be said in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, pre_tokenizers

from tallow.kernels.text.merges import Merge
from tallow.kernels.text.word_counts import MaxDigits, WordCounts, split_pattern
from tallow.tokenizer.spelling import byte_alphabet


def byte_letters() -> list[str]:
    """The letters in the order of their symbols, of which there is one for each byte."""
    return sorted(byte_alphabet())


def byte_symbols(words: WordCounts) -> npt.NDArray[np.int32]:
    """The symbols of words."""
    alphabet, letters = byte_alphabet(), byte_letters()
    symbol_of_byte = np.zeros(len(letters), dtype=np.int32)
    symbol_of_byte[[alphabet[letter] for letter in letters]] = np.arange(len(letters))
    return symbol_of_byte[np.frombuffer(words.bytes, dtype=np.uint8)]


def spell_merges(names: Sequence[str], merges: Sequence[Merge]) -> tuple[list[str], list[tuple[str, str]]]:
    """All tokens, in the order of their symbols, and the pairs that were merged, by the names of the first symbols."""
    tokens = list(names)
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        pairs.append((tokens[merge.left], tokens[merge.right]))
        if merge.merged == len(tokens):
            tokens.append("".join(pairs[-1]))
    return tokens, pairs


def number_tokens(special_tokens: Sequence[str], tokens: Sequence[str]) -> dict[str, int]:
    """A vocabulary; a token that is spelled as a special one is that one."""
    return {token: id for id, token in enumerate(dict.fromkeys((*special_tokens, *tokens)))}


def byte_level_pre_tokenizers(max_digits: MaxDigits) -> list[pre_tokenizers.PreTokenizer]:
    """They cut text into words, and write these as letters."""
    return [
        pre_tokenizers.Split(Regex(split_pattern(max_digits)), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
