"""`anomalies.jsonl`: batches left out of a run, with their rows, and when a checkpoint was taken up again."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from tallow.console import say
from tallow.errors import writing
from tallow.files import atomic_file, read_records

ANOMALIES = "anomalies.jsonl"


class AnomalyLog:
    """The file in a run directory; each line is an object with the `step`, and `action`, which is one of three.

    `skipped`: `reason`, `loss` and `gradient_norm` (null where they are not finite) and `rows`, the numbers of the
    batch's rows (see `TokenDataset`), empty where they have none. `learned`: likewise, where an optimizer that keeps no
    gradients had learned the batch by then. `rolled back`: `to`, the step of the checkpoint, and `avoided`, the first
    and the last of the steps that are left out from then on.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ANOMALIES

    def bad(self, step: int, reason: str, loss: float, norm: float, rows: Sequence[int], *, learned: bool) -> None:
        numbers = {"loss": _finite(loss), "gradient_norm": _finite(norm), "rows": list(rows)}
        self._append({"step": step, "action": "learned" if learned else "skipped", "reason": reason, **numbers})

    def rolled_back(self, step: int, to: int, first: int) -> None:
        self._append({"step": step, "action": "rolled back", "to": to, "avoided": [first, step]})

    def read(self) -> list[dict[str, Any]]:
        """All whole records, oldest first."""
        return [record for record in read_records(self.path)[0] if "step" in record]

    def rewind(self, step: int, avoided: Collection[int]) -> None:
        """Drop what was noted after `step`, for a resumed run finds it again, unless it leaves these steps out."""
        if not self.path.exists():
            return
        whole, (records, damaged) = self.read(), read_records(self.path)
        damaged += len(records) - len(whole)
        if damaged:
            say(f"passed over {damaged:,} damaged lines of {self.path}")
        kept = [record for record in whole if record["step"] <= step or record["step"] in avoided]
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def _append(self, record: dict[str, Any]) -> None:
        with writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
