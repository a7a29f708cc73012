"""The product of few rows with weights of 4, 6 and 8 bits, unpacked in registers: each byte of them is read once."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_ROWS = 256
"""With more rows it is cheaper to unpack the weight first."""
ROWS = 64
"""Most rows of a program."""
MIN_ROWS = 16
"""What a tensor core's product takes at least, in each dimension."""
OUTPUTS = 32
TURN_BYTES = 512
"""Of the inputs that a turn of the loop takes from each row."""
PROGRAMS = 256
"""Fewer leave multiprocessors of a large GPU without work."""


def quantized_linear(x_BI: Tensor, codes: Tensor, scales: Tensor, bias_O: Tensor | None, bits: int) -> Tensor | None:
    """`tallow.kernels.quantized_linear` for 1 to 256 rows.

    Args:
        codes: Those of a `QuantizedWeight`, as the scales; they lie on the device of x.

    Returns:
        None for other numbers of rows, and for shapes that do not fit; the reference then computes or complains.
    """
    outputs, groups = scales.shape
    *leading, inputs = x_BI.shape
    x_BI = x_BI.reshape(-1, inputs)
    rows, group = len(x_BI), inputs // groups
    if not 1 <= rows <= MAX_ROWS or codes.shape[1] * 8 != inputs * bits:
        return None
    if bias_O is not None and bias_O.shape != (outputs,):
        return None
    turn_groups = triton.next_power_of_2(max(1, TURN_BYTES // (group * x_BI.element_size())))
    blocks, turns = triton.cdiv(outputs, OUTPUTS), triton.cdiv(groups, turn_groups)
    shares = min(triton.cdiv(PROGRAMS, blocks), turns)
    sums_SBO = x_BI.new_empty((shares, rows, outputs), dtype=torch.float32)
    block_rows = min(ROWS, max(MIN_ROWS, triton.next_power_of_2(rows)))
    constants: dict[str, Any] = {
        "bits": bits,
        "group": group,
        "B": block_rows,
        "N": OUTPUTS,
        "G": turn_groups,
        "H": triton.next_power_of_2(group // 2),
        "num_warps": 4,
        "num_stages": 3,
    }
    _multiply[blocks, shares, triton.cdiv(rows, block_rows)](
        x_BI.contiguous(), codes, scales, sums_SBO, rows, outputs, groups, triton.cdiv(turns, shares), **constants
    )
    out_BO = sums_SBO.sum(0) if shares > 1 else sums_SBO[0]
    if bias_O is not None:
        out_BO = out_BO + bias_O
    return out_BO.to(x_BI.dtype).view(*leading, outputs)


@triton.jit(do_not_specialize=("rows", "turns"))
def _multiply(
    x,
    codes,
    scales,
    out,  # the sums over each share of the inputs
    rows,
    outputs,
    groups,
    turns,  # of a share
    bits: tl.constexpr,
    group: tl.constexpr,
    B: tl.constexpr,
    N: tl.constexpr,  # outputs of a program
    G: tl.constexpr,  # groups of a turn
    H: tl.constexpr,  # half a group, up to a power of two
):
    share = tl.program_id(1)
    row_B = tl.program_id(2) * B + tl.arange(0, B)
    output_O = (tl.program_id(0) * N + tl.arange(0, N)).to(tl.int64)
    real_B, real_O = row_B < rows, output_O < outputs
    half: tl.constexpr = group // 2
    group_bytes: tl.constexpr = group * bits // 8
    within_H = tl.arange(0, H)
    sum_BO = tl.zeros((B, N), tl.float32)
    for turn in range(share * turns, (share + 1) * turns):
        group_G = turn * G + tl.arange(0, G)
        real_G, real_GH = group_G < groups, (group_G < groups)[:, None] & (within_H < half)[None, :]
        scale_OG = tl.load(
            scales + output_O[:, None] * groups + group_G[None, :],
            mask=real_O[:, None] & real_G[None, :],
            other=0.0,
        ).to(tl.float32)
        real_OGH = real_O[:, None, None] & real_GH[None, :, :]
        address_OG = codes + (output_O * groups * group_bytes)[:, None] + (group_G * group_bytes)[None, :]
        address_OGH = address_OG[:, :, None] + within_H[None, None, :]
        low_OGH = tl.load(address_OGH, mask=real_OGH, other=0)
        if bits == 8:
            high_OGH, zero = tl.load(address_OGH + half, mask=real_OGH, other=0), 0.0
        else:
            low_OGH, high_OGH, zero = low_OGH & 15, low_OGH >> 4, 8.0
        if bits == 6:
            # bits 0 and 1 of a byte belong to the first half's first half, 4 and 5 to the second's; then those above
            upper_H = half + within_H % (half // 2)
            upper_OGH = tl.load(address_OG[:, :, None] + upper_H[None, None, :], mask=real_OGH, other=0)
            upper_OGH = tl.where((within_H < half // 2)[None, None, :], upper_OGH, upper_OGH >> 2)
            low_OGH, high_OGH, zero = low_OGH | (upper_OGH & 3) << 4, high_OGH | upper_OGH & 48, 32.0
        low_OGH, high_OGH = low_OGH.to(tl.float32) - zero, high_OGH.to(tl.float32) - zero
        # the first halves of all groups, then the second: as the codes of 4 bits lie
        input_I = tl.reshape(group_G[:, None] * group + within_H[None, :], (G * H,))
        address_BI = x + row_B[:, None] * (groups * group) + input_I[None, :]
        real_BI = real_B[:, None] & tl.reshape(real_GH, (G * H,))[None, :]
        low_BI = tl.load(address_BI, mask=real_BI, other=0.0)
        high_BI = tl.load(address_BI + half, mask=real_BI, other=0.0)
        low_OI = tl.reshape((low_OGH * scale_OG[:, :, None]).to(low_BI.dtype), (N, G * H))
        high_OI = tl.reshape((high_OGH * scale_OG[:, :, None]).to(low_BI.dtype), (N, G * H))
        sum_BO = tl.dot(low_BI, tl.trans(low_OI), sum_BO, input_precision="ieee")
        sum_BO = tl.dot(high_BI, tl.trans(high_OI), sum_BO, input_precision="ieee")
    tl.store(
        out + (share * rows + row_B)[:, None] * outputs + output_O[None, :],
        sum_BO,
        mask=real_B[:, None] & real_O[None, :],
    )
