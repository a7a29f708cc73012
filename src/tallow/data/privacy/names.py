"""Names of people, found by an encoder that labels tokens (token classification, as models of the hub have it).

A text is looked at in windows that overlap; each token is judged by the window in which it lies deeper. A word is
judged by its first token, as such models learn it (arXiv 1810.04805, section 5.3). Windows of one text are computed
together, those of several texts never: products of matrices of other shapes are rounded otherwise, so names would
depend on what a text lies beside.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tallow.data.privacy.config import NameConfig
from tallow.errors import DataError
from tallow.files import fingerprint_files
from tallow.kernels.threads import single_thread
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.formats import load_tagger, load_tokenizer
from tallow.models.store import resolve
from tallow.once import once

BATCH = 8
"""Windows that are computed at once."""

PIECE = 1 << 16
"""Characters that are split into tokens at once: what the library takes for a token is many times its text."""

SEARCHED = 1024
"""Characters at the end of such a piece among which white space is looked for to end it at."""

PREFIXED = re.compile(r"([BIESLU])[-_](.+)")
"""Labels that say which part of an entity a token is: its beginning, inside or end, or all of it."""

FIRST = "BSU"
"""Those with which another entity begins."""


class _Tokens(NamedTuple):
    """Of a text N tokens: where they are in it, and the running number of the word that each belongs to."""

    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


class NameTagger:
    """Finds names as `scrub` wants them.

    Args:
        path: Directory of the model.
        config: What counts as a name.

    Raises:
        DataError: There is no such model, it is broken, or it knows none of the labels.
        UsageError: It is no encoder.
    """

    def __init__(self, path: Path, config: NameConfig) -> None:
        self._model = load_tagger(path, dtype=torch.float32)
        self._tokenizer = load_tokenizer(path)
        if self._tokenizer.vocab_size > self._model.config.vocab_size:
            raise DataError(
                f"the tokenizer of {path} has {self._tokenizer.vocab_size:,} tokens, the model "
                f"{self._model.config.vocab_size:,}",
                "take both from the same source",
            )
        self._min_score = config.min_score
        kinds = [_kind(label) for label in self._model.labels]
        wanted = {label.upper() for label in config.labels}
        self._wanted_L = torch.tensor([kind in wanted for _, kind in kinds])
        self._first_L = torch.tensor([prefix in tuple(FIRST) for prefix, _ in kinds])
        if not self._wanted_L.any():
            raise DataError(
                f"{path} has no label {' or '.join(config.labels)}, but {', '.join(self._model.labels)}",
                "set privacy.name.labels to those that are names",
            )
        self._before, self._after = self._around()
        longest = min(config.window, self._model.config.max_positions) - len(self._before) - len(self._after)
        if longest < 1:
            raise DataError(f"the model in {path} sees no more than {self._model.config.max_positions} tokens")
        self._size, self._overlap = longest, min(config.overlap, longest // 2)

    def __call__(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where names are in each text: the first character, and that behind the last."""
        with torch.inference_mode(), single_thread():
            return [self._find(text) for text in texts]

    def _find(self, text: str) -> list[tuple[int, int]]:
        tokens = self._tokens(text)
        if not len(tokens.ids):
            return []
        scores, begins = self._judge(torch.from_numpy(tokens.ids))
        firsts = np.flatnonzero(np.diff(tokens.words, prepend=-1))
        ends = np.maximum.reduceat(tokens.ends, firsts)
        spans: list[tuple[int, int]] = []
        last = -1
        for word in np.flatnonzero(scores.numpy()[firsts] >= self._min_score).tolist():
            start, end = int(tokens.starts[firsts[word]]), int(ends[word])
            goes_on = word == last + 1 and spans and not begins[firsts[word]] and "\n" not in text[spans[-1][1] : start]
            if goes_on:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
            last = word
        return [place for span in spans if (place := _whole(text, *span))]

    def _judge(self, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token the probability that it is of a name, and whether it rather begins one than goes on with it."""
        count, step = len(ids_N), self._size - self._overlap
        starts = list(range(0, max(1, count - self._overlap), step))
        scores_N, begins_N = torch.empty(count), torch.empty(count, dtype=torch.bool)
        # the last window may be shorter, so it is computed by itself
        groups = [starts[place : min(place + BATCH, len(starts) - 1)] for place in range(0, len(starts) - 1, BATCH)]
        for group in [*groups, starts[-1:]]:
            rows = [torch.cat([self._before, ids_N[start : start + self._size], self._after]) for start in group]
            for start, logits_TL in zip(group, self._logits(torch.stack(rows)), strict=True):
                begin = start + (self._overlap // 2 if start else 0)
                end = count if start == starts[-1] else start + step + self._overlap // 2
                mine_TL = logits_TL[begin - start : end - start]
                scores_N[begin:end] = mine_TL.softmax(-1)[:, self._wanted_L].sum(-1)
                best_T = mine_TL.masked_fill(~self._wanted_L, -torch.inf).argmax(-1)
                begins_N[begin:end] = self._first_L[best_T]
        return scores_N, begins_N

    def _logits(self, inputs_BT: Tensor) -> Tensor:
        """Of windows, without what the tokenizer has put around them."""
        hidden_BTD = self._model(inputs_BT, BidirectionalContext.plain(len(inputs_BT), inputs_BT.shape[1]))
        return self._model.logits(hidden_BTD[:, len(self._before) : inputs_BT.shape[1] - len(self._after)])

    def _tokens(self, text: str) -> _Tokens:
        parts: list[npt.NDArray[np.int64]] = []
        words = 0
        for begin, end in _pieces(text):
            encoding = self._tokenizer.sealed.encode(text[begin:end])
            if not encoding.ids:
                continue
            offsets = np.array(encoding.offsets, dtype=np.int64) + begin
            numbers = np.array(encoding.word_ids, dtype=np.int64) + words
            words = int(numbers[-1]) + 1
            ids = np.array(self._tokenizer.sealed.ids(encoding), dtype=np.int64)
            parts.append(np.stack([ids, offsets[:, 0], offsets[:, 1], numbers]))
        return _Tokens(*(np.concatenate(parts, axis=1) if parts else np.zeros((4, 0), dtype=np.int64)))

    def _around(self) -> tuple[Tensor, Tensor]:
        """What the tokenizer puts before and behind a text."""
        processed = self._tokenizer.backend.encode("a", add_special_tokens=True)
        own = [place for place, special in enumerate(processed.special_tokens_mask) if not special]
        first, last = (own[0], own[-1] + 1) if own else (0, 0)
        return torch.tensor(processed.ids[:first], dtype=torch.int64), torch.tensor(
            processed.ids[last:], dtype=torch.int64
        )


def name_tagger(config: NameConfig) -> NameTagger:
    """The tagger of a configuration, loaded once a process while its files are the same.

    Raises:
        DataError: As `NameTagger`.
        UsageError: As `NameTagger`.
    """
    path = resolve(config.model)
    return _loaded(path, config.model_dump_json(), fingerprint_files(path))


@once()
def _loaded(path: Path, config: str, fingerprint: str) -> NameTagger:  # noqa: ARG001
    return NameTagger(path, NameConfig.model_validate_json(config))


def _kind(label: str) -> tuple[str, str]:
    """The prefix of a label (empty where it has none), and the kind of entity, in capitals."""
    prefixed = PREFIXED.fullmatch(label.upper())
    return (prefixed[1], prefixed[2]) if prefixed else ("", label.upper())


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Pieces of a text that end, where they can, before white space."""
    begin = 0
    while begin < len(text):
        end = min(begin + PIECE, len(text))
        if end < len(text):
            end = next((place for place in range(end, end - SEARCHED, -1) if text[place].isspace()), end)
        yield begin, end
        begin = end


def _whole(text: str, start: int, end: int) -> tuple[int, int] | None:
    """A span without white space at its ends, with the marks that belong to its last letter; None: nothing is left."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):  # where the tokenizer has dropped them
        end += 1
    return (start, end) if start < end else None
