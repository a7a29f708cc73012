"""What has become of the documents, in numbers, and some of them to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tallow.data.edits import make_edits
from tallow.data.privacy.config import PrivacyConfig
from tallow.data.privacy.scrub import scrub
from tallow.data.steps.judge import LANGUAGE
from tallow.data.steps.left import BYTES_LEFT
from tallow.data.steps.measure import PrivacyStep
from tallow.data.steps.tables import edits_of, kept, known_columns, words
from tallow.data.work.step import Made, Step
from tallow.recipe import Section

KEPT = "kept"
GROUPS = pa.schema(
    [
        ("fate", pa.string()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("documents", pa.int64()),
        ("bytes", pa.int64()),
        ("left", pa.int64()),
    ]
)
"""How many documents of each source and language have come to what; `fate` is what has dropped them, or `kept`. `bytes`
are those that were read, `left` those when lines are dropped and all edits are made."""

SAMPLES = pa.schema(
    [("fate", pa.string()), ("rank", pa.uint64()), ("id", pa.string()), ("source", pa.string()), ("offset", pa.int64()),
     ("text", pa.string()), ("columns", pa.string())]
)  # fmt: skip
"""Some documents of each fate, those with the smallest `rank`; `columns` is a JSON object of what is known of each."""


class TallyConfig(Section):
    """Of each fate so many documents are taken as samples, chosen by this seed and their ids alone.

    Args:
        lines: Whether lines were dropped first, so that what was read is another table.
        edits: So many tables, the last ones, tell what is done to texts that are kept.
        privacy: What is replaced in samples of what was dropped.
        samples: How many.
        seed: Another one gives other samples.
        chars: Of each text so much is shown.
    """

    lines: bool = False
    edits: int = 0
    privacy: PrivacyStep | None = None
    samples: int = 5
    seed: int = 0
    chars: int = 600


def _tally(config: TallyConfig, tables: Sequence[pa.Table]) -> Iterator[Made]:
    """From documents, verdicts, with `lines` documents as they were read, all columns, and edits: `GROUPS`; `SAMPLES`.

    Counts with `GROUPS`: `<fate>`, the documents of each; `private <kind>`, what is found in those that are kept; and
    the smallest and the largest digest of these.
    """
    documents, verdicts, *beside = tables
    read = beside.pop(0) if config.lines else documents
    edits = [edits_of(beside.pop()) for _ in range(config.edits)][::-1]
    fates = verdicts["dropped_by"].fill_null(KEPT).combine_chunks()
    columns = known_columns(beside)
    languages = columns.get(LANGUAGE, pa.nulls(documents.num_rows, pa.string()))
    sizes, unedited = (pc.call_function("binary_length", [t["text"]]).cast(pa.int64()) for t in (read, documents))
    left = columns.get(BYTES_LEFT, unedited)
    names = ["fate", "source", "language", "bytes", "left"]
    table = pa.table([fates, documents["source"], languages, sizes, left], names=names)
    groups = table.group_by(["fate", "source", "language"], use_threads=False).aggregate(
        [("bytes", "count"), ("bytes", "sum"), ("left", "sum")]
    )
    order = ["fate", "source", "language", "bytes_count", "bytes_sum", "left_sum"]
    yield Made(pa.table(groups.select(order).columns, schema=GROUPS), _counts(documents, verdicts, columns))
    yield Made(_samples(config, documents, read, fates, columns, edits))


def _counts(documents: pa.Table, verdicts: pa.Table, columns: dict[str, Any]) -> Counter[str]:
    stay = kept(verdicts)
    counts: Counter[str] = Counter(reason or KEPT for reason in verdicts["dropped_by"].to_pylist())
    for name, column in columns.items():
        if name.startswith("privacy."):
            counts[f"private {name.removeprefix('privacy.')}"] = int(column.to_numpy()[stay].sum())
    digests = words(documents["digest"])[stay]
    if len(digests):
        order = np.lexsort(digests.T[::-1])
        for name, place in (("smallest", 0), ("largest", -1)):
            high, low = digests[order[place]].tolist()
            counts[name] = high << 64 | low
    return counts


def _samples(
    config: TallyConfig,
    documents: pa.Table,
    read: pa.Table,
    fates: pa.StringArray,
    columns: dict[str, Any],
    edits: Sequence[pa.ListArray],
) -> pa.Table:
    """Samples: what is kept as it is written, the rest as it was read, but for what is private."""
    order = ranks(words(documents["id"])[:, 0], config.seed)
    privacy = config.privacy.settings if config.privacy is not None else None
    rows: list[dict[str, Any]] = []
    for fate in sorted(fates.unique().to_pylist()):
        among = np.flatnonzero(pc.call_function("equal", [fates, fate]).to_numpy(zero_copy_only=False))
        for row in among[np.argsort(order[among], kind="stable")][: config.samples].tolist():
            document = (documents if fate == KEPT else read).slice(row, 1).to_pylist()[0]
            beside = [each.slice(row, 1) for each in edits]
            text = shown(document["text"], beside if fate == KEPT else None, privacy)
            known = {name: plain(column[row].as_py()) for name, column in columns.items()}
            rows.append(
                {
                    "fate": fate,
                    "rank": order[row],
                    "id": document["id"].hex(),
                    "source": document["source"],
                    "offset": document["offset"],
                    "text": text[: config.chars],
                    "columns": json.dumps(known, ensure_ascii=False),
                }
            )
    return pa.Table.from_pylist(rows, SAMPLES)


def shown(text: str, edits: Sequence[pa.ListArray] | None, privacy: PrivacyConfig | None) -> str:
    """A text that others may see.

    Args:
        text: One that is kept, or as it was read.
        edits: All those of the one that is kept; None: it was dropped, so only what is private is replaced.
        privacy: What that is.
    """
    if edits is not None:
        [text] = make_edits(pa.array([text]), edits).to_pylist()
    elif privacy is not None:
        [text] = scrub(pa.array([text]), privacy).texts.to_pylist()
    return text


def ranks(ids: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.uint64]:
    """What the first words of ids are ordered by, in an order of each seed's own.

    The finalizer of SplitMix64 (Steele et al. 2014); products wrap on purpose.
    """
    mixed = ids ^ (np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(27))


def plain(value: Any) -> Any:
    """A value of a column as JSON has it, and short."""
    if isinstance(value, bytes):
        return value.hex()
    return round(value, 4) if isinstance(value, float) else value


TALLY = Step(f"{__name__}:TALLY", 5, TallyConfig, _tally)
