"""What a family is: how the hub's `config.json` and tensor names map to a skeleton."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from tallow.errors import UsageError
from tallow.models.config import DecoderConfig
from tallow.models.encoder_config import EncoderConfig
from tallow.models.skeletons import ModelConfig, build

Config = TypeVar("Config", DecoderConfig, EncoderConfig)


def _alone(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,)


def _first(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class Layout:
    """How one stored tensor holds one or several parameters of ours.

    Args:
        split: From the stored tensor to our parameters (views where it can).
        join: The inverse.
    """

    split: Callable[[Tensor], Sequence[Tensor]] = _alone
    join: Callable[[Sequence[Tensor]], Tensor] = _first


AS_IS = Layout()
TRANSPOSED = Layout(lambda tensor: (tensor.t(),), lambda parts: parts[0].t())
"""A matrix stored inputs first (a vector stays as it is)."""


def stacked(*sizes: int) -> Layout:
    """Parameters of so many rows each, one below the other."""
    return Layout(lambda tensor: tensor.split(sizes), lambda parts: torch.cat(tuple(parts)))


@dataclass(frozen=True)
class TensorMap:
    """One tensor of the hub's files and the parameters of ours that it holds.

    Args:
        hub: Its name in the files.
        ours: Names of the model's parameters in it; several where the family stores them fused.
        layout: How they lie in it.
        expert: Of parameters that stack the weights of all experts, the one whose weights it holds; None: it holds them
            whole.
    """

    hub: str
    ours: tuple[str, ...]
    layout: Layout = AS_IS
    expert: int | None = None

    def split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Our parameters (or the expert's part of them) in the stored tensor, in the order of `ours`."""
        return tuple(self.layout.split(tensor))

    def join(self, parameters: Sequence[Tensor]) -> Tensor:
        """The tensor to store for our parameters."""
        return self.layout.join([self.part(parameter) for parameter in parameters])

    def part(self, parameter: Tensor) -> Tensor:
        """What of a parameter the stored tensor holds."""
        return parameter if self.expert is None else parameter[self.expert]


_ATTENTION = {f"attention.{part}_proj": f"self_attn.{part}_proj" for part in ("q", "k", "v", "o")}
_QK_NORMS = {f"attention.{part}_norm": f"self_attn.{part}_norm" for part in ("q", "k")}
_FEED_FORWARD = {f"feed_forward.{part}_proj": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
    **_ATTENTION,
    **_QK_NORMS,
    **_FEED_FORWARD,
}
"""Names of a layer's modules: ours → the hub's, as Llama and most later families have them."""

LLAMA_OUTSIDE = {"embed": "model.embed_tokens", "layers": "model.layers", "norm": "model.norm", "lm_head": "lm_head"}
"""The same outside of the layers, with the list of layers itself."""


