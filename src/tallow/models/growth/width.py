"""A wider model that computes the same: entries are copied, and who reads them shares what it read among the copies.

Sources: Net2Net (arXiv 1511.05641); for transformers bert2BERT (2110.07143, function-preserving initialization) and
LEMON (2310.07999), whose two further points are ours, too. Copies share in unequal, random parts, for
equal ones would have equal gradients forever. And where the hidden size is no multiple of what it was, each entry is
copied equally often, and the entries that remain hold the mean of all (of a LayerNorm) or 0 (of an RMSNorm): neither
adds to what the norm measures, so that its gain and epsilon make up for their number. Who reads these entries, which
the norm makes 0, has random weights for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.growth.settings import Growth
from tallow.models.skeletons import Model, ModelConfig, build
from tallow.recipe import parse_section

TABLES = ("embed", "embed_positions", "embed_types")
LINEAR = {
    "q_proj": ("query", "hidden"),
    "k_proj": ("key", "hidden"),
    "v_proj": ("key", "hidden"),
    "o_proj": ("hidden", "query"),
    "gate_proj": ("inner", "hidden"),
    "up_proj": ("inner", "hidden"),
    "down_proj": ("hidden", "inner"),
    "router": ("", "hidden"),
    "lm_head": ("", "hidden"),
    "dense": ("hidden", "hidden"),
}
"""What the outputs and the inputs of linear layers are; nothing where they stay as many as they were."""
QK_NORMS = {"q_norm": "query", "k_norm": "key"}


def wider(config: ModelConfig, growth: Growth) -> ModelConfig:
    """The shape with the widths that it is to have; heads keep their size.

    Raises:
        UsageError: A width is smaller than before, does not come out whole, or cannot be had without another result.
    """
    hidden = growth.hidden_size or config.hidden_size
    heads = growth.num_heads or _in_proportion("num_heads", config.num_heads, hidden, config.hidden_size)
    sizes = {
        "hidden_size": hidden,
        "num_heads": heads,
        "intermediate_size": growth.intermediate_size
        or _in_proportion("intermediate_size", config.intermediate_size, hidden, config.hidden_size),
    }
    if isinstance(config, DecoderConfig):
        kv_heads = growth.num_kv_heads or _in_proportion("num_kv_heads", config.num_kv_heads, heads, config.num_heads)
        sizes["num_kv_heads"] = kv_heads
    for name, size in sizes.items():
        if size < getattr(config, name):
            raise UsageError(
                f"{name} {getattr(config, name)} cannot grow to {size}", f"raise grow.{name}, or leave it out"
            )
    if all(size == getattr(config, name) for name, size in sizes.items()):
        return config
    rest = hidden % config.hidden_size
    if rest and not _norms_can_make_up(config):
        raise UsageError(
            f"with layer norms after its sub-layers a model's hidden_size {config.hidden_size} can only be multiplied, "
            f"not grow to {hidden}",
            f"choose grow.hidden_size: {hidden - rest + config.hidden_size}",
        )
    changes: dict[str, object] = dict(sizes)
    if rest:
        changes["norm_eps"] = config.norm_eps * (hidden - rest) / hidden
    if isinstance(config, DecoderConfig):
        if heads * config.head_size != hidden:
            changes["head_dim"] = config.head_size
        _check_groups(config, heads, sizes["num_kv_heads"])
    elif heads * (config.hidden_size // config.num_heads) != hidden:
        raise UsageError(
            f"{heads} heads of the size that they have would not make up hidden_size {hidden}",
            "leave grow.num_heads out: heads grow in number",
        )
    return parse_section(type(config), {**config.model_dump(), **changes}, "grow")


def widen(model: Model, config: ModelConfig, generator: torch.Generator) -> Model:
    """The model with the widths of `config`, all else being the same."""
    widening = _Widening(model.config, config, generator)
    wide = build(config)
    wide.load_state_dict({name: widening.grown(name, value) for name, value in model.state_dict().items()})
    return wide


@dataclass(frozen=True)
class Copies:
    """How the entries of one dimension come from those that there were.

    Args:
        source_N: The entry that each new one copies, int64; −1: none.
    """

    source_N: Tensor

    def copy(self, values: Tensor, dim: int, rest: Tensor | float = 0.0) -> Tensor:
        """Values along `dim`, which is −1 or −2, for all entries.

        Args:
            rest: Value of those that copy none.
        """
        copied = values.index_select(dim, self.source_N.clamp(min=0))
        new_N = self.source_N < 0
        return torch.where(new_N if dim == -1 else new_N[:, None], rest, copied)

    def share(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Values along the last dimension, those of all copies of an entry adding up to the entry's."""
        source_N = self.source_N.clamp(min=0)
        parts = torch.rand(*values.shape[:-1], len(source_N), generator=generator) + 0.5
        parts[..., self.source_N < 0] = 0.0
        totals = torch.zeros(values.shape).index_add_(-1, source_N, parts)
        return values.index_select(-1, source_N) * (parts / totals.index_select(-1, source_N)).to(values.dtype)


