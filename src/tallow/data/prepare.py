"""The stage `prepare`: raw files → documents, exact duplicates dropped, a validation set held out.

The work is done in steps on parts of bounded size, by as many processes as there are, and what each has made is kept
in `work/`: a run that was interrupted, or that is to go on with other settings, does only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from tallow.console import say
from tallow.data.documents import DocumentWriter
from tallow.data.manifest import DocumentCounts, DocumentManifest, SourceRecord, save_manifest
from tallow.data.read import Piece, ReadSettings, cut
from tallow.data.records import Rejected
from tallow.data.sources import Source, SourceNames, find_sources
from tallow.data.split import held_out_below
from tallow.data.steps.filter import FILTER, TOO_SHORT, FilterConfig
from tallow.data.steps.read import NOTE, READ, FilePiece, ReadConfig
from tallow.data.steps.split import SPLIT, SplitConfig
from tallow.data.steps.tally import TALLY, TallyConfig
from tallow.data.steps.unique import unique
from tallow.data.work.cluster import ClusterConfig
from tallow.data.work.step import Input, Part
from tallow.data.work.work import Work
from tallow.errors import writing
from tallow.files import atomic_directory, hash_file
from tallow.run import StageRun

DUPLICATE = "duplicate"


class PrepareConfig(ReadSettings):
    """Settings of the prepare stage, and how raw files are read.

    Args:
        sources: Files, directories and globs, or `tallow:pepys`, the text that comes with the package.
        validation_fraction: Share of the documents held out, chosen by the hash of their text; 0 holds out none.
        deduplicate: Keep one of the documents with the same text: the one with the smallest id.
        min_chars: Drop documents with fewer characters, white space at the ends not counted.
        part_mb: Text that a process works on at once, in MB; it needs several times as much memory.
        cluster: Who does the work.
    """

    incidental = frozenset(("cluster",))

    sources: SourceNames = Field(min_length=1)
    validation_fraction: float = Field(default=0.02, ge=0, lt=1)
    deduplicate: bool = True
    min_chars: int = Field(default=1, ge=1)
    part_mb: float = Field(default=16.0, gt=0, le=1024)
    cluster: ClusterConfig = ClusterConfig()

    @property
    def part_bytes(self) -> int:
        return int(self.part_mb * 2**20)


def prepare(config: PrepareConfig, run: StageRun) -> dict[str, Any]:
    """Read the sources and write `documents/`.

    Returns:
        `documents`, `train_documents`, `validation_documents`, `bytes`, `duplicates`, `too_short`, `rejected`.

    Raises:
        DataError: A source is unusable, or too few documents are left to hold some out.
        CapacityError: The disk is full.
        UsageError: The directory cannot be written.
    """
    with config.cluster.make() as engine:
        work = Work(run.directory / "work", engine)
        sources = _hashed(find_sources(config.sources, config.directories))
        parts, rejected, records = _read(config, work, sources)
        verdicts = _judge(config, work, parts)
        beside = [[Input(part), Input(verdict)] for part, verdict in zip(parts, verdicts, strict=True)]
        tallies = [made.counts for [made] in work.each(TALLY, [(TallyConfig(), inputs) for inputs in beside])]
        ends = [[int(tally[end]) for tally in tallies if end in tally] for end in ("smallest", "largest")]
        bound = held_out_below(config.validation_fraction, min(ends[0], default=None), max(ends[1], default=None))
        sides = work.each(SPLIT, [(SplitConfig(bound=bound), inputs) for inputs in beside])
    with atomic_directory(run.directory / "documents") as directory:
        splits = {
            split: _write([made[number] for made in sides], directory / split)
            for number, split in enumerate(("train", "validation"))
        }
        if rejected.bad:
            _write_rejected(records, directory / "rejected.jsonl")
        manifest = DocumentManifest(
            splits=splits,
            sources=tuple(
                SourceRecord(
                    name=source.name,
                    sha256=sha256,
                    documents=_sum(f"documents {source.name}", parts),
                    bytes=_sum(f"bytes {source.name}", parts),
                )
                for source, sha256 in sources.items()
            ),
            duplicates=sum(int(tally.get(DUPLICATE, 0)) for tally in tallies),
            too_short=sum(int(tally.get(TOO_SHORT, 0)) for tally in tallies),
            rejected=rejected.bad,
        )
        save_manifest(manifest, directory)
    work.sweep()
    if rejected.bad:
        say(f"{rejected.bad:,} records set aside, see {run.directory / 'documents' / 'rejected.jsonl'}")
    for decision, times in sorted(rejected.notes.items()):
        say(f"{times:,} × {decision}")
    return {
        "documents": sum(split.documents for split in splits.values()),
        **{f"{name}_documents": split.documents for name, split in splits.items()},
        "bytes": sum(split.bytes for split in splits.values()),
        "duplicates": manifest.duplicates,
        "too_short": manifest.too_short,
        "rejected": manifest.rejected,
    }


def _hashed(sources: Iterable[Source]) -> dict[Source, str]:
    return {source: hash_file(source.path) for source in sources}


def _read(config: PrepareConfig, work: Work, sources: Mapping[Source, str]) -> tuple[list[Part], Rejected, list[Part]]:
    """All documents, in parts; what was set aside, in numbers and as records.

    Raises:
        DataError: A source is unusable, or too many records are.
    """
    settings = {name: getattr(config, name) for name in ReadSettings.model_fields}
    given = [
        ReadConfig(
            pieces=tuple(
                FilePiece(
                    name=piece.source.name,
                    sha256=sources[piece.source],
                    kind=piece.source.kind,
                    begin=piece.begin,
                    end=piece.end,
                    path=piece.source.path,
                    root=piece.source.root,
                )
                for piece in group
            ),
            part_bytes=config.part_bytes,
            **settings,
        )
        for group in _groups(cut(sources, config, config.part_bytes), config.part_bytes)
    ]
    made = work.each(READ, [(each, ()) for each in given])
    rejected = Rejected()
    for counts in (tables[-1].counts for tables in made):
        rejected.good += int(counts["good"])
        rejected.bad += int(counts["bad"])
        rejected.notes.update(
            {name.removeprefix(NOTE): int(times) for name, times in counts.items() if name.startswith(NOTE)}
        )
    records = [tables[-1] for tables in made if tables[-1].rows]
    if records:
        first = records[0].read().slice(0, 1).to_pylist()[0]
        rejected.first, rejected.hint = first["first"], first["hint"]
    rejected.check(config.max_bad_fraction)
    return [part for tables in made for part in tables[:-1]], rejected, records


def _groups(pieces: Iterable[Piece], part_bytes: int) -> Iterator[list[Piece]]:
    """Pieces that follow one another and are together no longer than a part, or single ones."""
    group: list[Piece] = []
    size = 0
    for piece in pieces:
        length = (piece.source.path.stat().st_size if piece.end is None else piece.end) - piece.begin
        if group and size + length > part_bytes:
            yield group
            group, size = [], 0
        group.append(piece)
        size += length
    if group:
        yield group


def _judge(config: PrepareConfig, work: Work, parts: Sequence[Part]) -> list[Part]:
    """What drops which documents."""
    too_short = FilterConfig(min_chars=config.min_chars)
    verdicts = [made for [made] in work.each(FILTER, [(too_short, [Input(part)]) for part in parts])]
    if config.deduplicate:
        verdicts = unique(work, parts, verdicts, parts, "digest", DUPLICATE, config.part_bytes)
    return verdicts


def _write(parts: Iterable[Part], directory: Path) -> DocumentCounts:
    writer = DocumentWriter(directory)
    for part in parts:
        for batch in part.read().to_batches():
            writer.add(batch)
    return writer.close()


def _write_rejected(records: Iterable[Part], path: Path) -> None:
    with writing(path), open(path, "w", encoding="utf-8") as file:
        for part in records:
            file.writelines(f"{line}\n" for line in part.read().column("record").to_pylist())


def _sum(name: str, parts: Iterable[Part]) -> int:
    return sum(int(part.counts.get(name, 0)) for part in parts)
