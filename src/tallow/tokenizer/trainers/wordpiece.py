"""WordPiece (Schuster and Nakajima 2012): pairs whose parts are seldom apart are merged first.

Its pieces are bytes, as those of byte-level BPE, so any text can be said in them. A space belongs to the word behind
it, and tells pieces that begin a word from others (as `_` did in Wu et al., arXiv 1609.08144, section 4.1); BERT's mark
of the others, `##`, would make a text that has it ambiguous.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from tallow.kernels.text.merges import Merge
from tallow.kernels.text.word_counts import WordCounts
from tallow.kernels.text.wordpieces import learn_wordpieces
from tallow.tokenizer.trainers.byte_level import (
    byte_letters,
    byte_level_pre_tokenizers,
    byte_symbols,
    number_tokens,
    spell_merges,
)
from tallow.tokenizer.trainers.settings import MIN_FREQUENCY, TrainerSettings

LONGEST_WORD = 64
"""Bytes; longer words are cut, since greedy matching takes the square of a word's length."""

UNUSED = "[UNK]"
"""The library wants a name for what has no token. As each byte has one, it is none itself."""


def train_wordpiece(words: WordCounts, settings: TrainerSettings) -> tokenizers.Tokenizer:
    """Merge the pair of tokens with the best score until there are enough; text is encoded by greedy longest match.

    A pair counts only if it occurs `min_frequency` times: the scores of rare ones are highest, but mean least. None
    takes about the highest number with which the vocabulary gets full.
    """
    letters = byte_letters()
    symbols, ends, counts = byte_symbols(words), *_cut(words)
    names, vocab_size = [letter.encode() for letter in letters], settings.vocab_size - len(settings.special_tokens)

    def learn(min_frequency: int) -> list[Merge]:
        return learn_wordpieces(symbols, ends, counts, names, vocab_size, min_frequency)

    if settings.min_frequency is None:
        merges = _fill(learn, vocab_size - len(names), int(counts @ np.diff(ends, prepend=0)))
    else:
        merges = learn(settings.min_frequency)
    tokens, _ = spell_merges(letters, merges)
    backend = tokenizers.Tokenizer(
        models.WordPiece(
            vocab=number_tokens(settings.special_tokens, tokens),
            unk_token=UNUSED,
            max_input_chars_per_word=LONGEST_WORD,
            continuing_subword_prefix="",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *byte_level_pre_tokenizers(settings.max_digits),
            pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), behavior="isolated"),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _fill(learn: Callable[[int], list[Merge]], wanted: int, num_bytes: int) -> list[Merge]:
    """What is learned with about the highest minimum that gives so many tokens, or else with the lowest one.

    How many there are falls about as the minimum's power of -0.75, so two or three trials do; each aims a tenth lower
    than that, since one more takes longer than the tenth is worth.
    """
    minimum = max(MIN_FREQUENCY, num_bytes // max(2 * wanted, 1))
    while True:
        merges = learn(minimum)
        found = len({merge.merged for merge in merges})
        if found == wanted or minimum == MIN_FREQUENCY:
            return merges
        minimum = max(MIN_FREQUENCY, min(minimum - 1, int(0.9 * minimum * (found / wanted) ** (1 / 0.75))))


def _cut(words: WordCounts) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ends and counts of words as they are encoded, the longer ones in several parts."""
    begins = np.append(0, words.ends[:-1])[: len(words.ends)]
    parts = -(-(words.ends - begins) // LONGEST_WORD)
    number = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)  # of the part in its word
    ends = np.minimum(np.repeat(begins, parts) + (number + 1) * LONGEST_WORD, np.repeat(words.ends, parts))
    return ends, np.repeat(words.counts, parts)
