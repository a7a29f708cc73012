"""A process that performs tasks: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import json
import os
import sys
import traceback

from tallow.data.work.step import Task
from tallow.errors import TallowError


def answer(task: str) -> str:
    """Perform a task; what went wrong, if anything did, as JSON."""
    try:
        Task.from_json(json.loads(task)).perform()
    except TallowError as error:
        return json.dumps(error.as_json())
    except Exception:
        return json.dumps({"bug": traceback.format_exc()})
    return "{}"


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for line in sys.stdin:
        answers.write(answer(line) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
