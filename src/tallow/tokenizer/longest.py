"""Vocabularies of byte strings of which always the longest that fits is taken (RWKV's), as a tokenizer.json.

The library `tokenizers` has no such model, but its WordPiece does this to a word if nothing marks the pieces that go
on with one. So a tokenizer.json with such a model, whose words are spelled in GPT-2's letters for bytes, gives these
tokens wherever it is read. That takes the square of a word's length and more, so words are to be short: text is cut
before spaces, behind bytes that no token has before a space, which changes nothing. tallow itself does not go this
way, but reads the vocabulary out of the file and encodes in linear time (`tallow.tokenizer.direct`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from tallow.tokenizer.spelling import byte_alphabet, byte_letters

NO_LIMIT = 2**32 - 1
SPACE = "Ġ"


def longest_match_backend(tokens: Mapping[bytes, int], special: Mapping[str, int]) -> tokenizers.Tokenizer:
    """A tokenizer that takes the longest of the tokens.

    Args:
        tokens: Ids by bytes; all 256 bytes are there.
        special: Ids of the control tokens by their spelling, at least one.
    """
    letters = byte_letters()
    vocabulary = {"".join(letters[byte] for byte in token): id for token, id in tokens.items()}
    model = models.WordPiece(
        {**special, **vocabulary},
        unk_token=next(iter(special)),  # which never comes up
        max_input_chars_per_word=NO_LIMIT,
        continuing_subword_prefix="",
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            pre_tokenizers.Split(Regex(_word_pattern(vocabulary)), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(special))
    return backend


def longest_match_tokens(state: Mapping[str, Any]) -> dict[bytes, int] | None:
    """The tokens of such a tokenizer.json; None if it is of another kind."""
    model, steps = state["model"], (state["pre_tokenizer"] or {}).get("pretokenizers", [])
    if model["type"] != "WordPiece" or model["continuing_subword_prefix"] or state["normalizer"] is not None:
        return None
    letters, added = byte_alphabet(), {token["content"] for token in state["added_tokens"]}
    vocabulary = {
        token: id for token, id in model["vocab"].items() if token not in added and letters.keys() >= set(token)
    }
    tokens = {bytes(letters[letter] for letter in token): id for token, id in vocabulary.items() if token}
    expected = [
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        {
            "type": "Split",
            "pattern": {"Regex": _word_pattern(vocabulary)},
            "behavior": "Isolated",
            "invert": False,
        },
    ]
    complete = all(bytes([byte]) in tokens for byte in range(256)) and model["max_input_chars_per_word"] == NO_LIMIT
    return tokens if complete and steps == expected else None


def _word_pattern(vocabulary: Mapping[str, int]) -> str:
    """What matches text up to the next space that no token has together with what is before it."""
    before = sorted({token[at - 1] for token in vocabulary for at in range(1, len(token)) if token[at] == SPACE})
    if not before:
        return rf".[^{SPACE}]*"
    return rf".(?>[^{SPACE}]+|(?<=[{''.join(map(_escaped, before))}]){SPACE})*"


def _escaped(letter: str) -> str:
    return rf"\x{{{ord(letter):x}}}"
