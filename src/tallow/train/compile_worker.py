"""Compiles a layer for another process, which trains: started by `compile_process.py`, and ends with that one.

It takes the way that training takes, on zeros, so that what PyTorch keeps on disk is just what training will ask for.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import torch
from torch import Tensor, nn

from tallow.data.batch import Packed
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.blocks.context import SequenceContext
from tallow.models.skeletons import build
from tallow.objectives.causal import causal
from tallow.parallel.compiled_layers import CompiledLayers
from tallow.train.compile_process import LayerJob
from tallow.train.float8 import use_float8
from tallow.train.precision import autocast

NICENESS = 10
"""Training goes first."""


def main() -> None:
    """Read a job from standard input, do it, and print the seconds that it took."""
    start = time.perf_counter()
    job = LayerJob.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICENESS)
    torch.set_num_threads(job.threads)
    compile_layer(job)
    print(time.perf_counter() - start, flush=True)


def compile_layer(job: LayerJob) -> None:
    """Let the first layer of a model compute forward and backward in its compiled form."""
    device = torch.device(job.device)
    with torch.device("meta"):
        model = build(job.shape)
    if job.precision == "float8":
        use_float8(model, device, processes=1)
    layer = model.layers[0].to_empty(device=device)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    CompiledLayers([layer], any_rows=job.any_rows).begin()
    x_BTD = torch.zeros(job.rows, job.tokens, job.shape.hidden_size, device=device, requires_grad=True)
    with autocast(job.precision, device):
        out_BTD: Tensor = model.through(x_BTD, _context(job, device), range(1))
        out_BTD.backward(torch.zeros_like(out_BTD))


def _context(job: LayerJob, device: torch.device) -> SequenceContext | BidirectionalContext:
    tokens_BT = torch.zeros(job.rows, job.tokens + 1, dtype=torch.int64)
    packed = Packed(tokens_BT, tokens_BT.int(), tokens_BT.bool())
    positions_BT = causal(packed).context.positions_BT
    kind = SequenceContext if job.decoder is not None else BidirectionalContext
    return kind(positions_BT).to(device)


def _end_with_parent() -> None:
    sys.stdin.read()  # returns when nobody can write any more
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
