"""Text to token ids and back, on the `tokenizers` library."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import AddedToken

from tallow.errors import DataError, reading
from tallow.files import read_json, write_json, write_text
from tallow.tokenizer.chat import ChatTemplate
from tallow.tokenizer.sealed import CANNOT_ENCODE, SHORT, SealedTokenizer, library_errors
from tallow.tokenizer.spelling import Spelling

if TYPE_CHECKING:
    import pyarrow as pa

MAX_FILE_BYTES = 1 << 28  # of tokenizer.json; the largest published ones have 40 MB
RESTORE = "restore the file from where the model came from"


class Tokenizer:
    """A trained tokenizer with its special tokens and chat template.

    Attributes:
        backend: The tokenizer proper; to be read, not changed.
        special_tokens: Spelling of the named special tokens, by name (`bos_token`, `eos_token`, …).
        chat_template: How a conversation is written; None if the model has none.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """Take over `backend`; named special tokens that it lacks are added to it, as `transformers` does."""
        backend.no_truncation()
        backend.no_padding()
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        missing = [token for token in dict.fromkeys(special_tokens.values()) if token not in special]
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
        self.backend = backend
        self.special_tokens = dict(special_tokens)
        self.chat_template = chat_template

    @classmethod
    def from_backend(
        cls,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        unk_token: str | None = None,
        mask_token: str | None = None,
        chat_template: str | None = None,
    ) -> Tokenizer:
        """Wrap a tokenizer that was built in memory; `backend` is taken over, not copied."""
        named = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "pad_token": pad_token,
            "unk_token": unk_token,
            "mask_token": mask_token,
        }
        tokens = {name: token for name, token in named.items() if token is not None}
        return cls(backend, tokens, ChatTemplate(chat_template, tokens) if chat_template is not None else None)

    @classmethod
    def load(cls, directory: Path | str) -> Tokenizer:
        """Read `tokenizer.json` and, where they are there, its configuration and chat template.

        As in `transformers`, what `encode(add_special_tokens=True)` adds is what tokenizer.json says, and a
        `chat_template.jinja` goes before a template in `tokenizer_config.json`.

        Args:
            directory: Of these files. Also a file of another format (`tallow.tokenizer.formats`), or a directory that
                has one in place of `tokenizer.json`; then nothing else is read.

        Raises:
            DataError: A file is missing or broken.
        """
        directory = Path(directory)
        path = directory / "tokenizer.json"
        if not path.exists():
            from tallow.tokenizer.formats import find_tokenizer_file, read_tokenizer  # which know this class

            if (other := directory if directory.is_file() else find_tokenizer_file(directory)) is not None:
                return read_tokenizer(other)
        with reading(path, "tokenizer"):
            if path.stat().st_size > MAX_FILE_BYTES:
                raise DataError(f"tokenizer {path} is larger than {MAX_FILE_BYTES >> 20} MB", RESTORE)
            raw = path.read_bytes()
        backend = _backend(raw, path)
        config = _read_optional(directory / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:
            config |= _read_optional(directory / "special_tokens_map.json")
        tokens = {
            name: spelling
            for name, value in config.items()
            if name.endswith("_token") and (spelling := _spelling(value)) is not None
        }
        with library_errors(f"tokenizer {path} does not fit its configuration", RESTORE):
            _add_listed_tokens(backend, config)
            return cls(backend, tokens, _read_template(directory, config, tokens))

    @classmethod
    def from_json(cls, content: bytes, path: Path) -> Tokenizer:
        """The tokenizer of a `tokenizer.json` alone, whose special tokens have no names.

        Args:
            content: Of the file.
            path: To be named in errors.

        Raises:
            DataError: It is broken.
        """
        return cls(_backend(content, path), {})

    def save(self, directory: Path | str) -> None:
        """Write the files that `load` and `transformers.AutoTokenizer` read.

        (Beside a model of type `qwen2`, transformers 5 puts Qwen's rule for splitting text in place of the file's.)

        Raises:
            CapacityError: The disk is full.
            UsageError: The directory cannot be written.
        """
        directory = Path(directory)
        write_text(directory / "tokenizer.json", self.backend.to_str(pretty=True))
        write_json(
            directory / "tokenizer_config.json",
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": False,
                "model_input_names": ["input_ids", "attention_mask"],
                **self.special_tokens,
            },
        )
        write_json(directory / "special_tokens_map.json", self.special_tokens)
        if self.chat_template is not None:
            write_text(directory / "chat_template.jinja", self.chat_template.source)
            if self.chat_template.tool_source is not None:
                write_text(directory / "additional_chat_templates" / "tool_use.jinja", self.chat_template.tool_source)

    def encode(self, text: str, *, add_special_tokens: bool = False, parse_special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: Any text; it must be valid Unicode.
            add_special_tokens: Add what the tokenizer puts around a text (a BOS token, for instance).
            parse_special: Read the spelling of a special token as that token. For text that users wrote leave it
                off: then such a spelling is encoded like any other text.

        Raises:
            DataError: The text holds half a surrogate pair, or something that this vocabulary cannot express.
        """
        with library_errors(*CANNOT_ENCODE):
            if add_special_tokens and self.backend.post_processor is not None:
                if parse_special:
                    return self.backend.encode(text, add_special_tokens=True).ids
                encoding = self.backend.post_process(self.sealed.encode(text), add_special_tokens=True)
                return self.sealed.ids(encoding)
            return self.sealed.parse(text) if parse_special else self.sealed.encode_ids(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many texts, on all cores.

        Raises:
            DataError: As `encode`.
        """
        with library_errors(*CANNOT_ENCODE):
            return self.sealed.encode_batch(texts)

    def encode_texts(
        self, texts: pa.StringArray, *, end: int | None = None
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """`encode` for many texts, as arrays: the fastest way, on one core where our own code can do it.

        Args:
            texts: Without nulls.
            end: An id to put after each text.

        Returns:
            The ids of all texts, one after another; how many there are of each, `end` counted.

        Raises:
            DataError: As `encode`.
        """
        with library_errors(*CANNOT_ENCODE):
            return self.sealed.encode_texts(texts, end)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids without a token count for nothing, bytes that are not UTF-8 become U+FFFD.

        Raises:
            DataError: An id is negative or beyond 32 bits.
        """
        with library_errors("tokens cannot be decoded", "check that model and tokenizer belong together"):
            if len(ids) <= SHORT:
                return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
            return self.backend.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)[0]

    @cached_property
    def sealed(self) -> SealedTokenizer:
        """Encodes what users wrote."""
        return SealedTokenizer(self.backend)

    @cached_property
    def vocab_size(self) -> int:
        """Highest id + 1, added tokens included: the rows that a model needs at least."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def longest_token_bytes(self) -> int:
        """The most bytes of text that one token stands for."""
        return max((len(self.token_bytes(id)) for id in range(self.vocab_size)), default=0)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        return frozenset(id for id, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of tokenizer.json's content: equal fingerprints, equal ids."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    @property
    def bos_id(self) -> int | None:
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        return self._special_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        return self._special_id("pad_token")

    @property
    def unk_id(self) -> int | None:
        return self._special_id("unk_token")

    @property
    def mask_id(self) -> int | None:
        """The token that stands where a masked language model is to fill one in."""
        return self._special_id("mask_token")

    def token_bytes(self, id: int) -> bytes:
        """What a token stands for: UTF-8, or a part of a character; empty for an id without a token.

        Concatenated, these are the text of a sequence, but for what the decoder does at its ends (sentencepiece-like
        ones drop the space before the first word).
        """
        token = self.backend.id_to_token(id)
        return b"" if token is None else self.spelling.to_bytes(token)

    @cached_property
    def spelling(self) -> Spelling:
        """How the vocabulary is spelled."""
        return Spelling(self.backend)

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)


class StreamDecoder:
    """Text of token ids that come one by one.

    What `push` returns is final: all that it returns and `flush` at the end make up `Tokenizer.decode` of all ids.
    So a character whose bytes are still coming is held back, and, where bytes are tokens of their own (`<0xE4>`),
    a run of them until it has ended: the decoder judges such a run as a whole.

    Args:
        tokenizer: Whose tokens they are.
        skip_special_tokens: Leave out special tokens, but for
        shown: these.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, shown: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids.difference(shown) if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []  # the last token written: decoders treat the first of a sequence differently
        self._waiting: list[int] = []

    def push(self, id: int) -> str:
        """Take the next id; return the text that is now certain."""
        token = self._tokenizer.backend.id_to_token(id)
        if id in self._skipped or not token:
            return ""
        spelling = self._tokenizer.spelling
        if spelling.byte_level:
            return self._utf8.decode(spelling.to_bytes(token))
        self._waiting.append(id)
        return "" if spelling.is_byte(token) else self._write()

    def flush(self) -> str:
        """The text still held back; after it the decoder is as new."""
        text = self._utf8.decode(b"", final=True) + (self._write() if self._waiting else "")
        self._context = []
        return text

    def _write(self) -> str:
        before = self._tokenizer.decode(self._context, skip_special_tokens=False)
        after = self._tokenizer.decode(self._context + self._waiting, skip_special_tokens=False)
        self._context, self._waiting = self._waiting[-1:], []
        return after[len(before) :]


def _backend(content: bytes, path: Path) -> tokenizers.Tokenizer:
    with library_errors(f"tokenizer {path} is broken", RESTORE):
        return tokenizers.Tokenizer.from_buffer(content)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path, "tokenizer configuration") if path.exists() else {}


def _spelling(value: object) -> str | None:
    """The spelling of a special token, which a configuration gives as a string or as a description."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _add_listed_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Add the tokens that only the configuration knows."""
    listed = sorted((int(id), fields) for id, fields in config.get("added_tokens_decoder", {}).items())
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([AddedToken(**fields) for _, fields in listed if fields["content"] not in known])
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    spellings = [_spelling(token) for token in (extra.values() if isinstance(extra, Mapping) else extra)]
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in spellings if token and token not in known]
    )


def _read_template(directory: Path, config: Mapping[str, Any], tokens: Mapping[str, str]) -> ChatTemplate | None:
    """The chat template: from its own file, or from the configuration, which may name several."""
    value = config.get("chat_template") or {}
    if isinstance(value, str):
        value = {"default": value}
    elif isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}
    sources = dict(value)
    for name, path in (
        ("default", directory / "chat_template.jinja"),
        ("tool_use", directory / "additional_chat_templates" / "tool_use.jinja"),
    ):
        if path.exists():
            with reading(path, "chat template"):
                sources[name] = path.read_text(encoding="utf-8")
    if not all(isinstance(source, str) for source in sources.values()):
        raise DataError(f"the chat template in {directory} is not text", RESTORE)
    if "default" not in sources:
        return None
    return ChatTemplate(sources["default"], tokens, tool_source=sources.get("tool_use"))
