"""The reference runner: the model's own module and a paged cache, in plain torch, on any device."""

from __future__ import annotations

import functools
import itertools
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tallow.engine.block_tables import CacheLayout
from tallow.engine.blocks import BLOCK_TOKENS
from tallow.engine.runner import Scores, Span, context_length
from tallow.kernels.sampling import Draw, choose_tokens
from tallow.models.blocks.context import AttentionSpec, Context, attention
from tallow.models.decoder import Decoder
from tallow.models.equalization import Factors
from tallow.models.formats.adapters import Adapter, LowRank
from tallow.models.quantization import model_bytes, quantized_bits


class TorchRunner:
    """Runs a model as it is.

    Args:
        model: In evaluation mode, on the device where it is to run. It defines what every other runner computes.
    """

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.config = model.config
        self.layout = CacheLayout.of(model.config, context_length(model.config))
        self.weight_bytes = model_bytes(model)
        self._device = model.norm.weight.device
        self.device: Literal["cpu", "cuda"] = "cpu" if self._device.type == "cpu" else "cuda"
        self._dtype = model.norm.weight.dtype
        bits, dtype = quantized_bits(model), str(self._dtype).removeprefix("torch.")
        self.precision = dtype if bits is None else f"int{bits} weights, {dtype}"
        self.factors: Mapping[str, Factors] = {}
        self._caches: list[tuple[Tensor, Tensor]] = []
        self._handles = itertools.count(1)
        self._hooks: dict[int, list[tuple[RemovableHandle, int]]] = {}
        self._rows: dict[int, list[slice]] = {}

    @property
    def block_bytes(self) -> int:
        config = self.config
        values = 2 * self.layout.depth * BLOCK_TOKENS * config.num_kv_heads * config.head_size
        return values * torch.empty(0, dtype=self._dtype).element_size()

    def allocate(self, num_blocks: int) -> None:
        config = self.model.config  # of a share of a model: its heads only
        shape = (num_blocks * BLOCK_TOKENS, config.num_kv_heads, config.head_size)
        with torch.inference_mode():
            # what no token was written to is masked, but must be finite
            self._caches = [
                (
                    torch.zeros(shape, dtype=self._dtype, device=self._device),
                    torch.zeros(shape, dtype=self._dtype, device=self._device),
                )
                for _ in range(self.layout.depth)
            ]

    def copy_block(self, source: int, target: int) -> None:
        from_, to = _block(source), _block(target)
        with torch.inference_mode():
            for cache in self._caches:
                for buffer in cache:
                    buffer[to] = buffer[from_]

    def run(self, spans: Sequence[Span]) -> Scores:
        tokens = [token for span in spans for token in span.tokens]
        self._rows = _rows_by_adapter(spans)
        try:
            with torch.inference_mode():
                hidden_TD = self.model(torch.tensor([tokens], device=self._device), self._context(spans))[0]
        finally:
            self._rows = {}  # the model is as it was for whoever else computes with it
        with torch.inference_mode():
            hidden_RD = hidden_TD[wanted_rows(spans)]
            logits_RV = self.model.logits(hidden_RD[None])[0].float()
            return make_scores(logits_RV, summarize(logits_RV), hidden_RD.__getitem__)

    def run_ahead(
        self, spans: Sequence[Span], draws: Sequence[Draw], stop_ids: Sequence[Sequence[int]], passes: int
    ) -> list[Scores]:
        passed: list[Scores] = []
        stopped = [False] * len(spans)
        while len(passed) < passes and not all(stopped):
            scores = self.run(spans)
            rows = list(scores.logits_RV)
            drawn = choose_tokens(rows, [draw._replace(token_index=draw.token_index + len(passed)) for draw in draws])
            tokens = [likeliest if token < 0 else token for likeliest, token in zip(scores.tokens, drawn, strict=True)]
            logits = [float(logits_V[token]) for logits_V, token in zip(rows, tokens, strict=True)]
            passed.append(replace(scores, tokens=tokens, logits=logits, are_drawn=True))
            stopped = [was or token in ids for was, token, ids in zip(stopped, tokens, stop_ids, strict=True)]
            spans = [
                replace(span, tokens=[token], start=span.start + len(span.tokens))
                for span, token in zip(spans, tokens, strict=True)
            ]
        return passed

    def _context(self, spans: Sequence[Span]) -> Context:
        return PagedContext(spans, self.layout, self._caches, self._device)

    def load_adapter(self, adapter: Adapter) -> int:
        handle = next(self._handles)
        self._hooks[handle] = [self._hook(handle, name, update) for name, update in adapter.items()]
        self.weight_bytes += sum(size for _, size in self._hooks[handle])
        return handle

    def unload_adapter(self, handle: int) -> None:
        for hook, size in self._hooks.pop(handle):
            hook.remove()
            self.weight_bytes -= size

    def _hook(self, handle: int, name: str, update: LowRank) -> tuple[RemovableHandle, int]:
        """Make a linear layer add the update for the rows of this adapter; also its memory in bytes."""
        dtype = torch.promote_types(self._dtype, torch.float32)
        a_RI = update.a_RI.to(self._device, dtype, copy=True)
        b_OR = update.scale * update.b_OR.to(self._device, dtype)

        def add(_module: nn.Module, inputs: tuple[Tensor], output_1TO: Tensor) -> None:
            for rows in self._rows.get(handle, ()):
                update_TO = inputs[0][0, rows].to(dtype) @ a_RI.T @ b_OR.T
                output_1TO[0, rows] += update_TO.to(output_1TO.dtype)

        return self.model.get_submodule(name).register_forward_hook(add), a_RI.nbytes + b_OR.nbytes


