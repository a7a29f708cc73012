"""How a vocabulary is learned from counted words: one algorithm a file, by its name here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import tokenizers

from tallow.kernels.text.word_counts import WordCounts
from tallow.tokenizer.trainers.bpe import train_bpe
from tallow.tokenizer.trainers.byte_fallback_bpe import train_byte_fallback_bpe
from tallow.tokenizer.trainers.settings import TrainerSettings
from tallow.tokenizer.trainers.unigram import UNKNOWN, train_unigram
from tallow.tokenizer.trainers.wordpiece import train_wordpiece

Algorithm = Literal["bpe", "byte_fallback_bpe", "wordpiece", "unigram"]


class Trainer(NamedTuple):
    """An algorithm.

    Args:
        train: Learns from words; the special tokens are in the model's vocabulary, but not yet told to be special.
        unknown: The special token for what no other one stands for; None where that cannot be.
    """

    train: Callable[[WordCounts, TrainerSettings], tokenizers.Tokenizer]
    unknown: str | None = None


TRAINERS: Mapping[Algorithm, Trainer] = {
    "bpe": Trainer(train_bpe),
    "byte_fallback_bpe": Trainer(train_byte_fallback_bpe),
    "wordpiece": Trainer(train_wordpiece),
    "unigram": Trainer(train_unigram, UNKNOWN),
}
