"""The shape of a model of a given size, and what its parameters are for."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import ValidationError

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.skeletons import ModelConfig, build
from tallow.plan.sizes import format_size

MIN_LAYERS = 2
MAX_WIDTH = 32768
# a depth so many times the usual is not considered
MAX_DEPTH = 8
# a size that is missed by this factor is as bad as a depth that is off by a factor of two
SIZE_TOLERANCE = 1.05
MAX_MISS = 1.2

Shape = TypeVar("Shape", bound=ModelConfig)


class Parameters(NamedTuple):
    """Parameters of a model.

    Args:
        total: All of them; a tied embedding counts once.
        vocabulary: Those in proportion to the vocabulary: token embedding and output matrix.
    """

    total: int
    vocabulary: int

    @property
    def inner(self) -> int:
        """Those that do not depend on the vocabulary."""
        return self.total - self.vocabulary


def count_parameters(shape: ModelConfig) -> Parameters:
    """Count the parameters of a shape, without building all of its layers."""
    return _Parts.of(shape).parameters(shape)


def shape_of_size(size: int, base: Shape, keep: frozenset[str] = frozenset()) -> Shape:
    """A shape of about `size` parameters, the vocabulary's included.

    Layers grow with the root of the width, as they do from the smallest to the largest models of Pythia (arXiv
    2304.01373, table 1) and Llama; the loss hardly depends on it (2001.08361, section 3.1). Widths, heads and inner
    sizes are multiples of what matrix kernels like, larger ones for larger models.

    Args:
        base: Whatever else there is to choose; its vocabulary must be set.
        keep: Fields of `base` that stay as they are.

    Raises:
        UsageError: No shape comes near, as a rule because the vocabulary alone is larger.
    """
    assert base.vocab_size > 0
    best, best_score, nearest = None, math.inf, 0
    for candidate, total in _candidates(size, base, keep):
        miss = abs(math.log(total / size))
        layers = candidate.num_layers / _usual_layers(candidate.hidden_size)
        score = (miss / math.log(SIZE_TOLERANCE)) ** 2 + math.log2(layers) ** 2
        if score < best_score:
            best, best_score, nearest = candidate, score, total
    if best is None or not 1 / MAX_MISS < nearest / size < MAX_MISS:
        what = f"; the nearest has {format_size(nearest)}" if best else ""
        if keep:
            raise UsageError(
                f"no model of the {', '.join(sorted(keep))} that the recipe sets has {format_size(size)} "
                f"parameters{what}",
                "leave some of them to the size, or choose another size",
            )
        raise UsageError(
            f"no model with a vocabulary of {base.vocab_size:,} has {format_size(size)} parameters{what}",
            "choose another size, set the shape in pretrain.model, or train a tokenizer with a smaller vocabulary",
        )
    return best


def smallest_size(base: ModelConfig) -> int:
    """Parameters of the smallest shape that `shape_of_size` gives."""
    return count_parameters(_with_width(base, 32, frozenset()).model_copy(update={"num_layers": MIN_LAYERS})).total


def _candidates(size: int, base: Shape, keep: frozenset[str]) -> Iterator[tuple[Shape, int]]:
    """For each width the number of layers that comes nearest to the size, and all of its parameters."""
    for width in [base.hidden_size] if "hidden_size" in keep else _widths(fine="num_layers" in keep):
        try:
            shape = _with_width(base, width, keep)
        except ValidationError:  # the fields that are kept do not go with this width
            continue
        parts = _Parts.of(shape)
        if "num_layers" not in keep:
            wanted = round((size - parts.rest - parts.token * shape.vocab_size) / parts.layer)
            if wanted > MAX_DEPTH * _usual_layers(width) and "hidden_size" not in keep:
                continue
            shape = shape.model_copy(update={"num_layers": max(MIN_LAYERS, wanted)})
        total = parts.parameters(shape).total
        yield shape, total
        if total > 2 * size:
            return


def _with_width(base: Shape, width: int, keep: frozenset[str]) -> Shape:
    """The shape with this width and what follows from it."""
    head = next(size for size, least in ((128, 2048), (64, 256), (32, 64), (16, 0)) if width >= least)
    heads = base.num_heads if "num_heads" in keep else max(1, width // head)
    inner = 8 / 3 * width if isinstance(base, DecoderConfig) and base.gated else 4 * width
    step = 64 if width >= 256 else 16
    values: dict[str, Any] = {
        "hidden_size": width,
        "num_heads": heads,
        "intermediate_size": math.ceil(inner / step) * step,
    }
    if isinstance(base, DecoderConfig):
        # at least two heads of keys and values, and at most four queries that share one (arXiv 2305.13245)
        shared = next(group for group in (4, 3, 2, 1) if heads % group == 0 and (heads // group >= 2 or group == 1))
        values |= {"num_kv_heads": heads // shared, "head_dim": None}
    given = {name: getattr(base, name) for name in keep}
    return type(base).model_validate(base.model_dump() | values | given)


def _widths(*, fine: bool) -> Iterator[int]:
    """All that are considered, narrowest first; `fine`: closer to each other, where the depth cannot make up for it."""
    width = 32
    while width <= MAX_WIDTH:
        yield width
        if fine:
            width += 16 * max(1, width // 128)
        else:
            width += 16 if width < 64 else 32 if width < 128 else 64 if width < 512 else 128 if width < 2048 else 256


def _usual_layers(width: int) -> float:
    """12 at a width of 768, 20 at 2048, 29 at 4096."""
    return max(MIN_LAYERS, math.sqrt(width) / 2.2)


class _Parts(NamedTuple):
    """Parameters of each layer, of each token of the vocabulary, and of the rest."""

    layer: int
    token: int
    rest: int

    @classmethod
    def of(cls, shape: ModelConfig) -> _Parts:
        """What the differences between small models of this shape say, whatever they are made of."""
        small = shape.model_copy(update={"num_layers": 1, "vocab_size": 2, "sliding_layers": None})
        first = _built(small)
        layer = _built(small.model_copy(update={"num_layers": 2})) - first
        token = _built(small.model_copy(update={"vocab_size": 3})) - first
        return cls(layer, token, first - layer - 2 * token)

    def parameters(self, shape: ModelConfig) -> Parameters:
        """The parameters of this shape with any number of layers and tokens."""
        vocabulary = self.token * shape.vocab_size
        return Parameters(self.rest + self.layer * shape.num_layers + vocabulary, vocabulary)


def _built(shape: ModelConfig) -> int:
    return _count(type(shape), shape.model_dump_json())


@functools.lru_cache(maxsize=256)  # who looks for a size asks for the same small models again and again
def _count(kind: type[ModelConfig], settings: str) -> int:
    shape = kind.model_validate_json(settings)
    with torch.device("meta"):
        return build(shape).num_parameters()
