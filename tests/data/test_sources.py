from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path

import pyarrow as pa
import pytest

from tallow.data.sources import Source, expand_globs, find_sources
from tallow.errors import DataError

TEXT = b"So home to supper and to bed.\n" * 5000


def pack(path: Path, data: bytes) -> Path:
    match path.suffix:
        case ".gz":
            path.write_bytes(gzip.compress(data))
        case ".xz":
            path.write_bytes(lzma.compress(data))
        case ".zst":
            with pa.OSFile(str(path), "wb") as file, pa.CompressedOutputStream(file, "zstd") as stream:
                stream.write(data)
        case _:
            path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.xz", "a.txt.zst"])
def test_reads_plain_and_packed(tmp_path: Path, name: str) -> None:
    (source,) = find_sources([pack(tmp_path / name, TEXT)])
    with source.open() as stream:
        assert stream.read() == TEXT


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.txt.zst"])
@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_damaged_packed_file_is_a_data_error(tmp_path: Path, name: str, damage: str) -> None:
    path = pack(tmp_path / name, TEXT)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else b"not packed at all" * 20)
    (source,) = find_sources([path])
    with pytest.raises(DataError, match=r"cut short|damaged") as caught, source.open() as stream:
        while stream.read(1024):
            pass
    assert str(path) in caught.value.message


def test_xz_in_several_streams_with_padding_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"one ") + bytes(8) + lzma.compress(TEXT) + bytes(4))
    (source,) = find_sources([path])
    with source.open() as stream:
        assert stream.read() == b"one " + TEXT


def test_xz_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**20}]
    raw = bytearray(lzma.compress(TEXT, filters=filters, check=lzma.CHECK_NONE))
    at = raw.index(b"\x21\x01", 12)  # the filter's id and the size of its properties; then the size of the dictionary
    raw[at + 2] = 38  # 2 GiB
    size = 4 * (raw[12] + 1)
    raw[12 + size - 4 : 12 + size] = zlib.crc32(raw[12 : 12 + size - 4]).to_bytes(4, "little")
    path.write_bytes(raw)
    (source,) = find_sources([path])
    with pytest.raises(DataError, match=r"damaged .*[Mm]emory"), source.open() as stream:
        stream.read()


def test_directory_gives_its_data_files_sorted(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.txt", "deep/a.jsonl.xz", "a.md", "notes.docx", ".hidden.txt", ".git/x.txt", "c.parquet.gz"):
        (tmp_path / name).write_text("x")
    found = find_sources([tmp_path])
    assert [Path(source.name).relative_to(tmp_path).as_posix() for source in found] == [
        "a.md",
        "b.txt",
        "deep/a.jsonl.xz",
    ]
    assert [source.kind for source in found] == ["markdown", "text", "jsonl"]


def test_a_file_named_twice_comes_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    found = find_sources([tmp_path / "b.txt", tmp_path, str(tmp_path / "*.txt")])
    assert [source.path.name for source in found] == ["b.txt", "a.txt"]


def test_globs_expand_and_a_literal_name_wins(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "[ab].txt"):
        (tmp_path / name).write_text("x")
    assert expand_globs([str(tmp_path / "?.txt")]) == [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert expand_globs([str(tmp_path / "[ab].txt")]) == [tmp_path / "[ab].txt"]
    assert expand_globs(["tallow:pepys", "x"]) == ["tallow:pepys", Path("x")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "does not exist"),
        ("*.nothing", "no data file matches"),
        ("picture.png", "does not tell what kind"),
        ("bare", "does not tell what kind"),
        (".", "holds no data file"),
        ("tallow:nothing", "no built-in data set"),
    ],
)
def test_what_cannot_be_found_is_a_data_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "bare").write_bytes(b"text")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        find_sources([name])
    assert caught.value.hint


def test_unreadable_file_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(DataError, match="permission denied"), Source("a", path, "text").open():
        pass


def test_globs_through_links_that_lead_upwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them make 2^40 paths, of which each leads to the same file."""
    (tmp_path / "sub/.hidden").mkdir(parents=True)
    for name in ("a.txt", "sub/b.txt", ".c.txt", "sub/.hidden/d.txt"):
        (tmp_path / name).write_text("text")
    (tmp_path / "one").symlink_to(".")
    (tmp_path / "sub/two").symlink_to("..")
    both = [tmp_path / "a.txt", tmp_path / "sub/b.txt"]
    assert expand_globs([str(tmp_path / "**/*.txt")]) == both
    assert expand_globs([str(tmp_path / "sub/.hidden/**")]) == [tmp_path / "sub/.hidden/d.txt"]
    monkeypatch.chdir(tmp_path)
    assert expand_globs(["**/*.txt"]) == [Path("a.txt"), Path("sub/b.txt")]