class _Widening:
    """The weights of a wider model, one at a time."""

    def __init__(self, before: ModelConfig, after: ModelConfig, generator: torch.Generator) -> None:
        self.generator = generator
        copied = after.hidden_size - after.hidden_size % before.hidden_size
        self.gain = (copied / after.hidden_size) ** 0.5
        hidden_N = torch.arange(after.hidden_size) % before.hidden_size
        hidden_N[copied:] = -1
        inner_N = torch.arange(after.intermediate_size) % before.intermediate_size
        query_N, key_N = _head_sources(before, after)
        self.axes = {"hidden": hidden_N, "inner": inner_N, "query": query_N, "key": key_N}
        decoder = before if isinstance(before, DecoderConfig) else None
        self.offset = 1.0 if decoder is not None and decoder.norm_offset else 0.0
        self.means = decoder is not None and decoder.norm == "layer"
        self.qk_norm = "none" if decoder is None else decoder.qk_norm
        # the skeleton multiplies embeddings by the square root of the hidden size, which is another one now
        enlarged = decoder is not None and decoder.embedding_scale
        self.enlargement = (after.hidden_size / before.hidden_size) ** 0.5 if enlarged else 1.0
        tied = decoder is None or decoder.tied_embeddings
        self.read_by_embedding = ("head.norm" if decoder is None else "norm") if tied else None

    def grown(self, name: str, value: Tensor) -> Tensor:
        """The weights of the wider model under this name."""
        module, _, kind = name.rpartition(".")
        leaf = module.rpartition(".")[2]
        if leaf in TABLES:
            return self._written(value, -1) / (self.enlargement if leaf == "embed" else 1.0)
        if leaf in LINEAR:
            return self._linear(leaf, kind, value)
        if leaf in QK_NORMS:
            return self._copies(QK_NORMS[leaf]).copy(value, -1) if self.qk_norm == "hidden" else value
        if leaf == "head":
            return value  # a bias for each token
        return self._norm(module, kind, value)

    def _linear(self, leaf: str, kind: str, value: Tensor) -> Tensor:
        outputs, inputs = LINEAR[leaf]
        dim = -2 if kind == "weight" else -1
        if outputs == "hidden":
            value = self._written(value, dim)
        elif outputs:
            value = self._copies(outputs).copy(value, dim)
        if leaf in ("q_proj", "k_proj") and self.qk_norm != "none":
            value = value * self.gain  # these norms keep their size, but the model's epsilon is another one
        if kind == "bias":
            return value
        copies = self._copies(inputs)
        shared, new_N = copies.share(value, self.generator), copies.source_N < 0
        if not new_N.any():
            return shared
        random = value.std() * torch.randn(shared.shape, generator=self.generator).to(value.dtype)
        return torch.where(new_N, random, shared)

    def _written(self, value: Tensor, dim: int) -> Tensor:
        """What writes the hidden entries."""
        return self._copies("hidden").copy(value, dim, value.mean(dim, keepdim=True) if self.means else 0.0)

    def _norm(self, module: str, kind: str, value: Tensor) -> Tensor:
        copies, factor = self._copies("hidden"), 1.0
        if kind == "weight":
            value, factor = value + self.offset, self.gain
        if module == self.read_by_embedding:
            wide, factor = copies.share(value, self.generator), factor * self.enlargement
        else:
            wide = copies.copy(value, -1)
        if kind == "bias":
            return torch.where(copies.source_N < 0, 0.0, wide * factor)
        return torch.where(copies.source_N < 0, 1.0, wide * factor) - self.offset

    def _copies(self, axis: str) -> Copies:
        return Copies(self.axes[axis])


def _head_sources(before: ModelConfig, after: ModelConfig) -> tuple[Tensor, Tensor]:
    """Sources of the entries of all query heads, and of all heads of keys and values.

    A head of keys and values is copied with the queries that read it, and these are copied within its group.
    """
    if isinstance(before, DecoderConfig) and isinstance(after, DecoderConfig):
        size, old_kv, new_kv = before.head_size, before.num_kv_heads, after.num_kv_heads
    else:
        size, old_kv, new_kv = before.hidden_size // before.num_heads, before.num_heads, after.num_heads
    old_group, new_group = before.num_heads // old_kv, after.num_heads // new_kv
    key_K = torch.arange(new_kv) % old_kv
    query_KG = key_K[:, None] * old_group + torch.arange(new_group) % old_group
    entries_d = torch.arange(size)
    return (query_KG[..., None] * size + entries_d).flatten(), (key_K[:, None] * size + entries_d).flatten()


def _in_proportion(name: str, size: int, after: int, before: int) -> int:
    """A size that grows as another one does."""
    whole, rest = divmod(size * after, before)
    if rest:
        raise UsageError(f"{name} {size} does not come out whole where {before} grows to {after}", f"set grow.{name}")
    return whole


def _norms_can_make_up(config: ModelConfig) -> bool:
    """Whether norms can make up for entries that hold nothing: not if a LayerNorm writes them."""
    return isinstance(config, DecoderConfig) and (config.norm == "rms" or config.norm_placement == "pre")


def _check_groups(config: DecoderConfig, heads: int, kv_heads: int) -> None:
    old_group, (new_group, rest) = config.num_heads // config.num_kv_heads, divmod(heads, kv_heads)
    if rest or new_group < old_group:
        raise UsageError(
            f"{old_group} query heads to each of {config.num_kv_heads} heads of keys and values cannot grow to {heads} "
            f"and {kv_heads}",
            "keep or multiply the query heads of each, with grow.num_heads and grow.num_kv_heads",
        )
    if config.qk_norm == "hidden" and (kv_heads % config.num_kv_heads or new_group % old_group):
        raise UsageError(
            "heads that are normalized together can only be multiplied",
            "choose multiples for grow.num_heads and grow.num_kv_heads",
        )
