"""Unigram (Kudo, arXiv 1804.10959): from many pieces those stay without which the text would be least probable."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import models

from tallow.kernels.text.lattices import LEAST_PROBABILITY, LONGEST_PIECE, Floats, Lattices
from tallow.kernels.text.substrings import best_substrings
from tallow.kernels.text.word_counts import WordCounts
from tallow.tokenizer.trainers.characters import BYTES, CoveredWords, cover, set_steps
from tallow.tokenizer.trainers.settings import MIN_FREQUENCY, TrainerSettings

UNKNOWN = "<unk>"
"""The library wants this token; the bytes stand for all that it could stand for."""

SEEDS = 1_000_000  # as in sentencepiece
STEPS = 2  # of expectation and maximization, each time
KEPT = 0.9  # of the pieces, each time; sentencepiece's 0.75 is quicker (0.3 % more bits on 5 MB of English)
LAST_STEPS = 4
DIGITS = 6  # of scores, behind the point: with more of them, the library's reader takes some for their neighbours
BYTE_PENALTY = 10.0  # by which a byte is worse than the worst piece


class Pieces(NamedTuple):
    """Learned ones.

    Args:
        places: Where the symbols of each are in the words.
        lengths: How many these are.
        probabilities: Of each; they add up to one.
    """

    places: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    probabilities: Floats


def train_unigram(words: WordCounts, settings: TrainerSettings) -> tokenizers.Tokenizer:
    """Keep the best pieces; text is encoded as the most probable sequence of them."""
    room = settings.vocab_size - len(settings.special_tokens) - len(BYTES)
    covered = cover(words, settings.character_coverage, room)
    learned = learn_pieces(covered, room, settings.min_frequency or MIN_FREQUENCY)
    scores = np.log(np.maximum(learned.probabilities, LEAST_PROBABILITY)).round(DIGITS).tolist()
    spelled = [
        "".join(covered.alphabet[symbol] for symbol in covered.symbols[place : place + length].tolist())
        for place, length in zip(learned.places.tolist(), learned.lengths.tolist(), strict=True)
    ]
    pieces = sorted(zip(spelled, scores, strict=True), key=lambda piece: (-piece[1], piece[0]))
    byte_score = round(min(scores, default=0.0) - BYTE_PENALTY, DIGITS)
    vocabulary = {
        **dict.fromkeys(settings.special_tokens, 0.0),
        **dict.fromkeys(BYTES, byte_score),
        **{piece: score for piece, score in pieces if piece not in settings.special_tokens},
    }
    unknown = settings.special_tokens.index(UNKNOWN)
    backend = tokenizers.Tokenizer(models.Unigram(list(vocabulary.items()), unk_id=unknown, byte_fallback=True))
    set_steps(backend, settings.max_digits)
    return backend


def learn_pieces(words: CoveredWords, most: int, min_frequency: int) -> Pieces:
    """Begin with frequent substrings, and drop those that are worth least, bit by bit.

    Each time the expected counts of the pieces become their probabilities (EM), and the loss without each is found.
    Single symbols always stay.

    Args:
        most: How many pieces are wanted.
        min_frequency: How often a longer piece occurs at least.
    """
    symbols, ends, counts = words.symbols, words.ends, words.counts
    _, first = np.unique(symbols, return_index=True)
    single = np.zeros(len(first), dtype=np.int64)
    np.add.at(single, symbols, np.repeat(counts, np.diff(ends, prepend=0)))
    seeds = best_substrings(symbols, ends, counts, LONGEST_PIECE, min_frequency, SEEDS)
    places = np.concatenate([first.astype(np.int64), seeds.places])
    lengths = np.concatenate([np.ones(len(first), dtype=np.int64), seeds.lengths])
    lattices = Lattices(symbols, ends, counts, places, lengths)
    pieces = Pieces(places, lengths, _shares(np.concatenate([single, seeds.counts]) * lengths.astype(np.float64)))
    while len(pieces.places) > most:
        pieces, expected = _maximize(lattices, pieces, STEPS)
        losses = lattices.losses(pieces.probabilities, expected)
        kept = np.zeros(len(losses), dtype=np.bool_)
        kept[np.argsort(-losses, kind="stable")[: max(most, int(KEPT * len(losses)))]] = True
        lattices.keep(kept)
        pieces = Pieces(pieces.places[kept], pieces.lengths[kept], _shares(pieces.probabilities[kept]))
    return _maximize(lattices, pieces, LAST_STEPS)[0]


def _maximize(lattices: Lattices, pieces: Pieces, steps: int) -> tuple[Pieces, Floats]:
    """The pieces with more probable probabilities, and how often each is expected."""
    expected = np.zeros(0)
    for _ in range(steps):
        expected, _ = lattices.expect(pieces.probabilities)
        pieces = pieces._replace(probabilities=_shares(expected))
    return pieces, expected


def _shares(counts: Floats) -> Floats:
    return counts / counts.sum()
