"""A vocabulary with further tokens, learned from a text: the tokenizer of a trained model speaks it more briefly.

New merges come after all old ones, so a text is first cut as it was before, and then pieces are joined: each new token
is made of old ones, which is what its row in the model begins from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import tokenizers

from tallow.console import say
from tallow.errors import DataError, UsageError
from tallow.kernels.text.merges import learn_merges
from tallow.tokenizer.tokenizer import Tokenizer

PIECE_CHARACTERS = 1 << 16
SPACE = "▁"
Word = tuple[int, ...]


@dataclass(frozen=True)
class Extension:
    """A tokenizer with new tokens.

    Args:
        tokenizer: The new one; what the old one knew has the same ids.
        pieces: The old tokens of which each new one is made, by its id.
    """

    tokenizer: Tokenizer
    pieces: dict[int, list[int]]


def extend_tokenizer(tokenizer: Tokenizer, texts: Iterable[str], num_tokens: int, min_count: int = 2) -> Extension:
    """Learn further tokens of a BPE tokenizer from texts; deterministic, whatever the order of the texts.

    Args:
        tokenizer: Of a trained model; it is left as it is.
        texts: To learn from. What spells a control token is text.
        num_tokens: How many to add; the text may yield fewer, which is said.
        min_count: Two tokens are joined only if they follow one another at least that often.

    Raises:
        UsageError: The tokenizer is of another kind than BPE.
        DataError: The text yields no new token.
    """
    state = json.loads(tokenizer.backend.to_str())
    kind = state["model"].get("type")
    if kind != "BPE" or state["model"].get("continuing_subword_prefix"):
        raise UsageError(
            f"this tokenizer of type {kind} cannot be extended", "only those of type BPE without prefixes can"
        )
    words = _count(tokenizer, texts)
    merges = _learn(tokenizer, words, num_tokens, min_count)
    if not merges:
        raise DataError(
            f"the text yields no new token: no two tokens follow one another {min_count} times within a word",
            "give more text",
        )
    vocabulary = state["model"]["vocab"]
    spelled = {id: token for token, id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    pairs, pieces, ids = list[list[str]](), dict[int, list[int]](), dict[int, int]()
    for left, right, merged in merges:
        left, right = ids.get(left, left), ids.get(right, right)
        pairs.append([spelled[left], spelled[right]])
        if merged not in ids and merged >= tokenizer.vocab_size:
            ids[merged] = tokenizer.vocab_size + len(pieces)
            spelled[ids[merged]] = "".join(pairs[-1])
            vocabulary[spelled[ids[merged]]] = ids[merged]
            pieces[ids[merged]] = pieces.get(left, [left]) + pieces.get(right, [right])
    # Added tokens are numbered from behind the vocabulary when the file is read, unless it holds them.
    vocabulary |= {token["content"]: token["id"] for token in state["added_tokens"]}
    old = state["model"]["merges"]
    state["model"]["merges"] = [*old, *([" ".join(pair) for pair in pairs] if _are_strings(old) else pairs)]
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    if len(pieces) < num_tokens:
        say(f"the text yields only {len(pieces):,} new tokens of the {num_tokens:,} asked for")
    return Extension(Tokenizer(backend, tokenizer.special_tokens, tokenizer.chat_template), pieces)


def _count(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[Word]:
    """How often each word occurs that has several tokens, as it is cut now."""
    counter, cutter = Counter[Word](), _Cutter(tokenizer)
    for text in texts:
        for start in range(0, len(text), PIECE_CHARACTERS):
            encoding = tokenizer.sealed.encode(text[start : start + PIECE_CHARACTERS])
            numbered = zip(encoding.word_ids, tokenizer.sealed.ids(encoding), strict=True)
            for _, tokens in groupby(numbered, key=lambda numbered: numbered[0]):
                counter.update(cutter.words([id for _, id in tokens]))
    return counter


class _Cutter:
    """Cuts further what a tokenizer has cut.

    Sentencepiece-like ones look for tokens in a text as a whole, so words are to be found by the spaces. Their bytes
    and their unknown token can be no part of another token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        spelled = tokenizer.backend.get_vocab(with_added_tokens=True).items()
        unusable = {id for token, id in spelled if tokenizer.spelling.is_byte(token)}
        self._unusable = unusable | set(tokenizer.backend.get_added_tokens_decoder())
        self._spaces, self._only_spaces = set[int](), set[int]()
        if not tokenizer.spelling.byte_level:
            self._spaces = {id for token, id in spelled if token.startswith(SPACE)}
            self._only_spaces = {id for token, id in spelled if token and not token.strip(SPACE)}

    def words(self, ids: Sequence[int]) -> Iterator[Word]:
        """Those of several tokens."""
        word: list[int] = []
        for id in [*ids, None]:
            ends = id is None or id in self._unusable
            if ends or (id in self._spaces and word and word[-1] not in self._only_spaces):
                if len(word) > 1:
                    yield tuple(word)
                word = []
            if id is not None and not ends:
                word.append(id)


def _learn(tokenizer: Tokenizer, words: Counter[Word], num_tokens: int, min_count: int) -> list[tuple[int, int, int]]:
    """Pairs of symbols and what they become: symbols are old ids, and from `vocab_size` on new tokens.

    What would be spelled as an added token is left out, and what is made of it.
    """
    spelled = {id: token for token, id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    added = {token.content.encode() for token in tokenizer.backend.get_added_tokens_decoder().values()}
    names = [spelled.get(id, f"\0{id}").encode() for id in range(tokenizer.vocab_size)]
    names = [b"\0" + name if name in added else name for name in names]
    ordered = sorted(words)
    if not ordered:
        return []
    merges = learn_merges(
        np.fromiter((id for word in ordered for id in word), dtype=np.int32),
        np.cumsum([len(word) for word in ordered], dtype=np.int64),
        np.fromiter((words[word] for word in ordered), dtype=np.int64),
        names,
        len(set(names)) + num_tokens,
        min_count,
    )
    kept, left_out = list[tuple[int, int, int]](), set[int]()
    for merge in merges:
        if merge.merged == len(names):
            names.append(names[merge.left] + names[merge.right])
        if {merge.left, merge.right}.isdisjoint(left_out) and names[merge.merged] not in added:
            kept.append((merge.left, merge.right, merge.merged))
            left_out.discard(merge.merged)
        elif merge.merged >= tokenizer.vocab_size and all(merge.merged != merged for _, _, merged in kept):
            left_out.add(merge.merged)
    return kept


def _are_strings(merges: Sequence[object]) -> bool:
    """Whether merges are written as in older files, both tokens in one string."""
    return bool(merges) and isinstance(merges[0], str)
