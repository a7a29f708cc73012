"""Tokenizers in GGUF metadata: byte-level BPE (`gpt2`) and sentencepiece's BPE (`llama`).

A byte-level one is its tokens, its merges, and the name of a rule that cuts text into words (`gguf_splits`). A
sentencepiece one has a score for each token instead of merges; where two tokens side by side make a third, that
pair is a merge, and better scores go first, as in the converters of `transformers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
from gguf import TokenType
from tokenizers import AddedToken, decoders, models, normalizers, processors

from tallow.console import say
from tallow.errors import DataError, TallowError, UsageError
from tallow.models.formats.gguf_config import control_tokens
from tallow.models.formats.gguf_splits import SPLIT_RULES, find_rule, pre_tokenizer
from tallow.tokenizer.tokenizer import Tokenizer

SPACE = "▁"
NO_SCORE = -1e6
"""Of tokens that no merge makes."""

LONGEST_PIECE = 256
"""Characters; a longer token is not looked for in text (finding its merges takes the square of its length)."""

WHOLE = "tokenizer.huggingface.json"
"""The whole tokenizer.json, as the GGUF specification allows; written where llama.cpp can only come near."""


def has_tokenizer(metadata: Mapping[str, Any]) -> bool:
    """Whether GGUF metadata describe a tokenizer, of whatever kind."""
    return metadata.get("tokenizer.ggml.model") not in (None, "none")


def read_tokenizer(metadata: Mapping[str, Any], path: Path) -> Tokenizer:
    """The tokenizer that GGUF metadata describe.

    Raises:
        DataError: There is none, it is of a kind that is not supported, or its parts do not fit together.
    """
    kind, tokens = metadata.get("tokenizer.ggml.model"), _strings(metadata, "tokens")
    if kind not in ("gpt2", "llama"):
        found = f"a tokenizer of the unknown kind {kind!r}" if has_tokenizer(metadata) else "no tokenizer"
        raise DataError(f"{path} has {found}", "supported: gpt2 (byte-level BPE) and llama (sentencepiece)")
    if not tokens or len(set(tokens)) < len(tokens):
        raise DataError(f"the tokenizer of {path} has no list of distinct tokens", "convert the model again")
    types = list(map(int, _numbers(metadata, "token_type")))
    if "tokenizer.ggml.token_type" not in metadata:
        types = [int(TokenType.NORMAL)] * len(tokens)
    if len(types) != len(tokens):
        raise DataError(f"the tokenizer of {path} does not give each token a type", "convert the model again")
    ids = control_tokens(metadata, len(tokens))
    spelling = {name: tokens[id] for name, id in ids.items() if id is not None}
    template = metadata.get("tokenizer.chat_template")
    whole = metadata.get(WHOLE)
    with _building(path):
        if isinstance(whole, str):
            return _from_backend(tokenizers.Tokenizer.from_str(whole), spelling, template)
        build = _byte_level if kind == "gpt2" else _sentencepiece
        backend, add_bos = build(metadata, _vocabulary(tokens, types), types, spelling, path)
        for special, wanted in ((True, TokenType.CONTROL), (False, TokenType.USER_DEFINED)):
            added = _ids_of_type(types, wanted)
            backend.add_tokens([AddedToken(tokens[id], special=special, normalized=False) for id in added])
        add_bos = metadata.get("tokenizer.ggml.add_bos_token", add_bos)
        _add_control_tokens(backend, spelling, bool(add_bos), bool(metadata.get("tokenizer.ggml.add_eos_token")))
        return _from_backend(backend, spelling, template)


def write_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The metadata of a tokenizer.

    Args:
        vocab_size: Rows of the model's embedding; ids without a token become unused ones.

    Raises:
        UsageError: llama.cpp has no such tokenizer, or it has more tokens than the model.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UsageError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary is {vocab_size}",
            "they do not belong together",
        )
    parts = json.loads(tokenizer.backend.to_str())
    model, added = parts["model"], {token["id"]: token for token in parts["added_tokens"]}
    if model["type"] != "BPE":
        raise UsageError(f"GGUF has no place for a {model['type']} tokenizer", "keep the model as safetensors")
    spelled = {id: token for token, id in model["vocab"].items()} | {
        id: token["content"] for id, token in added.items()
    }
    tokens = [spelled.get(id, _unused_name(id)) for id in range(vocab_size)]
    types = [TokenType.NORMAL if id in spelled else TokenType.UNUSED for id in range(vocab_size)]
    for id, token in added.items():
        types[id] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    merges = [pair if isinstance(pair, list) else pair.split(" ", 1) for pair in model["merges"]]
    if model.get("byte_fallback"):
        values, exact = _write_sentencepiece(parts, tokens, types, merges), True
    else:
        values, exact = _write_byte_level(parts, merges)
    add_bos, add_eos = _control_tokens_added(tokenizer)
    values |= {
        "tokens": tokens,
        "token_type": [int(type) for type in types],
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
    }
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unknown": tokenizer.unk_id, "padding": tokenizer.pad_id}
    values |= {f"{name}_token_id": id for name, id in ids.items() if id is not None}
    written = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    if not exact:
        say(
            "llama.cpp cannot cut numbers in twos as this tokenizer does: its token ids of some numbers will differ; "
            "train the tokenizer with max_digits 1 or 3 to have the same ids"
        )
        written[WHOLE] = tokenizer.backend.to_str()
    if tokenizer.chat_template is not None:
        written["tokenizer.chat_template"] = tokenizer.chat_template.source
    return written


# ---- byte-level BPE --------------------------------------------------------------------------------


def _byte_level(
    metadata: Mapping[str, Any], vocab: dict[str, int], types: Sequence[int], spelling: Mapping[str, str], path: Path
) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether one of its kind begins a sequence with the begin token."""
    del types, spelling
    name = metadata.get("tokenizer.ggml.pre")
    if name is None:
        say(f"{path} does not say how its tokenizer cuts text into words; taking llama.cpp's default")
        name = "default"
    if name not in SPLIT_RULES:
        # another rule would give other ids, and worse answers, without a sign of it
        raise DataError(
            f"the tokenizer of {path} cuts text into words by the unknown rule {name!r}",
            "take the model's safetensors with their tokenizer.json",
        )
    merges = _strings(metadata, "merges")
    rule = SPLIT_RULES[name]
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge in merges if (cut := merge.find(" ", 1)) > 0]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=rule.whole_words))
    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizer(rule)
    backend.decoder = decoders.ByteLevel()
    return backend, rule.add_bos


