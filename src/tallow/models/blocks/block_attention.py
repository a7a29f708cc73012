"""Causal attention in blocks of queries, each with the keys up to its end, by plain matrix products.

PyTorch's flash attention on a CPU does without the processor's bfloat16 products in the backward pass. With them,
forward and backward take less than half of its time for 256 tokens, two thirds for 1,024. The price is memory: the
probabilities, half of T² numbers a head, are kept for the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_BLOCK = 128
# beyond this the probabilities outweigh everything else that is kept
MAX_TOKENS = 1024


def better_in_blocks(q_BHTd: Tensor) -> bool:
    """Whether this is the faster way: when bfloat16 is trained on a CPU, with sequences that are not too long."""
    return (
        q_BHTd.requires_grad
        and q_BHTd.dtype == torch.bfloat16
        and q_BHTd.device.type == "cpu"
        and q_BHTd.shape[2] <= MAX_TOKENS
    )


def block_biases(mask_B1TT: Tensor | None, q_BHTd: Tensor) -> list[Tensor]:
    """For each block of n queries what is added to its scores with the e keys up to its end: 0 or -inf.

    Args:
        mask_B1TT: True where a query sees a key, none after itself; None for plain causal order.

    Returns:
        Tensors B 1 1 n e (1 1 1 n e without a mask) in the dtype of the queries.
    """
    tokens = q_BHTd.shape[2]
    if mask_B1TT is None:
        mask_B1TT = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device=q_BHTd.device).tril()
    bias_B11TT = torch.zeros_like(mask_B1TT, dtype=q_BHTd.dtype).masked_fill_(~mask_B1TT, float("-inf"))[:, :, None]
    block = max(MIN_BLOCK, tokens // 4)
    return [bias_B11TT[..., start : start + block, : start + block] for start in range(0, tokens, block)]


def attention_in_blocks(q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, biases: list[Tensor], scale: float) -> Tensor:
    """Softmax attention with grouped keys and values, B H T d.

    Args:
        biases: As `block_biases` gives them.
    """
    kv_heads = k_BKTd.shape[1]
    q_BKGTd = (q_BHTd * scale).unflatten(1, (kv_heads, -1))
    blocks = []
    for q_BKGnd, bias in zip(q_BKGTd.split([bias.shape[-2] for bias in biases], dim=3), biases, strict=True):
        keys, shape = bias.shape[-1], q_BKGnd.shape[2:4]
        # the heads of a group see the same keys: as more queries of one head they read them once
        scores_BKNe = q_BKGnd.flatten(2, 3) @ k_BKTd[:, :, :keys].transpose(-1, -2)
        weights_BKGne = (scores_BKNe.unflatten(2, shape) + bias).softmax(-1)
        blocks.append((weights_BKGne.flatten(2, 3) @ v_BKTd[:, :, :keys]).unflatten(2, shape))
    return torch.cat(blocks, dim=3).flatten(1, 2)
