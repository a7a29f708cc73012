"""sentencepiece's models (`tokenizer.model`, `spiece.model`): BPE and Unigram.

A model is a message of Protocol buffers: pieces with scores and kinds, how it was trained, how text is normalized. BPE
merges two pieces side by side that make a piece, that of the best score first; the pairs that ever come up are found as
for tiktoken's ranks. Unigram takes the pieces of the best sum of scores (Kudo 2018, arXiv 1804.10959).

Ids are sentencepiece's, with these exceptions. Its table of replacements is applied by the library `tokenizers`, to
what a reader takes for one character at a time (a carriage return with a line feed, say), where sentencepiece takes the
longest it finds. It adds up the scores of Unigram in 32 bits, which loses the best pieces in long texts. A text that
spells `<0x41>`, of characters that are not in the vocabulary, is a byte to the library. In models with pieces defined
by the user, a text that begins with a space gets no other one before it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from tallow.errors import DataError
from tallow.files import atomic_file
from tallow.tokenizer.formats.differences import cut, normalized, not_of_characters, refusal, wrong_kind
from tallow.tokenizer.formats.pairs import all_pairs, last_pairs
from tallow.tokenizer.formats.wire import field, fields, signed
from tallow.tokenizer.sealed import library_errors
from tallow.tokenizer.spelling import BYTE_TOKEN
from tallow.tokenizer.tokenizer import Tokenizer

SPACE = "▁"
MAX_PIECES = 1 << 22
HINT = "take the file from where the model came from"
LEADING, MANY, TRAILING = r"\A +", " {2,}", rf"{SPACE}+\z"
UNREACHABLE = -1000.0
"""Score of what Unigram must not find in text, such as `<0x41>`; far below those of pieces, which are logarithms."""
UNIGRAM, BPE = 1, 2
CANNOT = "sentencepiece has no such tokenizer"


class Kind(IntEnum):
    """Of a piece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class SentencePieces:
    """What a model file says.

    Args:
        pieces: Text, score and kind of each, by id.
        model: `UNIGRAM` or `BPE`.
        byte_fallback: What no piece covers becomes `<0x00>` … `<0xFF>`.
        named: Ids of the begin, end and padding token.
        charsmap: sentencepiece's table of what is replaced by what; empty for none.
        space_before: A space is put before a text.
        one_space: Spaces around a text are left out, and of several in a row all but one.
        suffix: Spaces end words rather than beginning them.
        escaped: A space is spelled ▁.
    """

    pieces: list[tuple[str, float, int]]
    model: int = UNIGRAM
    byte_fallback: bool = False
    named: tuple[int, int, int] = (1, 2, -1)
    charsmap: bytes = b""
    space_before: bool = True
    one_space: bool = True
    suffix: bool = False
    escaped: bool = True

    @classmethod
    def parse(cls, content: bytes) -> SentencePieces:
        """Read the message.

        Raises:
            ValueError: It is broken.
        """
        found = cls([])
        named = dict(zip((41, 42, 43), found.named, strict=True))
        for number, value in fields(content):
            if not isinstance(value, bytes):
                continue
            if number == 1:
                inner = dict(fields(value))
                text, score, kind = inner.get(1, b""), inner.get(2, 0.0), inner.get(3, 1)
                if not (isinstance(text, bytes) and isinstance(score, float) and isinstance(kind, int)):
                    raise ValueError("a piece that is none")
                found.pieces.append((text.decode(), score, Kind(kind)))
                if len(found.pieces) > MAX_PIECES:
                    raise ValueError("too many pieces")
            if number == 2:
                inner = dict(fields(value))
                found.model = _number(inner.get(3, UNIGRAM))
                found.suffix = bool(inner.get(24, 0))
                found.byte_fallback = bool(inner.get(35, 0))
                named |= {key: signed(_number(inner[key])) for key in named if key in inner}
            if number == 3:
                inner = dict(fields(value))
                charsmap = inner.get(2, b"")
                found.charsmap = charsmap if isinstance(charsmap, bytes) else b""
                found.space_before, found.one_space, found.escaped = (bool(inner.get(key, 1)) for key in (3, 4, 5))
        found.named = (named[41], named[42], named[43])
        return found

    def message(self) -> bytes:
        """Write the message."""
        pieces = [
            field(1, field(1, text) + field(2, float(score)) + field(3, int(kind))) for text, score, kind in self.pieces
        ]
        unknown = next(id for id, (_, _, kind) in enumerate(self.pieces) if kind == Kind.UNKNOWN)
        trainer = field(3, self.model) + field(4, len(self.pieces)) + field(35, int(self.byte_fallback))
        ids = dict(zip((41, 42, 43), self.named, strict=True))
        trainer += field(40, unknown) + b"".join(field(key, id) for key, id in ids.items())
        spelled = {key + 5: self.pieces[id][0] for key, id in ((40, unknown), *ids.items()) if id >= 0}
        trainer += b"".join(field(key, text) for key, text in spelled.items())
        name = field(1, "nmt_nfkc" if self.charsmap else "identity")
        flags = b"".join(field(key, int(value)) for key, value in ((3, self.space_before), (4, self.one_space), (5, 1)))
        return b"".join([*pieces, field(2, trainer), field(3, name + field(2, self.charsmap) + flags)])


