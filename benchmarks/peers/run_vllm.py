"""vLLM on a CPU: compiled as it comes, in one process, without its prefix cache (prompts are new anyway)."""

from __future__ import annotations

import importlib
import itertools
import os
import time

from workload import STREAMS, Prompts, read_options, work

CACHE_GIB = 1


def main() -> None:
    options = read_options()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }
    vllm = importlib.import_module("vllm")  # reads the environment; it is installed in its own venv only
    llm = vllm.LLM(
        model=str(options.model),
        dtype={"bf16": "bfloat16", "fp32": "float32"}[options.precision],
        max_model_len=1024,
        max_num_seqs=STREAMS,
        max_num_batched_tokens=STREAMS * 256,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
    )
    engine = llm.llm_engine
    names = itertools.count()

    def generate(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        params = vllm.SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        start = time.perf_counter()
        for prompt in prompts:
            engine.add_request(str(next(names)), {"prompt_token_ids": prompt}, params)
        while not any(request.outputs[0].token_ids for request in engine.step()):
            pass
        first_s = time.perf_counter() - start
        while engine.has_unfinished_requests():
            engine.step()
        return first_s, time.perf_counter() - start

    weights = (options.model / "model.safetensors").stat().st_size
    work(f"vLLM {vllm.__version__}", generate, weights)


if __name__ == "__main__":
    main()
