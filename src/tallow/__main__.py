"""Where the command line begins, as `tallow` and as `python -m tallow`."""

from __future__ import annotations

import os
import signal

from tallow.startup import ARROW_MEMORY


def main() -> None:
    """Entry point. Ctrl-C is held back until the command line, which takes a while to import, can answer it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update({**ARROW_MEMORY, **os.environ})
    from tallow.cli import main

    main()


if __name__ == "__main__":
    main()
