"""What a run of the stage prepare leaves for those who ask about it later, when its sources may be gone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tallow.data.config import PrepareConfig
from tallow.data.drops import Drop, drop_table
from tallow.data.examine import Examined
from tallow.data.inputs import Input, Inputs
from tallow.data.steps.read import ReadConfig
from tallow.data.steps.tally import KEPT
from tallow.recipe import Section

RECORD = "examined"


class Figures(Section):
    """What came of all documents.

    Args:
        drops: What dropped them, in the order in which it was asked.
        documents, bytes: Of what is kept.
    """

    drops: tuple[Drop, ...]
    documents: int
    bytes: int

    @classmethod
    def of(cls, found: Examined) -> Figures:
        rows = [row for row in found.groups().to_pylist() if row["fate"] == KEPT]
        return cls(
            drops=tuple(drop_table(found)),
            documents=sum(row["documents"] for row in rows),
            bytes=sum(row["left"] for row in rows),
        )


class PrepareRecord(Section):
    """`work/examined.json`.

    Args:
        settings: Those that count for the result.
        sources: The files that were read.
        reads: How: the work of the step read.
        inputs: Other files and models, as `Inputs` knows them.
        figures: What came of it.
    """

    settings: dict[str, Any]
    sources: tuple[Input, ...]
    reads: tuple[ReadConfig, ...]
    inputs: dict[str, tuple[Input, ...]]
    figures: Figures

    @classmethod
    def of(cls, config: PrepareConfig, found: Examined, inputs: Inputs) -> PrepareRecord:
        """Of documents that have just been examined."""
        sources = (Input.of(source.name, source.path, sha256) for source, sha256 in found.sources.items())
        return cls(
            settings=config.result_settings(),
            sources=tuple(sources),
            reads=found.reads,
            inputs=inputs.known,
            figures=Figures.of(found),
        )

    def changed(self) -> list[str]:
        """The names of the files and models that hold something else now, or are gone."""
        everything: Iterable[Input] = (*self.sources, *(each for known in self.inputs.values() for each in known))
        return list(dict.fromkeys(each.name for each in everything if each.changed()))
