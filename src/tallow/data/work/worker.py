"""A process that performs tasks: lines of JSON in, lines of JSON out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from contextlib import suppress
from threading import Thread

from tallow.data.work.step import Task
from tallow.errors import TallowError
from tallow.kernels.memory import returning_freed_memory


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
    """Perform tasks in as many threads as there are pairs of file descriptors in the arguments: in and out."""
    os.dup2(2, 1)  # whatever a library prints is no answer
    ends = [int(end) for end in sys.argv[1:]]
    threads = [Thread(target=_serve, args=pair) for pair in zip(ends[::2], ends[1::2], strict=True)]
    with returning_freed_memory():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _serve(tasks: int, answers: int) -> None:
    with suppress(BrokenPipeError), open(tasks, encoding="utf-8") as lines, open(answers, "w", encoding="utf-8") as out:
        for line in lines:
            out.write(answer(line) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
