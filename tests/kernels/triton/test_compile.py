"""The kernels compile to machine code for NVIDIA's GPUs, which needs none of them, and fit into their shared memory.

In a process of its own: here Triton may have been told to interpret.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

COMPILE = """
import json
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from tallow.kernels.triton import paged_attention, quantized_linear

ATTENTION = {"heads": 8, "kv_heads": 2, "head_size": 128, "block_tokens": 16, "window": 40, "capped": True, "shares": 4,
             "M": 16, "N": 64, "D": 128}
SUMS = {"head_size": 128, "shares": 4, "D": 128}
PRODUCT = {"group": 32, "B": 16, "N": 32, "G": 8, "H": 16}
NUMBERS = {"queries": "*bf16", "keys": "*bf16", "values": "*bf16", "x": "*bf16", "codes": "*u8", "sums": "*fp32",
           "out": "*fp32", "scales": "*fp32", "scale": "fp32", "softcap": "fp32", "blocks": "*i32"}


def shared_bytes(kernel, constants, target, **numbers):
    names = {name: "*i32" for name in kernel.arg_names if name.startswith("tile_")} | NUMBERS | numbers
    signature = {name: "constexpr" if name in constants else names.get(name, "i32") for name in kernel.arg_names}
    compiled = compile(ASTSource(kernel, signature, constants), target=target, options={"num_stages": 2})
    assert compiled.asm["cubin"]
    return compiled.metadata.shared


sizes = []
for capability in (80, 90):
    target = GPUTarget("cuda", capability, 32)
    sizes += [
        shared_bytes(paged_attention._attend, ATTENTION, target),
        shared_bytes(paged_attention._weigh, SUMS, target),
        shared_bytes(quantized_linear._multiply, PRODUCT | {"bits": 4}, target, scales="*fp16"),
        shared_bytes(quantized_linear._multiply, PRODUCT | {"bits": 6}, target, scales="*fp16"),
    ]
print(json.dumps(sizes))
"""


def test_kernels_compile(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # what the smaller GPUs of these generations have for one program
    assert all(size <= 99 << 10 for size in json.loads(done.stdout))
