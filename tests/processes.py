"""Processes that tests start and kill."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess


def start(work: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Run `work` in a process of its own, forked from one that has imported torch and never used it: quick and clean.

    `work` is a function of a module.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tallow.train.pretrain",
            "tests.train.toys",
            "torch.distributed.pipelining",
            "tallow.cli",
            "tallow.data.prepare",
            "tallow.data.examine",
            "tallow.report.page",
            "tallow.report.plots",
            "tallow.tokenizer.train",
            "tallow.serve.server",
            "tallow.serve.worker",
        ]
    )  # (slow to import)
    process = context.Process(target=work, args=arguments, daemon=True)
    process.start()
    return process
