"""What all algorithms are told."""

from __future__ import annotations

from dataclasses import dataclass

from tallow.kernels.text.word_counts import MaxDigits

MIN_FREQUENCY = 2
"""Where none is set."""


@dataclass(frozen=True)
class TrainerSettings:
    """What a vocabulary shall be like.

    Attributes:
        special_tokens: They come first.
        vocab_size: The most tokens, these included; there must be place for the bytes, too.
        min_frequency: What occurs less often is not learned; None: as the algorithm says.
        max_digits: Words have been cut by this `split_pattern`.
        character_coverage: The share of the text's characters that are to have tokens of their own, where not each of
            their bytes has one.
    """

    special_tokens: tuple[str, ...]
    vocab_size: int
    min_frequency: int | None
    max_digits: MaxDigits
    character_coverage: float