@dataclass(frozen=True)
class Family(Generic[Config]):
    """A hub format, of decoders or of encoders.

    Args:
        name: `model_type` in `config.json`.
        architecture: Entry of `architectures` in `config.json`.
        read_config: From the values of `config.json`.
        write_config: Back to them, without the fields that all families share (control tokens, dtype).
        layer: Names of our modules below a layer → the hub's; those with the same name there are stored fused. A
            parameter that the hub calls otherwise than its module is named itself. `{expert}` stands for the number of
            an expert, where the hub has a tensor for each.
        outside: The same outside of the layers, with the list of layers itself.
        layouts: How modules below a layer (the hub's names) are stored, where that is not as they are.
        other_names: Values of `model_type` that are also read as this family.
        aliases: How some files spell a tensor's name: beginning as written here, beginning there.
        endings: The same of its end.
        ignored: Ends of the names of stored tensors that are no parameters.
        tagger: Entry of `architectures` of such an encoder with a head that labels tokens; None: there is none.
        variants: Other ways in which files hold such a model: the end of a tensor's name that is only there, and the
            format. They are read, not written.
    """

    name: str
    architecture: str
    read_config: Callable[[Mapping[str, Any]], Config]
    write_config: Callable[[Config], dict[str, Any]]
    layer: Mapping[str, str] = field(default_factory=lambda: LLAMA_LAYER)
    outside: Mapping[str, str] = field(default_factory=lambda: LLAMA_OUTSIDE)
    layouts: Callable[[Config], Mapping[str, Layout]] | None = None
    other_names: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = (("model.", ""),)
    endings: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    tagger: str | None = None
    variants: tuple[tuple[str, Family], ...] = ()

    def of_files(self, names: Iterable[str]) -> Family:
        """The format of files that hold tensors of these names."""
        for name in names:
            for end, variant in self.variants:
                if name.endswith(end):
                    return variant
        return self

    def tensors_per_layer(self, config: DecoderConfig) -> int:
        """A lower bound, to compare a config with the files before anything is built."""
        return max(1, config.num_experts if any("{expert}" in there for there in self.layer.values()) else 0)

    def tensors(self, config: Config, parameters: Iterable[str] | None = None) -> list[TensorMap]:
        """The stored tensors that hold the parameters of a model of this shape.

        Args:
            parameters: Names of the parameters, where the caller has them; else they are found by building
                the model without memory.
        """
        if parameters is None:
            with torch.device("meta"):
                parameters = [name for name, _ in build(config).named_parameters()]
        layouts = self.layouts(config) if self.layouts is not None else {}
        num_experts = config.num_experts if isinstance(config, DecoderConfig) else 0
        maps: dict[str, TensorMap] = {}
        for parameter in parameters:
            module, _, kind = parameter.rpartition(".")
            if module.startswith("layers."):
                _, index, below = parameter.split(".", 2)
                there = self.layer.get(below) or f"{self.layer[below.removesuffix(f'.{kind}')]}.{kind}"
                hub = f"{self.outside['layers']}.{index}.{there}"
                layout = layouts.get(there) or layouts.get(there.rpartition(".")[0], AS_IS)
            else:
                hub, layout = f"{self.outside[module]}.{kind}", AS_IS
            for expert in range(num_experts) if "{expert}" in hub else (None,):
                name = hub.format(expert=expert)
                fused_with = maps[name].ours if name in maps else ()
                maps[name] = TensorMap(name, (*fused_with, parameter), layout, expert)
        return list(maps.values())

    def spellings(self, hub: str) -> list[str]:
        """The names under which files may hold the tensor `hub`, the usual one first."""
        names = [hub, *(hub.removesuffix(here) + there for here, there in self.endings if hub.endswith(here))]
        others = [
            there + name.removeprefix(here) for name in names for here, there in self.aliases if name.startswith(here)
        ]
        return [*names, *others]

    def hub_config(self, config: Config) -> dict[str, Any]:
        """The values of `config.json` that describe the architecture.

        Raises:
            UsageError: The family has no way to say some choice of `config`, so that the saved model
                would be another one.
        """
        hub = {"architectures": [self.architecture], "model_type": self.name, **self.write_config(config)}
        try:
            wanted, said = _architecture(config), _architecture(self.read_config(hub))
            lost = [name for name, value in wanted.items() if said[name] != value]
        except ValueError as error:
            lost = [str(error)]
        if lost:
            raise UsageError(
                f"the hub format of {self.name} cannot express this model: {', '.join(lost)}",
                "choose the family that has them, or leave them at what the family has",
            )
        return hub


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """What a config makes the model compute, however it is spelled."""
    if isinstance(config, EncoderConfig):
        return {name: value for name, value in config if name not in ("family", "pad_id")}
    layers = range(config.num_layers)
    spelled = ("family", "bos_id", "eos_ids", "pad_id", "head_dim", "sliding_layers", "local_rotary")
    spelled += ("router_balance_weight",)
    return {name: value for name, value in config if name not in spelled} | {
        "head_dim": config.head_size,
        "window": [config.layer_window(layer) for layer in layers],
        "rotary": [config.layer_rotary(layer) if config.positions == "rotary" else None for layer in layers],
        "attention_scale": config.attention_scale or config.head_size**-0.5,
        "router_balance_weight": config.balance_weight,
    }
