"""When the layers of a run go over to the form that `torch.compile` makes of them, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tallow.console import say
from tallow.data.batch import Packed
from tallow.errors import TallowError
from tallow.parallel import Layout
from tallow.run import Ledger
from tallow.train.compile_process import CompileProcess, layer_job
from tallow.train.config import LoopConfig
from tallow.train.precision import Precision

if TYPE_CHECKING:
    from tallow.parallel.compiled_layers import CompiledLayers


class Compilation:
    """The layers' way from their plain form to the compiled one, if the settings want it.

    Args:
        layout: Of the model, whose layers do not recompute yet.
        config: What is wanted.
        batches: This process's micro-batches of a step, counted from 0.
        steps: Of the run.
        ledger: Where the cost is added.

    Raises:
        UsageError: There is no compiler.
    """

    def __init__(
        self,
        layout: Layout,
        config: LoopConfig,
        batches: Callable[[int], Sequence[Packed]],
        steps: int,
        ledger: Ledger,
    ) -> None:
        self.layout, self.config, self.ledger = layout, config, ledger
        self._layers: CompiledLayers | None = None
        self._process: CompileProcess | None = None
        self._rehearse: Callable[[], object] = lambda: None
        self._costs: dict[str, float] = {}
        if config.compile != "none":
            # slow to import: it brings PyTorch's compiler with it
            from tallow.parallel.compiled_layers import CompiledLayers, require_compiler

            require_compiler(layout.device)
            sizes = {len(packed.tokens_BT) for step in (0, steps - 1) for packed in batches(step)}
            self._layers = CompiledLayers(layout.layers, any_rows=len(sizes) > 1)

    @property
    def done(self) -> bool:
        """Whether the layers compute in their compiled form."""
        return self._layers is not None and self._layers.active

    def look(self) -> bool:
        """See whether another process has compiled what this one needs, so that `take_up` takes seconds."""
        process = self._process
        if process is None or process.running:
            return False
        if failure := process.failure:
            self._process = None
            process.close()
            say(f"training goes on without compiled layers: the process that was to compile them {failure}")
        return not failure

    @contextmanager
    def going_on(
        self, packed: Packed, rehearse: Callable[[Packed, Precision], object], precision: Precision, *, begun: bool
    ) -> Iterator[None]:
        """Compile at once, or within this block in the background; after it, the layers are plain again.

        All processes must call it.

        Args:
            packed: The run's first micro-batch.
            rehearse: The forward and backward pass of a micro-batch, without effect.
            precision: In which the run computes.
            begun: The layers of the run that goes on were compiled already.

        Raises:
            TallowError: PyTorch fails to compile them.
            UsageError: Another process could not make them from the model's shape.
        """
        if self._layers is None:
            yield
            return
        self._rehearse = lambda: rehearse(packed, precision)
        try:
            if self.config.compile == "ahead" or begun:
                say("compiling the layers, which training waits for")
                self._compile()
                say(f"the layers are compiled, which took {self._costs['compile_s']:.1f} s")
            else:
                job = layer_job(self.layout, packed, precision, self.config, any_rows=self._layers.any_rows)
                self._process = CompileProcess(job)
            yield
        finally:
            if self._process is not None:
                self._process.close()
            self._layers.forget()

    def take_up(self, step: int) -> None:
        """Go over to the form that another process has compiled, after a step. All processes must call it."""
        assert self._process is not None
        seconds = self._process.seconds
        self._process.close()
        self._process = None
        self._compile()
        self._costs["background_compile_s"] = round(seconds, 2)
        say(
            f"from step {step + 1:,} on the layers are compiled, which took {seconds:.1f} s in the background; "
            f"training waited for {self._costs['compile_s']:.1f} s"
        )

    def read(self) -> dict[str, float]:
        """What was spent since this was last asked: `compile_s`, in which training waited, and in which it did not,
        `background_compile_s`."""
        costs, self._costs = self._costs, {}
        return costs

    def _compile(self) -> None:
        from torch._dynamo.exc import TorchDynamoException

        assert self._layers is not None
        start = time.perf_counter()
        self._layers.begin()
        try:
            self._rehearse()
        except TorchDynamoException as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise TallowError(f"PyTorch could not compile the layers: {reason}", "set loop.compile to none") from error
        seconds = time.perf_counter() - start
        self._costs["compile_s"] = round(seconds, 2)
        self.ledger.compile_s += seconds
