"""Encoding text in which nothing that a user wrote can become a control token.

`tokenizers` finds control tokens such as `<|im_end|>` by their spelling, so whoever can write into a prompt can end
a turn. A `SealedTokenizer` is a second face of the same tokenizer in which every control token has a secret name,
drawn at random when it is made. Text is therefore text, whatever it says. A rendered conversation keeps its control
tokens because their spellings, where the chat template wrote them, are replaced by the secret names first; what
users wrote has been marked before rendering (`mark`) and is told apart by that. All other steps of the tokenizer
stay as they are, so the ids are those of encoding the whole text.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken, models

from tallow.errors import DataError

if TYPE_CHECKING:  # importing these for good would import pyarrow, which a short prompt does without
    import pyarrow as pa

    from tallow.kernels.text.encoder import Encoder

SHORT = 2048
"""Characters, or tokens, of a text that is done at once. With a longer one `tokenizers` would keep all other Python
threads waiting, which it does not for a batch."""
LONG = 1 << 16
"""Characters of a text for which our own code is made: that takes as long as the library takes for some ten times that
many. Arrays of texts are encoded by it in any case."""
CANNOT_ENCODE = "text cannot be encoded", "check that it is valid Unicode"


@contextmanager
def library_errors(complaint: str, hint: str) -> Iterator[None]:
    """Turn what the `tokenizers` library raises into a `DataError`.

    It raises bare `Exception`, and where it fails an internal check a `PanicException`, which is none.
    """
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{complaint}: {error}", hint) from error


class SealedTokenizer:
    """Shares the model and the other parts of `backend`; only the names of its control tokens are its own."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        added = dict(sorted(backend.get_added_tokens_decoder().items()))
        secret = f"t{secrets.token_hex(8)}"
        self._original = backend
        self._added = list(added.values())
        self._names = {
            token.content: f"{secret}{id:08d}"
            for id, token in added.items()
            # A token of one character that the model knows has no other spelling; it can only stay what it is.
            if token.special and not (len(token.content) == 1 and _in_model(backend, token.content))
        }
        self._backend = self._clone(backend, backend.model, added)
        if reachable := {name for name in self._names if self._spells(name, backend.token_to_id(name))}:
            renamed = {content: self._names[content] for content in reachable}
            self._backend = self._clone(backend, _renamed_model(backend, renamed), added)
        numbers = {
            id: self._backend.token_to_id(self._names.get(token.content, token.content)) for id, token in added.items()
        }
        self._original_ids = {number: id for id, number in numbers.items() if number not in (id, None)}
        self._renumbers_text = any(added[id].content not in self._names for id in self._original_ids.values())

    def encode(self, text: str) -> tokenizers.Encoding:
        """Encode text as text. Offsets are characters; nothing is added."""
        if len(text) <= SHORT:
            return self._backend.encode(text, add_special_tokens=False)
        return self._backend.encode_batch([text], add_special_tokens=False)[0]

    def ids(self, encoding: tokenizers.Encoding) -> list[int]:
        """The ids of an encoding of text that holds no secret names."""
        return self._ids(encoding) if self._renumbers_text else encoding.ids

    def encode_ids(self, text: str) -> list[int]:
        """The ids of text as text."""
        if self._own(len(text)) is None:
            return self.ids(self.encode(text))
        return self.encode_texts(_array([text]))[0].tolist()

    def parse(self, text: str) -> list[int]:
        """The ids of text in which added tokens are read as what they spell."""
        if self._own(len(text)) is None or not self._plain:
            if len(text) <= SHORT:
                return self._original.encode(text, add_special_tokens=False).ids
            return self._original.encode_batch([text], add_special_tokens=False)[0].ids
        return [id for ids, _ in self._segments(text, self._written) for id in ids]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._own(sum(map(len, texts))) is not None:
            ids, lengths = self.encode_texts(_array(texts))
            return [some.tolist() for some in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else []
        return self._encode_batch(texts)

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.ids(encoding) for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_texts(
        self, texts: pa.StringArray, end: int | None = None
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """The ids of all texts, one after another, and how many there are of each; `end` follows each, and counts."""
        if self.direct is None:
            return _joined(self._encode_batch(texts.to_pylist()), end)
        ids, lengths = self.direct.encode(texts, end)
        left = np.flatnonzero(lengths < 0)
        if not len(left):
            return ids, lengths
        others, their_lengths = _joined(self._encode_batch(texts.take(left).to_pylist()), end)
        their_starts = np.cumsum(their_lengths) - their_lengths
        starts = np.cumsum(np.maximum(lengths, 0))[left]
        parts, done = list[npt.NDArray[np.uint32]](), 0
        for start, first, length in zip(starts, their_starts, their_lengths, strict=True):
            parts += [ids[done:start], others[first : first + length]]
            done = start
        lengths[left] = their_lengths
        return np.concatenate([*parts, ids[done:]]), lengths

    def encode_pieces(self, pieces: Sequence[tuple[str, bool]], marker: str) -> tuple[list[int], list[bool]]:
        """Encode rendered text in which `mark` was applied to all that users wrote.

        Args:
            pieces: Consecutive parts of the text, each with a flag.
            marker: The marker that was used; it is taken out.

        Returns:
            The ids of the whole text, and for each whether it holds a character of a flagged piece.

        Raises:
            DataError: The text cannot be encoded.
        """
        text, flagged = "", []
        for piece, flag in pieces:
            start = len(text)
            text += self._written.sub(lambda match: self._names.get(match[0], match[0]), piece).replace(marker, "")
            if flag:
                flagged.append((start, len(text)))
        with library_errors(*CANNOT_ENCODE):
            if self._own(len(text)) is not None and self._plain:
                return self._encode_flagged(text, flagged)
            encoding = self.encode(text)
        mask = [False] * len(encoding)
        offsets = encoding.offsets if flagged else []
        starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
        for start, end in flagged:
            first, last = bisect_right(ends, start), bisect_left(starts, end)
            mask[first:last] = [True] * (last - first)
        return self._ids(encoding), mask

    def _encode_flagged(self, text: str, flagged: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """`encode_pieces` by our own code; `flagged` are places of characters."""
        ids, sizes = list[int](), list[int]()
        for some, name in self._segments(text, self._secret):
            ids += some
            sizes += [len(name)] if name else self._token_sizes[some].tolist()
        ends = np.cumsum(np.array(sizes, dtype=np.int64))
        starts, mask = ends - sizes, np.zeros(len(ids), dtype=bool)
        for first, last in flagged:
            start = len(text[:first].encode())
            end = start + len(text[first:last].encode())
            mask |= (starts < end) & (ends > start)
        return ids, mask.tolist()

    def _segments(self, text: str, pattern: re.Pattern[str]) -> Iterator[tuple[list[int], str]]:
        """The ids of what lies between matches of added tokens, and of each of these, with its spelling."""
        done = 0
        for match in pattern.finditer(text):
            yield self.encode_ids(text[done : match.start()]), ""
            yield [self._id_of[match[0]]], match[0]
            done = match.end()
        yield self.encode_ids(text[done:]), ""

    def mark(self, text: str, marker: str) -> str:
        """Put `marker` into what spells a control token, and after what could begin one that something else ends."""
        text = self._spellings.sub(rf"\g<0>{marker}", text)
        longest = min(len(text), self._longest)
        if any(text[-length:] in self._beginnings for length in range(1, longest + 1)):
            text += marker
        return text

    @cached_property
    def direct(self) -> Encoder | None:
        """Our own code that encodes most texts; None where this tokenizer is not of its kind."""
        from tallow.tokenizer.direct import direct_encoder

        readable = [token.content for token in self._added if token.content not in self._names]
        return direct_encoder(self._backend, self._original_ids, readable)

    def _own(self, characters: int) -> Encoder | None:
        """Our own code, where it applies and is worth its making: for long texts, and where the library is too slow."""
        slow = isinstance(self._backend.model, models.WordPiece)
        return self.direct if slow or characters > LONG else None

    @cached_property
    def _plain(self) -> bool:
        """Whether added tokens are found by their spelling and nothing else, and all at once."""
        odd = any(token.lstrip or token.rstrip or token.single_word for token in self._added)
        return not odd and len({token.normalized for token in self._added}) < 2

    @cached_property
    def _secret(self) -> re.Pattern[str]:
        """The names of control tokens."""
        return re.compile("|".join(self._names.values()) or "(?!)")

    @cached_property
    def _id_of(self) -> dict[str, int]:
        """Ids of added tokens, by their spellings and by their names."""
        ids = {token.content: id for id, token in self._original.get_added_tokens_decoder().items()}
        return ids | {name: ids[content] for content, name in self._names.items()}

    @cached_property
    def _token_sizes(self) -> npt.NDArray[np.int64]:
        """How many bytes each id stands for, in a vocabulary of our own code, in which all are spelled in letters."""
        tokens = self._original.get_vocab(with_added_tokens=True)
        added, sizes = {token.content for token in self._added}, np.zeros(max(tokens.values()) + 1, dtype=np.int64)
        for token, id in tokens.items():
            sizes[id] = len(token.encode()) if token in added else len(token)
        return sizes

    @cached_property
    def _written(self) -> re.Pattern[str]:
        """Added tokens as `tokenizers` finds them: the longest that begins at the leftmost place."""
        tokens = sorted(self._added, key=lambda token: -len(token.content))
        return re.compile("|".join(_pattern(token) for token in tokens) or "(?!)")

    @cached_property
    def _spellings(self) -> re.Pattern[str]:
        """The first character of each place where a control token could be read; places may overlap."""
        if not self._names:
            return re.compile("(?!)")
        firsts = "".join(sorted({name[0] for name in self._names}))
        names = "|".join(re.escape(name) for name in self._names)
        return re.compile(f"(?=[{re.escape(firsts)}])(?={names}).", re.DOTALL)

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(name[:length] for name in self._names for length in range(1, len(name)))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._beginnings), default=0)

    def _clone(
        self, backend: tokenizers.Tokenizer, model: Any, added: Mapping[int, AddedToken]
    ) -> tokenizers.Tokenizer:
        clone = tokenizers.Tokenizer(model)
        clone.normalizer = backend.normalizer
        clone.pre_tokenizer = backend.pre_tokenizer
        # No post-processor: some of them trim offsets, and nothing is added here anyway.
        # The tokens that lie behind the model's vocabulary come first, so that they are numbered as in the original.
        behind = [token for token in added.values() if not _in_model(backend, token.content)]
        inside = [token for token in added.values() if _in_model(backend, token.content)]
        clone.add_tokens([self._renamed(token) for token in behind])
        clone.add_tokens(
            [self._renamed(token) for token in inside if not token.special or token.content in self._names]
        )
        return clone

    def _renamed(self, token: AddedToken) -> AddedToken:
        if token.content not in self._names:
            return token
        return AddedToken(
            self._names[token.content],
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=token.normalized,
            special=True,
        )

    def _spells(self, text: str, id: int | None) -> bool:
        """Whether the model itself, without the list of added tokens, reads this text as that id."""
        return any(id in self.encode(before + text).ids for before in ("", "a", " "))

    def _ids(self, encoding: tokenizers.Encoding) -> list[int]:
        return [self._original_ids.get(id, id) for id in encoding.ids]


def _array(texts: Sequence[str]) -> pa.StringArray:
    import pyarrow as pa

    return pa.array(texts, pa.string())


def _joined(ids: Sequence[Sequence[int]], end: int | None) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    ending = () if end is None else (end,)
    lengths = np.array([len(some) + len(ending) for some in ids], dtype=np.int64)
    return np.fromiter(chain.from_iterable(chain(some, ending) for some in ids), np.uint32, lengths.sum()), lengths


def _in_model(backend: tokenizers.Tokenizer, content: str) -> bool:
    return backend.model.token_to_id(content) is not None


def _pattern(token: AddedToken) -> str:
    return rf"(?<!\w){re.escape(token.content)}(?!\w)" if token.single_word else re.escape(token.content)


def _renamed_model(backend: tokenizers.Tokenizer, names: Mapping[str, str]) -> Any:
    """The model with other spellings for some tokens of its vocabulary; their ids stay."""
    state = json.loads(backend.to_str())
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(token, token): id for token, id in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _touches(pair, names)]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "padding", "truncation")
    state |= {"added_tokens": [], **dict.fromkeys(parts)}
    return tokenizers.Tokenizer.from_str(json.dumps(state)).model


def _touches(pair: Sequence[str], names: Collection[str]) -> bool:
    left, right = pair
    return left in names or right in names or left + right in names
