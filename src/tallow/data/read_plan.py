"""Which pieces of which sources are read by which task."""

from __future__ import annotations

from collections.abc import Mapping

from tallow.data.config import PrepareConfig
from tallow.data.groups import grouped
from tallow.data.read import Piece, ReadSettings, cut
from tallow.data.sources import Source
from tallow.data.steps.read import FilePiece, ReadConfig


def plan_reading(config: PrepareConfig, sources: Mapping[Source, str]) -> tuple[ReadConfig, ...]:
    """What each task reads: pieces of sources, together about as long as a part.

    Args:
        config: The settings.
        sources: What is read, and its SHA-256.
    """
    settings = {name: getattr(config, name) for name in ReadSettings.model_fields}
    return tuple(
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
        for group in grouped(cut(sources, config, config.part_bytes), _length, config.part_bytes)
    )


def _length(piece: Piece) -> int:
    return (piece.source.path.stat().st_size if piece.end is None else piece.end) - piece.begin