def _write_byte_level(parts: Mapping[str, Any], merges: Iterable[Sequence[str]]) -> tuple[dict[str, Any], bool]:
    """The metadata, and whether llama.cpp will cut text exactly as this tokenizer does."""
    kinds = [step["type"] for step in _steps(parts["normalizer"], "normalizers")]
    whole_words = bool(parts["model"].get("ignore_merges"))
    found = find_rule(parts["pre_tokenizer"], whole_words=whole_words, nfc=kinds == ["NFC"])
    if found is None or kinds not in ([], ["NFC"]):
        raise UsageError(
            "llama.cpp has no name for the way this tokenizer cuts text into words, so GGUF cannot hold it",
            "keep the model as safetensors",
        )
    name, exact = found
    return {"model": "gpt2", "pre": name, "merges": [" ".join(pair) for pair in merges]}, exact


# ---- sentencepiece ---------------------------------------------------------------------------------


def _sentencepiece(
    metadata: Mapping[str, Any], vocab: dict[str, int], types: Sequence[int], spelling: Mapping[str, str], path: Path
) -> tuple[tokenizers.Tokenizer, bool]:
    """The tokenizer, and whether one of its kind begins a sequence with the begin token."""
    scores = _numbers(metadata, "scores")
    if len(scores) != len(types):
        raise DataError(f"the tokenizer of {path} does not give each token a score", "convert the model again")
    mergeable: dict[str, float] = {}
    for token, id in list(vocab.items()):
        if types[id] == TokenType.NORMAL:
            mergeable[token] = scores[id]
        elif types[id] == TokenType.USER_DEFINED and not token.strip(" "):
            # runs of spaces, which the converter spells as such; sentencepiece takes them before all else
            del vocab[token]
            vocab[SPACE * len(token)] = id
            mergeable[SPACE * len(token)] = float("inf")
    merges = _merges(mergeable, vocab)
    model = models.BPE(vocab=vocab, merges=merges, unk_token=spelling.get("unknown"), fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend, True


def _merges(scores: Mapping[str, float], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of tokens that make a token, those that make a better one first."""
    found = [
        (score, len(token[:cut]), len(token[cut:]), -order, token[:cut], token[cut:])
        for order, (token, score) in enumerate(scores.items())
        if len(token) <= LONGEST_PIECE
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    found.sort(key=lambda merge: merge[:4], reverse=True)
    return [(left, right) for *_, left, right in found]


def _write_sentencepiece(
    parts: Mapping[str, Any], tokens: list[str], types: list[TokenType], merges: Iterable[Sequence[str]]
) -> dict[str, Any]:
    """Scores that give the same order of merges: the first that makes a token counts."""
    ids = {token: id for id, token in enumerate(tokens)}
    scores = [NO_SCORE] * len(tokens)
    for rank, (left, right) in enumerate(merges):
        id = ids.get(left + right)
        if id is not None and scores[id] == NO_SCORE:
            scores[id] = float(-rank)
    for id, token in enumerate(tokens):
        if types[id] == TokenType.NORMAL and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[id] = TokenType.BYTE
    unknown = ids.get(parts["model"].get("unk_token") or "")
    if unknown is not None:
        types[unknown] = TokenType.UNKNOWN
    steps = _steps(parts["normalizer"], "normalizers")
    kinds = [step["type"] for step in steps]
    if kinds not in (["Replace"], ["Prepend", "Replace"]) or parts["pre_tokenizer"] is not None:
        raise UsageError(
            "llama.cpp has no tokenizer with these steps, so GGUF cannot hold it", "keep it as safetensors"
        )
    return {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": kinds[0] == "Prepend"}


# ---- small parts -----------------------------------------------------------------------------------


def _unused_name(id: int) -> str:
    return f"[PAD{id}]"


def _vocabulary(tokens: Sequence[str], types: Sequence[int]) -> dict[str, int]:
    """Tokens by spelling, without those that only fill the model's embedding."""
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    for id in _ids_of_type(types, TokenType.UNUSED):
        if tokens[id] == _unused_name(id):
            del ids[tokens[id]]
    return ids


def _ids_of_type(types: Sequence[int], wanted: TokenType) -> list[int]:
    number = int(wanted)  # comparing with the name takes ten times as long
    return [id for id, type in enumerate(types) if type == number]


def _from_backend(backend: tokenizers.Tokenizer, spelling: Mapping[str, str], template: Any) -> Tokenizer:
    return Tokenizer.from_backend(
        backend,
        bos_token=spelling.get("bos"),
        eos_token=spelling.get("eos"),
        pad_token=spelling.get("padding"),
        unk_token=spelling.get("unknown"),
        chat_template=template if isinstance(template, str) else None,
    )


def _add_control_tokens(backend: tokenizers.Tokenizer, spelling: Mapping[str, str], bos: bool, eos: bool) -> None:
    """What `encode(add_special_tokens=True)` puts around a text."""
    before = [spelling["bos"]] if bos and "bos" in spelling else []
    after = [spelling["eos"]] if eos and "eos" in spelling else []
    around = [(token, backend.token_to_id(token)) for token in dict.fromkeys(before + after)]
    if around:
        backend.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B:1", *after],
            special_tokens=around,
        )


def _control_tokens_added(tokenizer: Tokenizer) -> tuple[bool, bool]:
    """Whether a text gets a begin token before it, and an end token after it."""
    plain, full = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=True)
    before = next((start for start in range(len(full)) if full[start : start + len(plain)] == plain), 0)
    return before > 0, before + len(plain) < len(full)


def _steps(part: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return part[inner] if part["type"] == "Sequence" else [part]


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings; empty where there is none."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, list) and set(map(type, value)) <= {str} else []


def _numbers(metadata: Mapping[str, Any], key: str) -> list[float]:
    """A list of numbers; empty where there is none."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    return value if isinstance(value, list) and set(map(type, value)) <= {bool, int, float} else []


@contextmanager
def _building(path: Path) -> Iterator[None]:
    """The `tokenizers` library raises bare exceptions, and panics, for parts that do not fit together."""
    try:
        yield
    except TallowError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"the tokenizer of {path} is broken: {error}", "convert the model again") from error
