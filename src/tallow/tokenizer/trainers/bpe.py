"""Byte-level BPE (GPT-2's; Sennrich et al., arXiv 1508.07909): symbols are bytes."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from tallow.kernels.text.merges import learn_merges
from tallow.kernels.text.word_counts import WordCounts
from tallow.tokenizer.trainers.byte_level import (
    byte_letters,
    byte_level_pre_tokenizers,
    byte_symbols,
    number_tokens,
    spell_merges,
)
from tallow.tokenizer.trainers.settings import MIN_FREQUENCY, TrainerSettings


def train_bpe(words: WordCounts, settings: TrainerSettings) -> tokenizers.Tokenizer:
    """Merge the most frequent pair of tokens until there are enough."""
    letters = byte_letters()
    merges = learn_merges(
        byte_symbols(words),
        words.ends,
        words.counts,
        [letter.encode() for letter in letters],
        settings.vocab_size - len(settings.special_tokens),
        settings.min_frequency or MIN_FREQUENCY,
    )
    tokens, pairs = spell_merges(letters, merges)
    backend = tokenizers.Tokenizer(models.BPE(vocab=number_tokens(settings.special_tokens, tokens), merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.Sequence(byte_level_pre_tokenizers(settings.max_digits))
    backend.decoder = decoders.ByteLevel()
    return backend
