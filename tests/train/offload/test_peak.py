"""How much memory is spared, in processes of their own."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from tests.processes import start
from tests.train.toys import loop_config, markov_batches

from tallow.files import read_json, write_json
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.objectives.causal import causal
from tallow.parallel import Layout
from tallow.run import forget_peak_rss, peak_rss_bytes
from tallow.train.checkpoint import Checkpoints
from tallow.train.counters import Counters
from tallow.train.offload import windows
from tallow.train.update import Updater

M_MMAP_THRESHOLD = -3
SHAPE = {"vocab_size": 8, "hidden_size": 256, "num_layers": 8, "num_heads": 2, "num_kv_heads": 2}
WEIGHTS = 8 * (4 * 256**2 + 3 * 256 * 1024)


def work(directory: Path, name: str, offload: dict[str, Any]) -> None:
    """Note the peaks of the second update, and of going on from its checkpoint."""
    torch.set_num_threads(1)
    windows.WINDOW_BYTES = 2 << 20
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # what is given back leaves the process at once
    model = Decoder(DecoderConfig.model_validate({**SHAPE, "intermediate_size": 1024}))
    initialize(model, 0)
    config, layout = loop_config(batch_size=1, offload=offload), Layout(model)
    updater, batches = Updater(layout, causal, config, directory), markov_batches(config)
    updater.update(1, batches(0), 1e-3, "fp32")
    forget_peak_rss()
    updater.update(2, batches(1), 1e-3, "fp32")
    update = peak_rss_bytes()
    checkpoints = Checkpoints(directory / name, updater.parameters, updater.optimizer, {}, 1, layout.mesh)
    checkpoints.begin(2, Counters())
    checkpoints.finish()
    forget_peak_rss()
    assert checkpoints.restore() == (2, Counters())
    write_json(directory / f"{name}.json", {"update": update, "restoration": peak_rss_bytes()})


def test_state_and_weights_leave_memory(tmp_path: Path) -> None:
    ways = {"plain": {}, "disk": {"state": "disk", "parameters": "disk"}}
    for name, offload in ways.items():
        process = start(work, tmp_path, name, offload)
        process.join(timeout=120)
        assert process.exitcode == 0
    peaks = {name: read_json(tmp_path / f"{name}.json") for name in ways}
    spared = {what: peaks["plain"][what] - peaks["disk"][what] for what in peaks["plain"]}
    # all but two windows and three of the eight layers; going on has the state once more in memory, if not on disk
    assert spared["update"] > 0.85 * 8 * WEIGHTS + 5 / 8 * 4 * WEIGHTS
    assert spared["restoration"] > 8 * WEIGHTS
