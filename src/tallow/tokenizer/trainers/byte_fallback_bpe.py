"""BPE over characters, rare ones in bytes, as sentencepiece trained it for Llama 2 (arXiv 2307.09288, section 2)."""

from __future__ import annotations

import tokenizers
from tokenizers import models

from tallow.kernels.text.merges import learn_merges
from tallow.kernels.text.word_counts import WordCounts
from tallow.tokenizer.trainers.byte_level import number_tokens, spell_merges
from tallow.tokenizer.trainers.characters import BYTES, cover, set_steps
from tallow.tokenizer.trainers.settings import MIN_FREQUENCY, TrainerSettings


def train_byte_fallback_bpe(words: WordCounts, settings: TrainerSettings) -> tokenizers.Tokenizer:
    """Merge the most frequent pair of tokens until there are enough."""
    room = settings.vocab_size - len(settings.special_tokens) - len(BYTES)
    covered = cover(words, settings.character_coverage, room)
    merges = learn_merges(
        covered.symbols,
        covered.ends,
        covered.counts,
        [character.encode() for character in covered.alphabet],
        room,
        settings.min_frequency or MIN_FREQUENCY,
    )
    tokens, pairs = spell_merges(covered.alphabet, merges)
    vocabulary = number_tokens(settings.special_tokens, [*BYTES, *tokens])
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, byte_fallback=True))
    set_steps(backend, settings.max_digits)
    return backend
