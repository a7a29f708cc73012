"""Channels made alike, before weights and activations are rounded to few bits.

A few channels of what a linear layer reads are many times as large as the others, and take most of a scale's range. The
layer computes the same if these channels are divided by factors with which its weight's columns are multiplied, and
the factors cost nothing where the rows of the matrix before it, or a norm's weight, can be divided instead
(SmoothQuant, arXiv 2211.10438, section 4; AWQ, arXiv 2306.00978, section 3.2). A factor is a power of the greatest
magnitude that the channel has in some tokens; the geometric mean of a layer's factors is 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tallow.kernels.blocks import BlockWeight, unpack_blocks
from tallow.kernels.memory import returning_freed_memory
from tallow.kernels.threads import single_thread
from tallow.models.blocks.context import SequenceContext
from tallow.models.blocks.norms import LayerNorm, RMSNorm
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.models.formats.adapters import Adapter
from tallow.models.stored import StoredModel
from tallow.tokenizer.tokenizer import Tokenizer

TEXT = Path(__file__).with_name("calibration.txt")
TOKENS, TOKENS_OF_TEXT = 512, 384
"""That activations are looked at of; the others are random, so that no language and no kind of text is everything."""
ATTENTION_POWER, FEED_FORWARD_POWER = 0.5, 0.25
"""Of a channel's size (docs/lab-book.md has others); what feed-forwards read is spread over many channels already."""
LEAST_SHARE = 1e-3
"""A channel counts as no smaller than this share of the layer's greatest: it may have been silent by chance."""


@dataclass(frozen=True)
class Factors:
    """Of a linear layer, O outputs by I inputs.

    Args:
        inputs_I: What its weight's columns are multiplied with; None: nothing.
        outputs_O: What its weight's rows and its bias are divided by; None: nothing.
    """

    inputs_I: Tensor | None = None
    outputs_O: Tensor | None = None


class EqualizedModel(StoredModel):
    """A stored model whose channels have been made alike: the same function, in other weights, in float32.

    Args:
        source: The model, of which one layer at a time is brought to memory; not quantized, and without experts.
        tokens_T: Token ids whose activations tell how large channels are.
        dtype: What these are computed in.
    """

    def __init__(self, source: StoredModel, tokens_T: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.path, self.files = source.model, source.path, source.files
        self._source = source
        self.factors: dict[str, Factors] = {}
        self._norms: dict[str, Tensor] = {}
        for index, sizes in enumerate(_channel_sizes(source, tokens_T, dtype)):
            self._equalize_layer(f"layers.{index}", sizes)

    def read(self, name: str) -> Tensor | BlockWeight:
        value, (module, _, kind) = self._source.read(name), name.rpartition(".")
        if module in self._norms:
            norm = self.model.get_submodule(module)
            offset = 1 if kind == "weight" and isinstance(norm, RMSNorm) and norm.offset else 0
            return (_floats(value) + offset) / self._norms[module] - offset
        factors = self.factors.get(module, Factors())
        if factors.inputs_I is not None and kind == "weight":
            value = _floats(value) * factors.inputs_I
        if (outputs_O := factors.outputs_O) is not None:
            value = _floats(value) / (outputs_O[:, None] if kind == "weight" else outputs_O)
        return value

    def load(self, dtype: torch.dtype | None = None) -> Decoder:
        model = self._source.load(dtype)
        for name, parameter in model.named_parameters():
            module = name.rpartition(".")[0]
            if module in self._norms or module in self.factors:
                parameter.data = _floats(self.read(name)).to(parameter.dtype)
        return model

    def _equalize_layer(self, at: str, sizes: dict[str, Tensor]) -> None:
        config = self.model.config
        attention, feed_forward = f"{at}.attention", f"{at}.feed_forward"
        inner = [f"{feed_forward}.{each}_proj" for each in ("gate", "up")[not config.gated :]]
        for norm, readers, power in (
            (f"{at}.attention_norm", [f"{attention}.{each}_proj" for each in "qkv"], ATTENTION_POWER),
            (f"{at}.feed_forward_norm", inner, FEED_FORWARD_POWER),
        ):
            if isinstance(self.model.get_submodule(norm), RMSNorm | LayerNorm):
                self._norms[norm] = factors_I = _factors(sizes[readers[-1]], power)
                self.factors |= {reader: Factors(factors_I) for reader in readers}
        # heads that share values share factors
        by_heads_KGd = sizes[f"{attention}.o_proj"].view(config.num_kv_heads, -1, config.head_size)
        factors_K1d = _factors(by_heads_KGd.amax(1, keepdim=True), ATTENTION_POWER)
        self._move(
            f"{attention}.v_proj", factors_K1d.flatten(), f"{attention}.o_proj", factors_K1d.expand_as(by_heads_KGd)
        )
        if config.gated:
            factors_I = _factors(sizes[f"{feed_forward}.down_proj"], FEED_FORWARD_POWER)
            self._move(f"{feed_forward}.up_proj", factors_I, f"{feed_forward}.down_proj", factors_I)

    def _move(self, writer: str, factors_O: Tensor, reader: str, factors_I: Tensor) -> None:
        """What one layer writes is divided, and what another one reads is multiplied."""
        self.factors[writer] = Factors(self.factors.get(writer, Factors()).inputs_I, factors_O)
        self.factors[reader] = Factors(factors_I.flatten())


def equalize_adapter(adapter: Adapter, factors: Mapping[str, Factors]) -> Adapter:
    """The adapter for a model of which these layers' channels have been made alike."""
    made: dict[tuple[int, int], Tensor] = {}  # layers that share an A still do

    def inputs_changed(a_RI: Tensor, factors_I: Tensor) -> Tensor:
        return made.setdefault((id(a_RI), id(factors_I)), a_RI.float() * factors_I)

    changed = dict(adapter)
    for name in adapter.keys() & factors.keys():
        update, own = adapter[name], factors[name]
        if own.inputs_I is not None:
            update = replace(update, a_RI=inputs_changed(update.a_RI, own.inputs_I))
        if own.outputs_O is not None:
            update = replace(update, b_OR=update.b_OR.float() / own.outputs_O[:, None])
        changed[name] = update
    return changed


def calibration_tokens(config: DecoderConfig, tokenizer: Tokenizer | None) -> Tensor:
    """Token ids to find factors with: of a text in several languages, and random ones; the same each time.

    A tokenizer may have more tokens than the model; those are left out.
    """
    text = TEXT.read_text(encoding="utf-8")
    ids = [] if tokenizer is None else [i for i in tokenizer.encode(text) if i < config.vocab_size][:TOKENS_OF_TEXT]
    random_T = torch.randint(config.vocab_size, (TOKENS - len(ids),), generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.tensor(ids, dtype=torch.int64), random_T])[: config.max_positions]


