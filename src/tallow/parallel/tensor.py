"""Tensor and sequence parallelism: processes share each matrix product, and the places of the sequence between them.

Projections to queries, keys, values, gate and inner vector are cut by their outputs, those back to the hidden vector by
their inputs (Megatron-LM, arXiv 1909.08053, section 3); the token table and the output matrix are cut by the
vocabulary. Around attention and feed-forward, where every place is computed by itself, each process has some places of
the sequence (2205.05198, section 4.2.2).

Parameters become DTensors, so that all who cut further, save, or gather them see what they are. Within the `forward` of
its module a parameter is this process's share of it, a plain tensor: modules compute as they do alone. Three kinds of
activations tell what is to be summed in the backward pass:

- whole ones (all places, all entries): of their gradient each process has a part, and the parts' sum is the gradient;
- cut ones (some heads, inner entries, or tokens of the vocabulary): each process has the gradient of its own;
- those of some places: likewise.

So the gradient of a parameter that all processes hold is always a sum over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from tallow.errors import UsageError
from tallow.models.blocks.attention import Attention
from tallow.models.blocks.context import Context
from tallow.models.blocks.mixture import Mixture
from tallow.models.skeletons import Layered
from tallow.parallel.cut_vocabulary import CutVocabulary
from tallow.parallel.whole import gather, share_of, share_sum

Call = Callable[..., Tensor]
OUTPUTS, INPUTS, WHOLE = Shard(0), Shard(1), Replicate()
PLAN: tuple[tuple[str, Placement | None], ...] = (
    ("embed.weight", OUTPUTS),
    ("lm_head.weight", OUTPUTS),
    ("head.bias", OUTPUTS),
    ("layers.*.o_proj.lora_A", INPUTS),
    ("layers.*.o_proj.lora_B", WHOLE),
    ("layers.*.down_proj.lora_A", INPUTS),
    ("layers.*.down_proj.lora_B", WHOLE),
    ("layers.*.lora_A", WHOLE),
    ("layers.*.attention.[qkv]_proj.*", OUTPUTS),
    ("layers.*.attention.o_proj.*weight", INPUTS),
    ("layers.*.feed_forward.gate_proj.*", OUTPUTS),
    ("layers.*.feed_forward.up_proj.*", OUTPUTS),
    ("layers.*.feed_forward.down_proj.*weight", INPUTS),
    ("layers.*.experts.gate_proj.weight", Shard(1)),
    ("layers.*.experts.up_proj.weight", Shard(1)),
    ("layers.*.experts.down_proj.weight", Shard(2)),
    ("layers.*.router.weight", WHOLE),
    ("layers.*.router.bias", None),  # it has no gradient, and whoever moves it knows nothing of shares
    ("layers.*.o_proj.*bias", WHOLE),
    ("layers.*.down_proj.*bias", WHOLE),
    ("*norm.weight", WHOLE),
    ("*norm.bias", WHOLE),
    ("embed_*.weight", WHOLE),
    ("head.dense.*", WHOLE),
)
"""How each parameter is placed, by its name: the first pattern that fits; None leaves it as it is."""

ADDED_TO_PARTS = ("*.o_proj.*bias", "*.down_proj.*bias")
"""Parameters that are added to something of which each process has a part: one process must do so for all."""

BY_VOCABULARY = ("embed.weight", "lm_head.weight", "head.bias")
"""Parameters that need not be divided evenly: tokenizers have any number of tokens."""

BLOCKS = ("layers.*.attention", "layers.*.feed_forward")
"""Modules that are given some places of the sequence, and want them all."""


@dataclass(frozen=True)
class Slot:
    """A place in a module that holds a parameter.

    Args:
        added: Whether this process is the one that adds it, where one does so for all.
    """

    module: nn.Module
    name: str
    added: bool


def spread(model: Layered, mesh: DeviceMesh) -> CutVocabulary:
    """Spread a model over the processes of a mesh of one dimension, in place.

    All must be given the same rows. Sequences that the processes cannot share evenly they share unevenly.

    Returns:
        What makes losses of the logits, of which each process has those of its own tokens.

    Raises:
        UsageError: Something of the model cannot be shared evenly, or the plan does not know one of its parameters.
    """
    assert isinstance(model, nn.Module)
    _check_heads(model, mesh.size())
    slots: dict[str, Slot] = {}
    for name, parameter in list(model.named_parameters()):
        placed = _place(name, parameter, mesh)
        if placed is not None:
            path, _, key = name.rpartition(".")
            module = model.get_submodule(path)
            module.register_parameter(key, placed)
            slots[name] = Slot(module, key, mesh.get_local_rank() == 0 or not _fits(name, ADDED_TO_PARTS))
    for index, layer in enumerate(model.layers):
        layer.forward = _with_shares(_within(slots, f"layers.{index}."), layer.forward)
    for name, module in model.named_modules():
        if isinstance(module, Attention) and module.qk_norm == "hidden":
            for norm in (module.q_norm, module.k_norm):
                norm.forward = _over_all_heads(norm.forward, mesh)
        if isinstance(module, Mixture) and module.balance == "loss" and mesh.get_local_rank():
            module.balance_weight = 0.0  # of this gradient, too, each process has a part: one has all of it
        if _fits(name, BLOCKS):
            module.forward = _at_all_places(module.forward, mesh)
    # of a pipeline's stages only the first and the last have something to do with the vocabulary
    tables = [model.get_submodule(name) for name in ("embed", "lm_head") if f"{name}.weight" in slots]
    if "embed.weight" in slots:
        tables[0].forward = _over_all_tokens(tables[0], mesh)
    outside = [slot for name, slot in slots.items() if not name.startswith("layers.")]
    model.begin, model.finish, model.logits = (
        _with_shares(outside, method) for method in (model.begin, model.finish, model.logits)
    )
    model.through = _at_some_places(model.through, mesh)
    return CutVocabulary(_first_token(tables[0], mesh) if tables else 0, mesh.get_group())


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _within(slots: Mapping[str, Slot], prefix: str) -> list[Slot]:
    return [slot for name, slot in slots.items() if name.startswith(prefix)]


def _check_heads(model: nn.Module, size: int) -> None:
    for module in model.modules():
        if isinstance(module, Attention) and module.num_kv_heads % size:
            raise UsageError(
                f"{size} processes cannot share {module.num_kv_heads} heads of keys and values evenly",
                f"choose a divisor of {module.num_kv_heads} for loop.parallel.tensor",
            )


def _place(name: str, parameter: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter | None:
    """A parameter placed as the plan has it; None: it is to stay as it is."""
    known = [placement for pattern, placement in PLAN if fnmatchcase(name, pattern)]
    if not known:
        raise UsageError(f"tensor parallelism does not know how to place {name}", "set loop.parallel.tensor to 1")
    placement = known[0]
    if placement is None:
        return None
    if isinstance(placement, Shard):
        _check_shares(name, parameter.shape[placement.dim], mesh.size())
    # all have the same values already
    placed = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
    return nn.Parameter(placed, requires_grad=parameter.requires_grad)


def _check_shares(name: str, length: int, size: int) -> None:
    by_vocabulary = _fits(name, BY_VOCABULARY)
    if -(-length // size) * (size - 1) >= length if by_vocabulary else length % size:
        raise UsageError(
            f"{size} processes cannot share {name}{'' if by_vocabulary else ' evenly'}: {length}",
            "choose another number for loop.parallel.tensor",
        )


def _with_shares(slots: Sequence[Slot], call: Call) -> Call:
    """Like `call`, but within it parameters are this process's shares of them."""

    def with_shares(*arguments: Any) -> Tensor:
        with _shares(slots):
            return call(*arguments)

    return with_shares


