"""The stage `prepare`: raw files → documents that are worth to be learned, a validation set held out.

What was found out on the way is kept in `work/`: a run that was interrupted, or that is to go on with other settings,
does only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tallow.console import say
from tallow.data.blocks import save_card
from tallow.data.card import describe
from tallow.data.config import PrepareConfig
from tallow.data.documents import DocumentWriter
from tallow.data.duplicates.minhash import s_curve
from tallow.data.examine import DUPLICATE, NEAR_DUPLICATE, examine
from tallow.data.manifest import DocumentCounts, DocumentManifest, SourceRecord, save_manifest
from tallow.data.record import RECORD, PrepareRecord
from tallow.data.records import ENDED_EARLY
from tallow.data.split import held_out_below
from tallow.data.steps.judge import LANGUAGE, TOO_SHORT
from tallow.data.steps.split import SPLIT, SplitConfig
from tallow.data.steps.tally import KEPT
from tallow.data.work.step import Part
from tallow.data.work.work import Work
from tallow.errors import DataError, writing
from tallow.files import atomic_directory
from tallow.run import WORK, StageRun

ENDS = ("smallest", "largest")
"""Digests of the documents that are kept."""
SHOWN_FILES = 5


def prepare(config: PrepareConfig, run: StageRun) -> dict[str, Any]:
    """Read the sources and write `documents/`.

    Returns:
        `documents`, `train_documents`, `validation_documents`, `bytes`, `duplicates`, `too_short`, `dropped` (all
        documents that were), `rejected`.

    Raises:
        DataError: A source is unusable, or too few documents are left to hold some out.
        CapacityError: The disk is full.
        UsageError: The directory cannot be written.
    """
    if config.quality is not None and config.language is None:
        say("quality without language: rules for English, such as stop words, are asked of all texts")
    if config.near_duplicates is not None:
        say(f"near-duplicates: {s_curve(config.near_duplicates)}")
    with config.cluster.make() as engine:
        work = Work(run.directory / WORK, engine)
        found = examine(config, work)
        work.keep(RECORD, PrepareRecord.of(config, found, work.inputs))
        fates = found.fates()
        dropped = [(reason, count) for reason, count in fates.most_common(6) if reason != KEPT]
        if dropped and fates[KEPT] <= (config.validation_fraction > 0):
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped)
            raise DataError(
                f"of {fates.total():,} documents {fates[KEPT] or 'none'} is left (dropped by: {reasons})",
                "give more text or lower bounds; tallow data what-if tells what others would do",
            )
        ends = [[int(tally.counts[end]) for tally in found.tallies if end in tally.counts] for end in ENDS]
        bound = held_out_below(config.validation_fraction, min(ends[0]), max(ends[1]))
        languages = found.columns.get(LANGUAGE, [])
        given = found.beside(found.verdicts, *[languages] * bool(languages), *found.edits)
        with work.telling("writing"):
            sides = work.each(SPLIT, [(SplitConfig(bound=bound, language=bool(languages)), each) for each in given])
    for pattern in config.licences:
        if not any(fnmatch(source.name, pattern) for source in found.sources):
            say(f"licences: no source is called {pattern}")
    with atomic_directory(run.directory / "documents") as directory:
        splits = {
            split: _write([made[number] for made in sides], directory / split)
            for number, split in enumerate(("train", "validation"))
        }
        if found.rejected.bad:
            _write_rejected(found.records, directory / "rejected.jsonl")
        manifest = DocumentManifest(
            splits=splits,
            sources=tuple(
                SourceRecord(
                    name=source.name,
                    sha256=sha256,
                    documents=_sum(f"documents {source.name}", found.read),
                    bytes=_sum(f"bytes {source.name}", found.read),
                )
                for source, sha256 in found.sources.items()
            ),
            dropped={fate: count for fate, count in sorted(fates.items()) if fate != KEPT},
            rejected=found.rejected.bad,
        )
        save_manifest(manifest, directory)
        save_card(describe(config, found, manifest), directory)
    work.sweep()
    if found.rejected.bad:
        left_out = found.rejected.bad - sum(part.rows for part in found.records)
        unlisted = f", where {left_out:,} of them are not listed" if left_out else ""
        say(f"{found.rejected.bad:,} records set aside, see {run.directory / 'documents' / 'rejected.jsonl'}{unlisted}")
    early = [name.removeprefix(ENDED_EARLY) for name in sorted(found.rejected.notes) if name.startswith(ENDED_EARLY)]
    if early:
        more = f" and {len(early) - SHOWN_FILES:,} more" if len(early) > SHOWN_FILES else ""
        say(
            f"{len(early):,} of {len(found.sources):,} files ended early, and what followed in them is lost: "
            f"{', '.join(early[:SHOWN_FILES])}{more}; why is told in {run.directory / 'documents' / 'rejected.jsonl'}"
        )
    for decision, times in sorted(found.rejected.notes.items()):
        if not decision.startswith(ENDED_EARLY):
            say(f"{times:,} × {decision}")
    return {
        "documents": sum(split.documents for split in splits.values()),
        **{f"{name}_documents": split.documents for name, split in splits.items()},
        "bytes": sum(split.bytes for split in splits.values()),
        "duplicates": fates[DUPLICATE] + fates[NEAR_DUPLICATE],
        "too_short": fates[TOO_SHORT],
        "dropped": fates.total() - fates[KEPT],
        "rejected": manifest.rejected,
    }


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
