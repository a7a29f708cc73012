"""Speed of generating and training, beside what the machine could do at most."""

from __future__ import annotations

import random
import statistics
import time
from typing import TYPE_CHECKING, Any, Literal

from tallow.engine.blocks import BLOCK_TOKENS
from tallow.engine.choices import CachePrecision, Device, Precision
from tallow.engine.engine import Engine
from tallow.engine.language_model import load
from tallow.engine.request import RequestState, SamplingParams
from tallow.engine.runner import Runner
from tallow.errors import UsageError
from tallow.kernels.memory import keeping_freed_memory
from tallow.kernels.probe import matmul_peak, read_bandwidth
from tallow.models.store import resolve
from tallow.run import peak_rss_bytes
from tallow.startup import Moment, exempt_from_collection

if TYPE_CHECKING:
    from tallow.data.batch import Packed
    from tallow.parallel import Layout
    from tallow.parallel.compiled_layers import CompiledLayers

REPEATS = 3
TrainPrecision = Literal["bf16", "fp32", "fp16", "float8"]


def infer(
    name: str,
    precision: Precision = "auto",
    batch: int = 1,
    prompt_tokens: int = 512,
    new_tokens: int = 64,
    device: Device = "auto",
    cache_precision: CachePrecision = "auto",
    *,
    imported: Moment | None = None,
) -> dict[str, Any]:
    """Time prefill and decode on random prompts; medians of three runs after one to warm up.

    Args:
        imported: When all that is imported in any case had been, if that was noted.

    Returns:
        `ready_s`: from the start of the process to the first token of a short prompt; `ready_after_imports_s`: the
        part of it after `imported`; `prefill_tokens_per_s`; `decode_tokens_per_s`, all sequences together;
        `model_bytes`; `achieved_gb_s`: weights read a second while decoding, each once a step; `bandwidth_gb_s`: what
        the memory of the machine, or of its GPU, gives; their ratio; `peak_rss_mb`; `cache_mb`: the key-value
        cache, which has room for these sequences; `overhead_mb`: the peak without weights and cache; `imports_rss_mb`:
        what of that there was at `imported`.

    Raises:
        UsageError: A number is not positive, the sequences do not fit into the model's context, or `load` refuses.
    """
    if min(batch, prompt_tokens) < 1 or new_tokens < 2:
        raise UsageError("batch and prompt tokens must be at least 1, new tokens at least 2", "raise them")
    loaded = load(name, precision, device=device, cache_precision=cache_precision)
    exempt_from_collection()
    loaded.generate([0], SamplingParams(max_new_tokens=1))
    ready_s = Moment.now().age_s
    prompts = [
        [random.Random(row).randrange(loaded.config.vocab_size) for _ in range(prompt_tokens)] for row in range(batch)
    ]
    engine = engine_for(loaded.engine.runner, batch, prompt_tokens + new_tokens)
    timings = [time_generation(engine, prompts, new_tokens) for _ in range(1 + REPEATS)][1:]
    prefill_s, decode_s, decoded = (statistics.median(column) for column in zip(*timings, strict=True))
    peak = peak_rss_bytes()  # before the bandwidth is measured, which takes memory of its own
    weights, bandwidth = loaded.weight_bytes, read_bandwidth(engine.runner.device)
    achieved = weights * (decoded / batch) / decode_s
    cache = engine.state.num_blocks * engine.runner.block_bytes
    return {
        "ready_s": ready_s,
        "ready_after_imports_s": ready_s - imported.age_s if imported is not None else None,
        "prefill_tokens_per_s": batch * prompt_tokens / prefill_s,
        "decode_tokens_per_s": decoded / decode_s,
        "model_bytes": weights,
        "achieved_gb_s": achieved / 1e9,
        "bandwidth_gb_s": bandwidth / 1e9,
        "bandwidth_fraction": achieved / bandwidth,
        "peak_rss_mb": peak / 1e6,
        "cache_mb": cache / 1e6,
        "overhead_mb": (peak - weights - cache) / 1e6,
        "imports_rss_mb": imported.rss_bytes / 1e6 if imported is not None else None,
    }


def engine_for(runner: Runner, batch: int, num_tokens: int) -> Engine:
    """An engine whose cache has room for so many sequences of so many tokens, and no more.

    All runs after the first use memory that has been used before, as in a server whose cache has filled up.
    """
    blocks = runner.layout.blocks_needed(num_tokens + BLOCK_TOKENS, num_tokens)  # steps may run ahead by a few tokens
    return Engine(runner, None, cache_bytes=batch * blocks * runner.block_bytes)


