"""The key-value cache, and the context through which a model's attention uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tallow.models.blocks.context import AttentionSpec, attention

MIN_CAPACITY = 64


class KVCache:
    """Keys and values of one request: for each layer a contiguous buffer, doubled when it is full.

    Args:
        num_layers: Layers of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self._layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def store(self, layer: int, start: int, k_1KTd: Tensor, v_1KTd: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of the tokens from position `start` on.

        Returns:
            All keys and values up to them, 1 K S d: views that the next call may overwrite or replace.
        """
        end = start + k_1KTd.shape[2]
        buffers = self._layers[layer]
        if buffers is None or buffers[0].shape[2] < end:
            buffers = self._layers[layer] = self._grow(buffers, k_1KTd, start, end)
        keys, values = buffers
        keys.narrow(2, start, end - start).copy_(k_1KTd)
        values.narrow(2, start, end - start).copy_(v_1KTd)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def clear(self) -> None:
        """Free the memory."""
        self._layers = [None] * len(self._layers)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffers in self._layers if buffers is not None for buffer in buffers)

    def _grow(self, old: tuple[Tensor, Tensor] | None, like: Tensor, kept: int, needed: int) -> tuple[Tensor, Tensor]:
        capacity = max(needed, MIN_CAPACITY, 0 if old is None else 2 * old[0].shape[2])
        batch, kv_heads, _, head_size = like.shape
        new = (
            like.new_empty(batch, kv_heads, capacity, head_size),
            like.new_empty(batch, kv_heads, capacity, head_size),
        )
        if old is not None:
            for new_buffer, old_buffer in zip(new, old, strict=True):
                new_buffer[:, :, :kept] = old_buffer[:, :, :kept]
        return new


@dataclass(frozen=True)
class Chunk:
    """The next `length` tokens of one request, from position `start` on, with the cache of all before them."""

    cache: KVCache
    start: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


class CacheContext:
    """Causal attention of chunks of several requests, laid one after the other in a single row (B = 1).

    The linear layers see all tokens at once; attention runs request by request, so that a request's result does
    not depend on the lengths of the others and nothing is padded.
    """

    def __init__(self, chunks: Sequence[Chunk], device: torch.device) -> None:
        self._chunks = chunks
        self._lengths = [chunk.length for chunk in chunks]
        positions = [position for chunk in chunks for position in range(chunk.start, chunk.end)]
        self.positions_BT = torch.tensor([positions], device=device)
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        if len(self._chunks) == 1:
            return self._attend_chunk(0, spec, q_BHTd, k_BKTd, v_BKTd)
        parts = zip(*(x.split(self._lengths, dim=2) for x in (q_BHTd, k_BKTd, v_BKTd)), strict=True)
        return torch.cat([self._attend_chunk(index, spec, *part) for index, part in enumerate(parts)], dim=2)

    def _attend_chunk(self, index: int, spec: AttentionSpec, q_1HTd: Tensor, k_1KTd: Tensor, v_1KTd: Tensor) -> Tensor:
        chunk = self._chunks[index]
        k_1KSd, v_1KSd = chunk.cache.store(spec.layer, chunk.start, k_1KTd, v_1KTd)
        first = _first_visible(chunk, spec.window)
        if first > 0:
            k_1KSd, v_1KSd = k_1KSd[:, :, first:], v_1KSd[:, :, first:]
        return attention(q_1HTd, k_1KSd, v_1KSd, self._mask(index, spec.window), spec)

    def _mask(self, index: int, window: int | None) -> Tensor | None:
        """Which of the keys from the first visible one on each query sees, 1 1 T S; None where plain order says it."""
        if (index, window) not in self._masks:
            self._masks[index, window] = _causal_mask(self._chunks[index], window, self.positions_BT.device)
        return self._masks[index, window]


def _first_visible(chunk: Chunk, window: int | None) -> int:
    """Position of the first key that any query of the chunk sees."""
    return 0 if window is None else max(0, chunk.start + 1 - window)


def _causal_mask(chunk: Chunk, window: int | None, device: torch.device) -> Tensor | None:
    if chunk.length == 1 or (chunk.start == 0 and (window is None or chunk.length <= window)):
        return None
    queries_T = torch.arange(chunk.start, chunk.end, device=device)
    keys_S = torch.arange(_first_visible(chunk, window), chunk.end, device=device)
    distance_TS = queries_T[:, None] - keys_S
    mask_TS = distance_TS >= 0
    if window is not None:
        mask_TS &= distance_TS < window
    return mask_TS[None, None]