def read_sentencepiece(content: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a model file.

    Args:
        content: Of the file.
        path: To be named in errors.

    Raises:
        DataError: The file is broken, or of a kind that cannot be expressed.
    """
    try:
        model = SentencePieces.parse(content)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no sentencepiece model: {error}", HINT) from error
    if len({text for text, _, _ in model.pieces}) < len(model.pieces) or not model.pieces:
        raise DataError(f"{path} has no list of distinct pieces", HINT)
    unused = model.model == BPE and any(kind == Kind.UNUSED for _, _, kind in model.pieces)
    if model.model not in (UNIGRAM, BPE) or model.suffix or not model.escaped or unused:
        raise DataError(
            f"{path} is a sentencepiece model of a rare kind", "BPE and Unigram with spaces before words are supported"
        )
    with library_errors(f"{path} is broken", HINT):
        return _tokenizer(model)


def write_sentencepiece(tokenizer: Tokenizer, out: Path) -> None:
    """Write a model file.

    Raises:
        UsageError: sentencepiece has no such tokenizer.
    """
    model = _model(tokenizer)
    with atomic_file(out) as temporary:
        temporary.write_bytes(model.message())


# ---- to a tokenizer --------------------------------------------------------------------------------


def _tokenizer(model: SentencePieces) -> Tokenizer:
    by_kind = {kind: [text for text, _, other in model.pieces if other == kind] for kind in Kind}
    unknown = by_kind[Kind.UNKNOWN][0] if by_kind[Kind.UNKNOWN] else None
    build = _bpe if model.model == BPE else _unigram
    backend = tokenizers.Tokenizer(build(model, unknown))
    defined = [text for text in by_kind[Kind.USER_DEFINED] if " " not in text]  # text has no spaces when it is matched
    steps = list[normalizers.Normalizer]()
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.one_space:
        steps.append(normalizers.Replace(Regex(LEADING), ""))
        steps.append(normalizers.Replace(Regex(MANY), " "))
    trailing = TRAILING
    if model.space_before and defined:
        trailing = r" +\z"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
        defined = [text.replace(SPACE, " ") for text in defined]
    else:
        if model.space_before:
            steps.append(normalizers.Prepend(SPACE))
        steps.append(normalizers.Replace(" ", SPACE))
    if model.one_space:
        steps.append(normalizers.Replace(Regex(trailing), ""))
    backend.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if model.space_before else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False)
            for text, _, kind in model.pieces
            if kind in (Kind.UNKNOWN, Kind.CONTROL)
        ]
    )
    backend.add_tokens([AddedToken(text, special=False, normalized=True) for text in defined])
    bos, eos, pad = (
        model.pieces[id][0] if 0 <= id < len(model.pieces) and model.pieces[id][2] == Kind.CONTROL else None
        for id in model.named
    )
    return Tokenizer.from_backend(backend, bos_token=bos, eos_token=eos, pad_token=pad, unk_token=unknown)


def _bpe(model: SentencePieces, unknown: str | None) -> models.BPE:
    normal = [(-score, id, text) for id, (text, score, kind) in enumerate(model.pieces) if kind == Kind.NORMAL]
    ranks = {text: rank for rank, (_, _, text) in enumerate(sorted(normal))}
    return models.BPE(
        {text: id for id, (text, _, _) in enumerate(model.pieces)},
        _merges(ranks),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _merges(ranks: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs of pieces that become one, the best first, without those of characters that are no pieces."""
    pairs = last_pairs(ranks)
    return [pair for pair in (all_pairs(ranks) if pairs is None else pairs) if pair[0] in ranks and pair[1] in ranks]


def _unigram(model: SentencePieces, unknown: str | None) -> models.Unigram:
    pieces = [
        (text, score if kind in (Kind.NORMAL, Kind.USER_DEFINED) else UNREACHABLE) for text, score, kind in model.pieces
    ]
    texts = [text for text, _, _ in model.pieces]
    return models.Unigram(pieces, None if unknown is None else texts.index(unknown), model.byte_fallback)


# ---- from a tokenizer ------------------------------------------------------------------------------


def _model(tokenizer: Tokenizer) -> SentencePieces:
    state = json.loads(tokenizer.backend.to_str())
    found, inner = _settings(state), state["model"]
    differences = [*wrong_kind(state, ("BPE", "Unigram")), *not_of_characters(state), *cut(state)]
    if found is None:
        differences += [*normalized(state)] or ["it does not spell a space as ▁"]
    if found is None or differences:
        raise refusal(CANNOT, differences)
    found.byte_fallback = bool(inner.get("byte_fallback"))
    if inner["type"] == "BPE":
        found.model = BPE
        texts = _by_id(inner["vocab"])
        first = {"".join(pair): rank for rank, pair in reversed(list(enumerate(inner["merges"])))}
        scores = [float(-first.get(text, len(first) + id)) for id, text in enumerate(texts)]
        unknown = inner["unk_token"]
    else:
        texts, scores = [text for text, _ in inner["vocab"]], [score for _, score in inner["vocab"]]
        unknown = None if inner["unk_id"] is None else texts[inner["unk_id"]]
    added = {token["content"]: token for token in state["added_tokens"]}
    if unknown is None:
        raise refusal(CANNOT, ["it has no token for what is unknown"])
    if not added.keys() <= set(texts) or len(set(texts)) < len(texts):
        raise refusal(CANNOT, ["its vocabulary has gaps, or lacks an added token"])
    kinds = [_kind(text, unknown, added.get(text), found.byte_fallback) for text in texts]
    found.pieces = [
        (text, score if kind in (Kind.NORMAL, Kind.USER_DEFINED) else 0.0, kind)
        for text, score, kind in zip(texts, scores, kinds, strict=True)
    ]
    if any(kind == Kind.USER_DEFINED for kind in kinds):
        raise refusal(
            CANNOT, [f"it has added tokens that are not special ones ({texts[kinds.index(Kind.USER_DEFINED)]})"]
        )
    named = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    found.named = tuple(-1 if id is None or kinds[id] != Kind.CONTROL else id for id in named)  # pyright: ignore
    if found.model == BPE:
        again = [list(pair) for pair in json.loads(_tokenizer(found).backend.to_str())["model"]["merges"]]
        if again != [list(pair) for pair in inner["merges"]]:
            raise refusal(CANNOT, ["its merges are not those that its tokens give in the order of their scores"])
    return found


def _settings(state: Mapping[str, Any]) -> SentencePieces | None:
    """How text is normalized; None if sentencepiece does not do so."""
    normalizer, found = state["normalizer"], SentencePieces([], space_before=False, one_space=False)
    steps = list([] if normalizer is None else normalizer.get("normalizers", [normalizer]))
    if steps and steps[0]["type"] == "Precompiled":
        found.charsmap = base64.b64decode(steps.pop(0)["precompiled_charsmap"])
    leading, many, trailing = (
        {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}
        for pattern, content in ((LEADING, ""), (MANY, " "), (TRAILING, ""))
    )
    if steps[:2] == [leading, many] and steps[-1] == trailing:
        found.one_space = True
        steps = steps[2:-1]
    if steps[:1] == [{"type": "Prepend", "prepend": SPACE}]:
        found.space_before = True
        del steps[:1]
    if steps == [{"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]:
        return found
    return None


def _number(value: int | float | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a number that is none")
    return value


def _by_id(vocab: Mapping[str, int]) -> Sequence[str]:
    """The tokens by id; none at all if there are gaps."""
    texts = sorted(vocab, key=vocab.__getitem__)
    return texts if [vocab[text] for text in texts] == list(range(len(texts))) else []


def _kind(text: str, unknown: str, added: Mapping[str, Any] | None, byte_fallback: bool) -> Kind:
    if text == unknown:
        return Kind.UNKNOWN
    if added is not None:
        return Kind.CONTROL if added["special"] else Kind.USER_DEFINED
    return Kind.BYTE if byte_fallback and BYTE_TOKEN.fullmatch(text) else Kind.NORMAL