@keeping_freed_memory()
def train(
    name: str,
    batch: int = 8,
    seq: int = 512,
    steps: int = 5,
    precision: TrainPrecision = "bf16",
    device: Device = "auto",
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """Time whole training steps (forward, backward, AdamW) on random tokens; the median after two to warm up.

    Args:
        compiled: The layers compute in the form that `torch.compile` makes of them.

    Returns:
        `tokens_per_s`; `achieved_flops` a second in matrix products and attention; `matmul_peak_flops`: what a large
        matrix product reaches here in this precision; `mfu`, their ratio; `peak_rss_mb`; `peak_gpu_mb`, 0 on a CPU;
        `compile_s`, by which the first step took longer, 0 if not `compiled`; the last `loss`.

    Raises:
        UsageError: A number is not positive, the sequences do not fit into the model's context, or there is no such
            device, precision or compiler.
    """
    if min(batch, seq, steps) < 1:
        raise UsageError("batch, sequence length and steps must be at least 1", "raise them")
    # what training needs is not part of being ready to generate
    import torch

    from tallow.models.formats import load_model
    from tallow.objectives.causal import causal
    from tallow.parallel import ALONE
    from tallow.train.config import LoopConfig
    from tallow.train.health import PEAK_DTYPES, peak_gpu_bytes
    from tallow.train.placing import lay_out
    from tallow.train.precision import count_flops
    from tallow.train.update import Updater

    model = load_model(resolve(name), dtype=torch.float32)
    if seq > model.config.max_positions:
        raise UsageError(
            f"{seq} tokens do not fit into the model's context of {model.config.max_positions}", "lower --seq"
        )
    config = LoopConfig(precision=precision, device=device)
    layout = lay_out(model, config, ALONE)
    updater = Updater(layout, causal, config)
    packed = random_batch(model.config.vocab_size, batch, seq)
    # of one row: in fp32 all of them may need more memory than there is
    flops = batch * count_flops(lambda: updater.rehearse(packed.first_rows(), "fp32"))
    layers = _compile(layout) if compiled else None
    seconds, loss = [], 0.0
    for step in range(2 + steps):
        start = time.perf_counter()
        loss = updater.update(step, [packed], 1e-5, precision).loss
        if layout.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    step_s = statistics.median(seconds[2:])
    if layers is not None:
        layers.forget()
    gpu_bytes = peak_gpu_bytes(layout.device)  # before the peak of products is measured, which takes memory of its own
    peak = matmul_peak(PEAK_DTYPES[precision], layout.device.type)
    return {
        "tokens_per_s": batch * seq / step_s,
        "achieved_flops": flops / step_s,
        "matmul_peak_flops": peak,
        "mfu": flops / step_s / peak,
        "peak_rss_mb": peak_rss_bytes() / 1e6,
        "peak_gpu_mb": gpu_bytes / 1e6,
        "compile_s": max(0.0, seconds[0] - step_s) if compiled else 0.0,
        "loss": loss,
    }


def _compile(layout: Layout) -> CompiledLayers:
    from tallow.parallel.compiled_layers import CompiledLayers, require_compiler

    require_compiler(layout.device)
    layers = CompiledLayers(layout.layers, any_rows=False)
    layers.begin()
    return layers


def random_batch(vocab_size: int, batch: int, seq: int) -> Packed:
    """Rows of random tokens, each one document."""
    import torch

    from tallow.data.batch import Packed

    tokens_BT = torch.randint(vocab_size, (batch, seq + 1), generator=torch.Generator().manual_seed(0))
    documents_BT = torch.zeros(tokens_BT.shape, dtype=torch.int32)
    return Packed(tokens_BT, documents_BT, torch.ones(tokens_BT.shape, dtype=torch.bool))


def time_generation(engine: Engine, prompts: list[list[int]], new_tokens: int) -> tuple[float, float, int]:
    """Seconds until every prompt has its first token, seconds from there to the end, and tokens made in that time."""
    params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
    salt = object()  # nothing is in the cache from an earlier run
    requests = [engine.submit(prompt, params, cache_salt=salt) for prompt in prompts]
    start = time.perf_counter()
    while any(not request.ids for request in requests):
        engine.step()
    middle = time.perf_counter()
    early = sum(len(request.ids) for request in requests)
    while any(request.state is not RequestState.FINISHED for request in requests):
        engine.step()
    return middle - start, time.perf_counter() - middle, len(prompts) * new_tokens - early
