"""Where raw data comes from: files, directories, globs and built-in sets, plain or packed, opened as byte streams."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import pyarrow as pa
from pydantic import BeforeValidator

from tallow.data.builtin import PREFIX, builtin
from tallow.data.hub import HUB, fetch
from tallow.data.languages import LANGUAGES, language
from tallow.errors import DataError, UsageError, reading
from tallow.files import hash_file
from tallow.recipe import Section

Kind = Literal["text", "markdown", "jsonl", "json", "parquet", "csv", "tsv", "html", "pdf", "warc", "code"]
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".md": "markdown",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".warc": "warc",
    ".wet": "warc",
}
PACKED = (".gz", ".xz", ".zst")
KNOWN_NAMES = f"known are {', '.join(KINDS)}, all but parquet also with {', '.join(PACKED)}"
BUFFER_BYTES = 2**16
XZ_MEMORY = 2**28
"""A file that wants more to be unpacked than `xz -9` does, four times over, is refused."""


class Damaged(DataError):
    """A file whose content is not what its name says, or ends before it should."""


@dataclass(frozen=True)
class Source:
    """One file of raw data.

    Args:
        name: What lineage calls it: the path as the user wrote it, or `tallow:<name>`.
        path: Where it lies.
        kind: What is in it, known from its name; `json` may be an array or lines.
        root: Of source code the directory that holds all of it.
    """

    name: str
    path: Path
    kind: Kind
    root: Path | None = None

    @property
    def packed(self) -> bool:
        return self.path.suffix.lower() in PACKED

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The bytes of the file, unpacked as they are read.

        Raises:
            DataError: The file cannot be read, or (`Damaged`) it is cut short or damaged, found out at any later read.
        """
        with self.reading_errors(), open(self.path, "rb") as file:
            yield _unpack(file, self.path.suffix)

    @contextmanager
    def reading_errors(self) -> Iterator[None]:
        """Turn whatever reading and unpacking complain of into a `DataError` that names the file."""
        with reading(self.path, "data file"):
            try:
                yield
            except EOFError as error:
                raise Damaged(f"data file {self.path} is cut short", "fetch or make it again") from error
            except (OSError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
                if isinstance(error, OSError) and error.errno is not None:  # of the system, not of the content
                    raise
                cause = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
                raise Damaged(f"data file {self.path} is damaged ({cause})", "fetch or make it again") from error


class HashedFile(Section):
    """A file that a step reads besides its tables: its name, its SHA-256, and where it lies."""

    incidental = frozenset(("path",))

    name: str
    sha256: str
    path: Path


def hashed_files(names: Iterable[str | Path]) -> tuple[HashedFile, ...]:
    """The files that names stand for, with their hashes.

    Raises:
        DataError: There is no such file.
    """
    return tuple(
        HashedFile(name=source.name, sha256=hash_file(source.path), path=source.path) for source in find_sources(names)
    )


def find_sources(names: Iterable[str | Path], directories: Literal["data", "code"] = "data") -> list[Source]:
    """All files that the names stand for.

    A name is a file, a directory, a glob, `tallow:<name>`, or `hf://datasets/<owner>/<name>[@<revision>][/<path>]`, of
    which the file, or every data file below the path, is brought from the hub into its cache. The order is that of the
    names, and within a directory or glob that of the sorted paths; a file that is named twice comes once. In a
    directory hidden files and files of other kinds are passed over.

    Args:
        names: What is sought.
        directories: What is taken below a directory: data files, or source code.

    Raises:
        DataError: A name stands for no file, or for one whose kind its name does not tell.
    """
    return list(dict.fromkeys(source for name in names for source in _find(str(name), directories)))


def expand_globs(names: Iterable[str]) -> list[str | Path]:
    """Replace globs by the paths they match now; built-in names stay strings, all else becomes a path.

    Raises:
        DataError: A glob matches nothing.
    """
    result: list[str | Path] = []
    for name in names:
        if not name.strip():
            raise UsageError("the name of a source is empty", "name a file, a directory or a glob; . is this directory")
        if name.startswith((PREFIX, HUB)):
            result.append(name)
        elif has_magic(name) and not Path(name).exists():
            result.extend(_match(name))
        else:
            result.append(Path(name))
    return result


def _one_or_many(value: Any) -> Any:
    names = [value] if isinstance(value, str | Path) else value
    return tuple(expand_globs([str(name) for name in names])) if isinstance(names, list | tuple) else value


SourceNames = Annotated[tuple[Path | str, ...], BeforeValidator(_one_or_many)]
"""A setting that names sources. Each file or directory becomes a path, so that a change in one is seen when the
recipe is run again."""


def _find(name: str, directories: Literal["data", "code"]) -> list[Source]:
    if name.startswith(PREFIX):
        path = builtin(name)
        return [Source(name, path, _kind(path))]
    if name.startswith(HUB):
        return [
            Source(hub_name, path, _kind(path)) for hub_name, path in fetch(name, lambda path: bool(known_kind(path)))
        ]
    path = Path(name)
    if has_magic(name) and not path.exists():
        return [source for match in _match(name) for source in _find(str(match), directories)]
    if path.is_dir():
        with reading(path, "data directory"):
            below = sorted(file for file in path.rglob("*") if not _hidden(file.relative_to(path)))
        if directories == "code":
            # what a link leads to is in the tree itself, or none of its business
            files = [file for file in below if language(file) and file.is_file() and not file.is_symlink()]
            if not files:
                raise DataError(f"directory {path} holds no source code", f"known are {', '.join(LANGUAGES)}")
            return [Source(file.as_posix(), file, "code", path) for file in files]
        files = [file for file in below if known_kind(file) and file.is_file()]
        if not files:
            raise DataError(f"data directory {path} holds no data file", KNOWN_NAMES)
        return [Source(file.as_posix(), file, _kind(file)) for file in files]
    if not path.exists():
        raise DataError(f"data file {path} does not exist", "check the path")
    return [Source(path.as_posix(), path, _kind(path))]


def _match(pattern: str) -> list[Path]:
    if "**" in pattern:  # `glob` would follow links, of which two that lead upwards make more paths than can be listed
        anchor, *parts = Path(pattern).parts
        anchor, parts = (anchor, parts) if Path(pattern).is_absolute() else (".", [anchor, *parts])
        parts += ["*"] * (parts[-1] == "**")
        matches = sorted(path for path in Path(anchor).glob("/".join(parts)) if _matches_hidden(path, parts))
    else:
        matches = sorted(map(Path, glob(pattern)))
    if not matches:
        raise DataError(f"no data file matches {pattern}", "check the pattern, and quote it in the shell")
    return matches


def _matches_hidden(path: Path, parts: Sequence[str]) -> bool:
    """Whether all hidden parts of a path, if it has any, are named by the pattern as they are."""
    return all(part in parts for part in path.parts if part.startswith("."))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def known_kind(path: Path) -> Kind | None:
    """What kind of data the name of a file tells is in it, if it does."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind != "parquet" else None
    return KINDS.get(suffixes[-1]) if suffixes else None


def _kind(path: Path) -> Kind:
    kind = known_kind(path)
    if kind is None:
        raise DataError(f"the name of {path} does not tell what kind of data is in it", KNOWN_NAMES)
    return kind


def _unpack(file: IO[bytes], suffix: str) -> IO[bytes]:
    match suffix.lower():
        case ".gz":
            unpacked: Any = gzip.GzipFile(fileobj=file)
        case ".xz":
            unpacked = _BoundedXz(file)
        case ".zst":
            unpacked = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")
        case _:
            return file
    return io.BufferedReader(unpacked, BUFFER_BYTES)


class _BoundedXz(io.RawIOBase):
    """Unpacks .xz, one stream after another, as `lzma.LZMAFile` does, which cannot bound the memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stream: lzma.LZMADecompressor | None = None
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream is not None and self._stream.eof:
                self._ahead, self._stream = self._stream.unused_data.lstrip(b"\0"), None
            if not self._ahead and (self._stream is None or self._stream.needs_input):
                self._ahead = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if self._stream is None:
                    self._ahead = self._ahead.lstrip(b"\0")  # streams may be padded
                    if not self._ahead:
                        return 0
                elif not self._ahead:
                    raise EOFError
            if self._stream is None:
                self._stream = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            data, self._ahead = self._stream.decompress(self._ahead, len(buffer)), b""
            if data:
                buffer[: len(data)] = data
                return len(data)