@contextmanager
def _shares(slots: Sequence[Slot]) -> Iterator[None]:
    whole = [slot.module.get_parameter(slot.name) for slot in slots]
    for slot, parameter in zip(slots, whole, strict=True):
        assert isinstance(parameter, DTensor)
        placements = [Partial() if place.is_replicate() else place for place in parameter.placements]
        share = parameter.to_local(grad_placements=placements)
        share = share if slot.added else share * 0.0
        slot.module._parameters[slot.name] = cast("nn.Parameter", share)
    try:
        yield
    finally:
        for slot, parameter in zip(slots, whole, strict=True):
            slot.module._parameters[slot.name] = parameter


def _at_some_places(through: Call, mesh: DeviceMesh) -> Call:
    """Layers that are given all places, and have some of them between each other."""

    def at_some_places(x_BTD: Tensor, context: Context, layers: range) -> Tensor:
        length = x_BTD.shape[1]
        own = share_of(length, mesh.get_local_rank(), mesh.size())
        x_BtD = x_BTD[:, own.start : own.stop]
        return gather(through(x_BtD, context, layers), 1, length, mesh.get_group())

    return at_some_places


def _at_all_places(block: Call, mesh: DeviceMesh) -> Call:
    """A block that is given some places and returns them, but sees all, and gives a part of the result at each."""

    def at_all_places(x_BtD: Tensor, *rest: Any) -> Tensor:
        context: Context = rest[-1]
        group, length = mesh.get_group(), context.positions_BT.shape[1]
        return share_sum(block(gather(x_BtD, 1, length, group), *rest), 1, group)

    return at_all_places


def _over_all_heads(norm: Call, mesh: DeviceMesh) -> Call:
    """A norm over all heads together, given and returning this process's."""

    def over_all_heads(x_BTD: Tensor) -> Tensor:
        size = x_BTD.shape[-1]
        whole_BTD = norm(gather(x_BTD, 2, size * mesh.size(), mesh.get_group()))
        return whole_BTD.narrow(-1, size * mesh.get_local_rank(), size)

    return over_all_heads


def _over_all_tokens(embed: nn.Module, mesh: DeviceMesh) -> Call:
    """The vectors of tokens, of which this process's table holds some."""
    first = _first_token(embed, mesh)
    look_up = embed.forward

    def over_all_tokens(ids_BT: Tensor) -> Tensor:
        places_BT = ids_BT - first
        here_BT = (places_BT >= 0) & (places_BT < len(embed.get_parameter("weight")))
        part_BTD = look_up(places_BT * here_BT) * here_BT[..., None]
        return gather(share_sum(part_BTD, 1, mesh.get_group()), 1, ids_BT.shape[1], mesh.get_group())

    return over_all_tokens


def _first_token(embed: nn.Module, mesh: DeviceMesh) -> int:
    """The first token of this process's share of the vocabulary."""
    return -(-len(embed.get_parameter("weight")) // mesh.size()) * mesh.get_local_rank()
