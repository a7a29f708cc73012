"""How raw files are read, what readers give, and how they say that something cannot be used."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from tallow.data.sources import Source
from tallow.errors import UsageError
from tallow.recipe import Section

AUTO = "auto"
EXPANSION = 16
"""A packed record is unpacked up to this many times `max_document_bytes`, then given up."""


class ReadSettings(Section):
    """How raw files are read.

    Args:
        text_field: The field (JSON) or column (parquet, CSV) that holds a document's text.
        split: What a document is in a text or Markdown file: the whole file, each paragraph (blank lines between), or
            each line.
        encoding: Encoding of text, CSV, HTML and source code files; a byte-order mark is dropped. `auto`: that of the
            byte-order mark, else UTF-8, else what HTML declares, else what `chardet` finds; JSON is always UTF-8.
        html_content: What of an HTML page is text: its main content, or all that a browser would show.
        directories: What the files below a directory are: data files, or a source tree, of which source code is read.
        max_document_bytes: A longer line, paragraph, row, page or file is set aside.
        max_bad_fraction: Above this share of records set aside, reading fails.
    """

    text_field: str = "text"
    split: Literal["whole", "paragraphs", "lines"] = "whole"
    encoding: str = AUTO
    html_content: Literal["main", "all"] = "main"
    directories: Literal["data", "code"] = "data"
    max_document_bytes: int = Field(default=64 * 2**20, gt=0)
    max_bad_fraction: float = Field(default=0.1, ge=0, le=1)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str) -> str:
        if name != AUTO:
            try:
                "\n".encode(name)
            except LookupError as error:
                raise ValueError(f"{name} is not a text encoding; e.g. utf-8, latin-1, cp1252, utf-16") from error
        return name

    @property
    def json_encoding(self) -> str:
        """RFC 8259, section 8.1: JSON is UTF-8, unless someone says otherwise."""
        return "utf-8" if self.encoding == AUTO else self.encoding

    @property
    def too_long(self) -> str:
        return f"longer than {self.max_document_bytes:,} bytes"


@dataclass(frozen=True)
class Piece:
    """The records of a file that begin in a range of its bytes, as they lie on disk.

    Args:
        source: The file.
        begin: First byte.
        end: The byte after the last; None: to the end of the file.
    """

    source: Source
    begin: int = 0
    end: int | None = None

    def holds(self, offset: int) -> bool:
        return self.end is None or offset < self.end


class Text(NamedTuple):
    """A text that a reader has found.

    Args:
        text: With plain newlines.
        offset: As of its `Place`.
        metadata: What else the file says of it, such as `title`, `url` or `language`.
    """

    text: str
    offset: int
    metadata: Mapping[str, str] = MappingProxyType({})


class Unusable(Exception):
    """A record or file that is set aside.

    Args:
        reason: Why, in a few words.
        hint: What to do about it; may be empty.
    """

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


def empty() -> Unusable:
    return Unusable("is empty", "leave it out, or make it again")


def binary() -> Unusable:
    return Unusable("is binary, not text", "if it is UTF-16 text, set encoding to utf-16")


def refuse_wide(source: Source, encoding: str) -> None:
    """Lines are found by their bytes.

    Raises:
        UsageError: In this encoding they cannot be.
    """
    if codecs.encode("\n", encoding) != b"\n":
        raise UsageError(f"{source.path} cannot be read line by line as {encoding}", "convert it to UTF-8 (iconv does)")


def extra(module: str, what: str) -> ModuleType:
    """Import a package of the extra `data`.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(f"{what} needs {module.partition('.')[0]}", "pip install 'tallow[data]'") from error
