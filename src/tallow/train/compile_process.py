"""The process that compiles a layer in the background, as the process that trains sees it.

It compiles a layer of the same shape for inputs of the same shape. What comes of that lies in PyTorch's cache on disk
(`TORCHINDUCTOR_CACHE_DIR`), where the process that trains finds it when it compiles the same. Between the two goes JSON
alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

import torch
from torch import nn

from tallow.data.batch import Packed
from tallow.errors import CapacityError, UsageError
from tallow.kernels.threads import num_threads
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.skeletons import Model, ModelConfig, build
from tallow.parallel import Layout
from tallow.recipe import Section
from tallow.train.config import LoopConfig
from tallow.train.precision import Precision


class LayerJob(Section):
    """A layer to compile.

    Args:
        decoder: Of a decoder of this shape, or
        encoder: of an encoder.
        precision: In which it computes.
        device: Where.
        threads: With how many, on a CPU.
        rows: Of its input.
        tokens: Of each of them.
        any_rows: It is to take other numbers of rows, too.
    """

    decoder: DecoderConfig | None
    encoder: EncoderConfig | None
    precision: Precision
    device: str
    threads: int
    rows: int
    tokens: int
    any_rows: bool

    @property
    def shape(self) -> ModelConfig:
        """Of the model."""
        shape = self.decoder or self.encoder
        assert shape is not None
        return shape


def layer_job(layout: Layout, packed: Packed, precision: Precision, config: LoopConfig, *, any_rows: bool) -> LayerJob:
    """The job of compiling a layer of this layout's model.

    Raises:
        UsageError: The layers are not those that the model's shape describes.
    """
    model = layout.model
    assert isinstance(model, Model)
    with torch.device("meta"):
        described = build(model.config)
    if _parameters(model.layers[0]) != _parameters(described.layers[0]):
        raise UsageError(
            "loop.compile background compiles layers as the model's shape describes them, with all their weights, but "
            "those that are trained here are others",
            "set loop.compile to ahead",
        )
    return LayerJob(
        decoder=model.config if isinstance(model.config, DecoderConfig) else None,
        encoder=model.config if isinstance(model.config, EncoderConfig) else None,
        precision=precision,
        device=str(layout.device),
        threads=num_threads(),
        rows=len(packed.tokens_BT),
        tokens=(packed.tokens_BT.shape[1] - 1) // config.parallel.context,
        any_rows=any_rows,
    )


def _parameters(layer: nn.Module) -> dict[str, tuple[torch.Size, bool]]:
    return {name: (value.shape, value.requires_grad) for name, value in layer.named_parameters()}


class CompileProcess:
    """A process that compiles a layer; it ends when it has, or with this one.

    Args:
        job: What it compiles.

    Raises:
        CapacityError: No process can be started.
    """

    def __init__(self, job: LayerJob) -> None:
        # a file takes however much it says; `close` closes it
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tallow.train.compile_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
                start_new_session=True,  # so that compilers it has started can be ended with it
            )
        except OSError as error:
            raise CapacityError(f"no process can be started: {error.strerror}", "end some others") from error
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(job.model_dump_json() + "\n")
            self._process.stdin.flush()

    @property
    def running(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None

    @property
    def failure(self) -> str:
        """How a process ended that has not compiled the layer; empty if it has."""
        code = self._process.returncode
        if code == 0:
            return ""
        if code < 0:
            return f"was ended by the signal {signal.Signals(-code).name}"
        self._errors.seek(0)
        return "failed: " + (self._errors.read().strip().splitlines() or ["it does not say why"])[-1]

    @property
    def seconds(self) -> float:
        """What the process that has ended took."""
        assert self._process.stdout is not None
        return float(self._process.stdout.read())

    def close(self) -> None:
        """End it, whatever it does."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()
