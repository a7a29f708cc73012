"""tallow, at one precision, its engine alone."""

from __future__ import annotations

import time
from typing import cast

from workload import Prompts, read_options, work

import tallow
from tallow.engine.choices import Precision
from tallow.engine.request import SamplingParams
from tallow.kernels.threads import set_num_threads


def main() -> None:
    options = read_options()
    set_num_threads(options.threads)
    loaded = tallow.load(options.model, cast(Precision, options.precision))
    engine = loaded.engine

    def generate(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        start = time.perf_counter()
        requests = [engine.submit(prompt, params) for prompt in prompts]
        while not any(request.ids for request in requests):
            engine.step()
        first_s = time.perf_counter() - start
        while engine.step():
            pass
        return first_s, time.perf_counter() - start

    work(f"tallow {tallow.__version__}", generate, loaded.weight_bytes)


if __name__ == "__main__":
    main()