def _channel_sizes(source: StoredModel, tokens_T: Tensor, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """The greatest magnitudes of what linear layers of each layer read, by their names."""
    with torch.device("meta"):
        model = Decoder(source.model.config).eval()
    used_U, places_T = tokens_T.unique(return_inverse=True)
    _fill(model.embed, "weight", _rows(source.read("embed.weight"), used_U), dtype)
    if model.embed_positions is not None:
        _fill(model.embed_positions, "weight", _floats(source.read("embed_positions.weight")), dtype)
    context = SequenceContext.plain(1, len(tokens_T))
    found: list[dict[str, Tensor]] = []
    room: dict[str, Tensor] = {}  # in which the layers' weights take turns
    with single_thread(), returning_freed_memory(), torch.inference_mode():
        x_BTD = model.begin(places_T[None], context)
        for index, layer in enumerate(model.layers):
            sizes: dict[str, Tensor] = {}
            for name, module in layer.named_modules():
                for kind, parameter in list(module.named_parameters(recurse=False)):
                    values = _floats(source.read(f"layers.{index}.{name}.{kind}")).view(parameter.shape)
                    held = room.setdefault(f"{name}.{kind}", torch.empty_like(values, dtype=dtype))
                    _fill(module, kind, held.copy_(values), dtype)
                if name.endswith(("v_proj", "o_proj", "up_proj", "down_proj")):  # what others read, these read, too
                    module.register_forward_pre_hook(_note_sizes(sizes, f"layers.{index}.{name}"))
            x_BTD = model.through(x_BTD, context, range(index, index + 1))
            found.append(sizes)
    return found


def _note_sizes(sizes: dict[str, Tensor], name: str) -> Any:
    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[name] = inputs[0].flatten(0, -2).abs().amax(0).float()

    return note


def _factors(sizes: Tensor, power: float) -> Tensor:
    """Ones if a size is not finite, or all are zero."""
    logs = (sizes / sizes.max()).clamp(min=LEAST_SHARE).log() * power
    factors = (logs - logs.mean()).exp()
    return factors if bool(factors.isfinite().all()) else torch.ones_like(sizes)


def _fill(module: nn.Module, name: str, values: Tensor, dtype: torch.dtype) -> None:
    setattr(module, name, nn.Parameter(values.to(dtype), requires_grad=False))


def _rows(table: Tensor | BlockWeight, rows_U: Tensor) -> Tensor:
    if isinstance(table, BlockWeight):
        return unpack_blocks(BlockWeight(table.blocks[rows_U], table.kind, table.in_features))
    return table.detach()[rows_U].float().cpu()


def _floats(value: Tensor | BlockWeight) -> Tensor:
    return unpack_blocks(value) if isinstance(value, BlockWeight) else value.detach().float().cpu()