class PagedContext(Context):
    """Causal attention of the spans of a step, laid one after the other in a single row (B = 1).

    The linear layers see all tokens at once; attention runs span by span, so that a sequence's result does not depend
    on the lengths of the others and nothing is padded.
    """

    padding_BT: Tensor | None = None

    def __init__(
        self,
        spans: Sequence[Span],
        layout: CacheLayout,
        caches: Sequence[tuple[Tensor, Tensor]],
        device: torch.device,
    ) -> None:
        self._spans, self._layout, self._caches, self._device = spans, layout, caches, device
        self._lengths = [len(span.tokens) for span in spans]
        positions = [span.start + index for span in spans for index in range(len(span.tokens))]
        self.positions_BT = torch.tensor([positions], device=device)
        self._places = [[_places(span, table, device) for table in span.tables] for span in spans]
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}

    def attend(self, spec: AttentionSpec, q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor) -> Tensor:
        parts = zip(*(x.split(self._lengths, dim=2) for x in (q_BHTd, k_BKTd, v_BKTd)), strict=True)
        return torch.cat([self._attend_span(index, spec, *part) for index, part in enumerate(parts)], dim=2)

    def _attend_span(self, index: int, spec: AttentionSpec, q_1HTd: Tensor, k_1KTd: Tensor, v_1KTd: Tensor) -> Tensor:
        table, place = self._layout.places[spec.layer]
        places_S, start = self._places[index][table], self._spans[index].start
        first = _first_visible(start, spec.window)
        k_1KSd, v_1KSd = (
            _stored(cache, new, places_S[start:], places_S[first:])
            for cache, new in zip(self._caches[place], (k_1KTd, v_1KTd), strict=True)
        )
        return attention(q_1HTd, k_1KSd, v_1KSd, self._mask(index, spec.window), spec)

    def _mask(self, index: int, window: int | None) -> Tensor | None:
        """Which of the keys from the first visible one on each query sees, 1 1 T S; None where plain order says it."""
        if (index, window) not in self._masks:
            span = self._spans[index]
            self._masks[index, window] = _causal_mask(span.start, self._lengths[index], window, self._device)
        return self._masks[index, window]


def summarize(logits_RV: Tensor) -> Tensor:
    """What `Scores` says of each row of logits: likeliest token, greatest logit, log-sum-exp; 3 R, float64."""
    greatest_R, likeliest_R = logits_RV.max(dim=-1)
    log_sum_exp_R = logits_RV.logsumexp(-1)
    log_sum_exp_R = torch.where(log_sum_exp_R.isfinite(), log_sum_exp_R, torch.nan)
    return torch.stack([likeliest_R.double(), greatest_R.double(), log_sum_exp_R.double()])


def make_scores(logits_RV: Tensor, summary_3R: Tensor, hidden: Callable[[int], Tensor]) -> Scores:
    """Scores of these logits, and the hidden states behind them; only the summary is copied from the device at once."""
    likeliest, greatest, log_sum_exp = summary_3R.tolist()
    fetch = functools.cache(lambda: logits_RV.cpu().numpy())
    tokens = [int(token) for token in likeliest]
    return Scores(fetch, tokens, greatest, log_sum_exp, lambda row: hidden(row).float().cpu().numpy())


def _block(index: int) -> slice:
    return slice(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS)


def _stored(cache: Tensor, new_1KTd: Tensor, written_T: Tensor, read_S: Tensor) -> Tensor:
    """Put keys or values in their places; returns those of the places to be read, 1 K S d."""
    cache.index_copy_(0, written_T, new_1KTd[0].transpose(0, 1))
    return cache.index_select(0, read_S).transpose(0, 1)[None]


def _places(span: Span, table: array[int], device: torch.device) -> Tensor:
    """Where in the cache the sequence's tokens are, up to the last of the span."""
    blocks_N, within_16 = torch.tensor(table.tolist(), device=device), torch.arange(BLOCK_TOKENS, device=device)
    return (blocks_N[:, None] * BLOCK_TOKENS + within_16).flatten()[: span.start + len(span.tokens)]


def wanted_rows(spans: Sequence[Span]) -> list[int]:
    """Rows of the tokens that get logits, where the spans lie one after the other."""
    rows, end = [], 0
    for span in spans:
        end += len(span.tokens)
        rows += range(end - span.wanted, end)
    return rows


def _rows_by_adapter(spans: Sequence[Span]) -> dict[int, list[slice]]:
    """Where in the step the tokens of each adapter's spans are."""
    rows: dict[int, list[slice]] = {}
    end = 0
    for span in spans:
        end += len(span.tokens)
        rows.setdefault(span.adapter, []).append(slice(end - len(span.tokens), end))
    return rows


def _first_visible(start: int, window: int | None) -> int:
    """Position of the first key that any query from position `start` on sees."""
    return 0 if window is None else max(0, start + 1 - window)


def _causal_mask(start: int, length: int, window: int | None, device: torch.device) -> Tensor | None:
    if length == 1 or (start == 0 and (window is None or length <= window)):
        return None
    queries_T = torch.arange(start, start + length, device=device)
    keys_S = torch.arange(_first_visible(start, window), start + length, device=device)
    distance_TS = queries_T[:, None] - keys_S
    mask_TS = distance_TS >= 0
    if window is not None:
        mask_TS &= distance_TS < window
    return mask_TS[None, None]
