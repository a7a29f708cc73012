"""transformers: PyTorch's eager kernels, a batch padded to one length (here all are of one)."""

from __future__ import annotations

import time

import torch
import transformers
from transformers import AutoModelForCausalLM
from workload import Prompts, read_options, work

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=DTYPES[options.precision]).eval()

    @torch.inference_mode()
    def generate(prompts: Prompts, new_tokens: int) -> tuple[float, float]:
        start = time.perf_counter()
        out = model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        tokens_B1 = out.logits.argmax(-1)
        first_s = time.perf_counter() - start
        for _ in range(new_tokens - 1):
            out = model(tokens_B1, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            tokens_B1 = out.logits.argmax(-1)
        return first_s, time.perf_counter() - start

    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    work(f"transformers {transformers.__version__}", generate, weight_bytes)


if __name__ == "__main__":
    main()
