"""llama.cpp through its own C interface: prompts and streams in batches, a stretch of the cache for each stream."""

from __future__ import annotations

import ctypes
import importlib
import time
from typing import Any

import numpy as np
from workload import Prompts, measure_try, read_options, work

BATCH, MICRO_BATCH = 2048, 512
"""Its defaults; smaller and larger micro-batches are not faster."""

FLASH_ATTENTION = {"flash attention": 1, "no flash attention": 0}
"""Settings to choose from, as enum llama_flash_attn_type has them; behind a comma whether weights are repacked."""

llama: Any = importlib.import_module("llama_cpp")  # installed in its own virtual environment only


def main() -> None:
    options = read_options()
    attention, weights = options.setting.split(", ")
    parameters = llama.llama_model_default_params()
    parameters.use_extra_bufts = weights == "repacked"
    model = llama.llama_model_load_from_file(str(options.model).encode(), parameters)
    runner = Runner(model, options.threads, FLASH_ATTENTION[attention])

    def generate(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        runner.prepare(len(prompts), len(prompts[0]) + new_tokens)
        start = time.perf_counter()
        tokens_B = runner.prefill(prompts)
        first_s = time.perf_counter() - start
        for position in range(len(prompts[0]), len(prompts[0]) + new_tokens - 1):
            tokens_B = runner.decode(tokens_B, position)
        return first_s, time.perf_counter() - start

    if options.is_try:
        measure_try(generate)
        return
    engine = f"llama.cpp (llama-cpp-python {llama.__version__}), {options.precision.upper()}, {options.setting}"
    work(engine, generate, llama.llama_model_size(model))


class Runner:
    """Greedy generation of several streams of one length."""

    def __init__(self, model: Any, threads: int, flash_attention: int) -> None:
        self._model, self._threads, self._flash_attention = model, threads, flash_attention
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._context: Any = None
        self._shape = (0, 0)

    def prepare(self, streams: int, length: int) -> None:
        """An empty cache; a context of another shape takes the place of the last."""
        if self._shape != (streams, length):
            if self._context is not None:
                llama.llama_batch_free(self._batch)
                llama.llama_free(self._context)
            params = llama.llama_context_default_params()
            params.n_ctx, params.n_seq_max = streams * -(-length // 256) * 256, streams
            params.n_batch, params.n_ubatch = BATCH, MICRO_BATCH
            params.flash_attn_type = self._flash_attention
            params.n_threads = params.n_threads_batch = self._threads
            self._context = llama.llama_init_from_model(self._model, params)
            self._batch = llama.llama_batch_init(BATCH, 0, 1)
            self._shape = (streams, length)
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)

    def prefill(self, prompts: Prompts) -> list[int]:
        """The token that follows each prompt; as many prompts in a call as its batch holds."""
        length, firsts = len(prompts[0]), []
        at_once = BATCH // length
        for begin in range(0, len(prompts), at_once):
            some = prompts[begin : begin + at_once]
            streams = np.repeat(np.arange(begin, begin + len(some)), length)
            positions = np.tile(np.arange(length), len(some))
            firsts += self._compute(np.concatenate(some), positions, streams, positions == length - 1)
        return firsts

    def decode(self, tokens: list[int], position: int) -> list[int]:
        count = len(tokens)
        return self._compute(np.array(tokens), np.full(count, position), np.arange(count), np.ones(count, bool))

    def _compute(self, tokens: np.ndarray, positions: np.ndarray, streams: np.ndarray, wanted: np.ndarray) -> list[int]:
        batch, count = self._batch, len(tokens)
        batch.n_tokens = count
        for target, values in (("token", tokens), ("pos", positions), ("logits", wanted)):
            np.ctypeslib.as_array(getattr(batch, target), (count,))[:] = values
        for index, stream in enumerate(streams.tolist()):
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, stream
        status = llama.llama_decode(self._context, batch)
        assert status == 0, f"llama_decode returned {status}"
        logits = ctypes.cast(llama.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))
        rows = np.ctypeslib.as_array(logits, (int(wanted.sum()), self._vocab_size))
        return rows.argmax(-1).tolist()


if __name__ == "__main__":
    main()
