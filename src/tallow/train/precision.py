"""Which precision a model trains fastest in here, found by timing its own step, and what the step computes.

Weights, gradients, optimizer state and the residual stream are fp32 always; `bf16` means that matrix products
and attention read and write bfloat16 (autocast), `fp16` likewise, with a scaled loss; with `float8` it is as with
`bf16`, save what linear layers do themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from tallow.data.batch import Packed
from tallow.errors import DataError
from tallow.files import read_json, write_json
from tallow.kernels.cpu import causal_attention
from tallow.parallel import ALONE, Layout, World
from tallow.recipe import Section

Precision = Literal["fp32", "bf16", "fp16", "float8"]

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float8": torch.bfloat16,
}
# half the bits round to 8 or 11, so they must be worth it
MIN_SPEEDUP = 1.1
# a speed-up this many times larger or smaller than that leaves no doubt
CLEAR_RATIO = 1.15
# times that differ less are the same
SAME_RATIO = 1.05
MIN_ROUNDS = 7
PROBE_SECONDS = 3.0


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which a model computes in this precision."""
    dtype = DTYPES[precision] if precision != "fp32" else None
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "fp32")


def half_precision(device: torch.device) -> Precision:
    """What `auto` chooses from beside fp32: bf16, which needs no scaling of the loss, where the device has it."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16"
    return "bf16"


class Workload(Section):
    """What a step is like here.

    Args:
        precision: What it computes in.
        flops_per_token: Floating-point operations of its matrix products, forward and backward, on all processes.
        seconds: What one sequence took in each precision that was tried.
    """

    precision: Precision
    flops_per_token: float
    seconds: dict[str, float]

    @property
    def reason(self) -> str:
        """Why this precision, in a few words."""
        return "; ".join(f"a sequence takes {value:.3g} s in {precision}" for precision, value in self.seconds.items())


def settle_workload(
    wanted: Precision | Literal["auto"],
    rehearse: Callable[[Packed, Precision], object],
    packed: Packed,
    path: Path,
    layout: Layout,
) -> Workload:
    """Measure what the first sequence of `packed` takes and note it in a file, or read what is noted there.

    So a run that goes on uses the precision that it began with, however fast the machine is by then. All processes
    must call it; the main one's times and file count.
    """
    world = layout.workers.everyone
    noted = _read(path)
    known = noted is not None and wanted in ("auto", noted.precision)
    half = half_precision(layout.device)
    if noted is None or not world.agree(known):
        rows = packed.first_rows(layout.config.pipeline)  # so that a pipeline, too, computes no padding
        [flops] = layout.world.sum(count_flops(lambda: rehearse(rows, "fp32")))
        [tokens] = layout.mesh.data.sum(rows.tokens_BT[:, 1:].numel())
        times = time_precisions(lambda precision: rehearse(rows, precision), world, half) if wanted == "auto" else {}
        noted = Workload(
            precision=faster(times, half) if wanted == "auto" else wanted,
            flops_per_token=flops / tokens,
            seconds={precision: value / len(rows.tokens_BT) for precision, value in times.items()},
        )
    if wanted == "auto":  # which the processes may have measured otherwise
        noted = noted.model_copy(update={"precision": "fp32" if world.agree(noted.precision == "fp32") else half})
    if world.is_main:
        write_json(path, noted.model_dump())
    return noted


def time_precisions(
    work: Callable[[Precision], object], world: World = ALONE, half: Precision = "bf16"
) -> dict[str, float]:
    """Seconds that `work` takes in fp32 and in half the bits.

    The two take turns, so that a change of the machine's load meets both, and of each the fastest run counts, since
    other work only slows it. While the answer is in doubt there are more turns, for at most `PROBE_SECONDS` (and one
    turn more).
    """
    deadline = time.perf_counter() + PROBE_SECONDS
    rounds = [_time_each(work, half)]
    if world.agree(time.perf_counter() < deadline):
        rounds = [_time_each(work, half)]  # else it is so slow that what the first run has to allocate is nothing to it
    while world.agree(time.perf_counter() < deadline and not _is_clear(rounds)):
        rounds.append(_time_each(work, half))
    return _fastest(rounds)


def _time_each(work: Callable[[Precision], object], half: Precision) -> dict[str, float]:
    seconds: dict[str, float] = {}
    precisions: tuple[Precision, ...] = ("fp32", half)
    for precision in precisions:
        start = time.perf_counter()
        work(precision)  # on a GPU, too, it ends when its loss is known
        seconds[precision] = time.perf_counter() - start
    return seconds


def _fastest(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {precision: min(seconds[precision] for seconds in rounds) for precision in rounds[0]}


def _is_clear(rounds: Sequence[Mapping[str, float]]) -> bool:
    """Whether each precision has come to its fastest time twice, and the speed-up is far from the one asked for."""
    if len(rounds) < MIN_ROUNDS:
        return False
    for precision in rounds[0]:
        fastest, second, *_ = sorted(seconds[precision] for seconds in rounds)
        if second > fastest * SAME_RATIO:
            return False
    whole, half = _fastest(rounds).values()
    speedup = whole / half
    return not MIN_SPEEDUP / CLEAR_RATIO < speedup < MIN_SPEEDUP * CLEAR_RATIO


def faster(seconds: Mapping[str, float], half: Precision = "bf16") -> Precision:
    """The precision to take after these times."""
    return half if seconds[half] * MIN_SPEEDUP < seconds["fp32"] else "fp32"


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products in `work`, counted as it runs."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        # operations of single modules are not asked for, and the hooks that tell these apart cannot stand a backward
        # pass to a module's input alone, which the schedule zero_bubble does
        counter.mod_tracker.__exit__(None, None, None)
        work()
    return counter.get_total_flops()


def _read(path: Path) -> Workload | None:
    try:
        return Workload.model_validate(read_json(path, "workload")) if path.exists() else None
    except (DataError, ValidationError):  # it is only a note: what it says can be measured again
        return None


def _attention_formula(operation: Any, products: int) -> Callable[..., int]:
    """The operations of one kind of attention, from the shapes of what it is given.

    Args:
        products: Of matrices as large as the scores.
    """
    names = [argument.name for argument in operation.default._schema.arguments]

    def formula(*arguments: Any, **named: Any) -> int:
        given = {**dict(zip(names, arguments, strict=False)), **named}
        batch, heads, queries, head_size = given["query"]
        flops = products * 2 * batch * heads * queries * given["key"][2] * head_size
        causal = given.get("is_causal", "is_causal" not in names)
        return flops // 2 if causal else flops  # the hidden half is not computed

    return formula


_aten = torch.ops.aten
# torch does not count that of CPUs, and counts the hidden half of that of GPUs
_ATTENTION = {
    operation: _attention_formula(operation, products)
    for products, operations in (
        (
            2,
            (
                _aten._scaled_dot_product_flash_attention_for_cpu,
                _aten._scaled_dot_product_flash_attention,
                _aten._scaled_dot_product_efficient_attention,
                _aten._scaled_dot_product_cudnn_attention,
                causal_attention.operators().causal_attention,
            ),
        ),
        (
            5,
            (
                _aten._scaled_dot_product_flash_attention_for_cpu_backward,
                _aten._scaled_dot_product_flash_attention_backward,
                _aten._scaled_dot_product_efficient_attention_backward,
                _aten._scaled_dot_product_cudnn_attention_backward,
                causal_attention.operators().causal_attention_backward,
            ),
        ),
    )
    for operation in operations
}
