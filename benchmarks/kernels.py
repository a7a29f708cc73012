"""Speed of the quantized linear layer at decoding, beside the bandwidth at which this machine reads memory.

    .venv/bin/python benchmarks/kernels.py [THREADS]

Weights are larger than the caches together, as those of a model are; each line is the best of several rounds.
"""

from __future__ import annotations

import sys
import time

import torch

from tallow.kernels import QuantizedWeight, quantize_groups, quantized_linear, read_bandwidth, using

SHAPES_OI = {"feed-forward, 135M": (576, 1536), "output, 135M": (49152, 576), "feed-forward, 7B": (4096, 11008)}
TOTAL_BYTES = 150 << 20
ROUNDS = 10


def seconds_per_call(weights: list[QuantizedWeight], x_BI: torch.Tensor) -> float:
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for weight in weights:
            quantized_linear(x_BI, weight)
        times.append((time.perf_counter() - start) / len(weights))
    return min(times)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else torch.get_num_threads())
    bandwidth = read_bandwidth()
    print(f"{torch.get_num_threads()} threads; memory is read at {bandwidth / 1e9:.1f} GB/s")
    print(f"{'layer':20} {'shape':>14} {'bits':>4} {'rows':>4} {'µs':>8} {'GB/s':>6} {'of limit':>8}")
    for name, (outputs, inputs) in SHAPES_OI.items():
        for bits in (4, 8):
            one = quantize_groups(torch.randn(outputs, inputs), bits)
            copies = range(max(1, TOTAL_BYTES // one.nbytes))
            weights = [QuantizedWeight(one.codes.clone(), one.scales.clone(), bits, one.group_size) for _ in copies]
            for rows in (1, 4, 8):
                taken_s = seconds_per_call(weights, torch.randn(rows, inputs))
                speed = one.nbytes / taken_s
                print(
                    f"{name:20} {outputs:7}x{inputs:<6} {bits:4} {rows:4} {taken_s * 1e6:8.0f} {speed / 1e9:6.1f} "
                    f"{speed / bandwidth:8.0%}"
                )
        with using("reference"):
            taken_s = seconds_per_call([quantize_groups(torch.randn(outputs, inputs), 4)], torch.randn(1, inputs))
            print(f"{name:20} {outputs:7}x{inputs:<6}    4    1 {taken_s * 1e6:8.0f} (reference)")


if __name__ == "__main__":
    main()
