"""Memory that training needs at least."""

from __future__ import annotations

import torch

from tallow.errors import CapacityError
from tallow.kernels.memory import machine_bytes
from tallow.models.config import DecoderConfig
from tallow.models.skeletons import ModelConfig, build
from tallow.objectives.loss import PIECE_TOKENS
from tallow.parallel.device import CPU, training_device
from tallow.parallel.world import number_of_processes
from tallow.train.config import LoopConfig


def training_bytes(config: ModelConfig, loop: LoopConfig, device: torch.device = CPU) -> int:
    """A low estimate of a device's memory: what the optimizer keeps, and what the backward pass needs of each layer.

    For each weight: itself and its gradient, in fp32, and the optimizer's state, but for what is elsewhere. For each
    token and layer, in bf16: input, normed input, queries, keys, values and output of attention, the same again of the
    feed-forward and three times its inner size. Then the logits of one piece, their softmax and their gradient.
    """
    with torch.device("meta"):
        model = build(config)
    weights = model.num_parameters()
    in_layers = sum(parameter.numel() for layer in model.layers for parameter in layer.parameters())
    tokens = (loop.micro_batch_size or loop.batch_size) * loop.sequence_length
    # two numbers more where workers have an outer optimizer: its momentum, and the weights that a round begins with
    outer = 8 if loop.parallel.local_steps > 1 else 0
    state = (8 + outer + (loop.optimizer.state_bytes if loop.offload.state_is_with(device) else 0)) * weights
    state -= 4 * in_layers if loop.offload.parameters == "disk" else 0
    layers_on_host = loop.offload.parameters == "cpu" and device.type != "cpu"
    state -= (8 + outer) * in_layers if layers_on_host else 0
    chosen = config.experts_per_token if isinstance(config, DecoderConfig) and config.num_experts else 1
    inner = config.intermediate_size * chosen
    activations = 2 * tokens * config.num_layers * (8 * config.hidden_size + 3 * inner)
    logits = 3 * 4 * min(tokens, PIECE_TOKENS) * config.vocab_size
    return state + activations + logits


def check_memory(config: ModelConfig, loop: LoopConfig) -> None:
    """Refuse what cannot fit.

    Raises:
        CapacityError: The estimate alone exceeds the machine's memory, or on GPUs, of which each process has its own,
            that of all of them together.
        UsageError: There is no such device.
    """
    device = training_device(loop.device)
    on_gpu = device.type == "cuda"
    needed = training_bytes(config, loop, device)
    present = machine_bytes("cuda") * number_of_processes() if on_gpu else machine_bytes()
    if needed > present:
        kind = "memory on GPUs" if on_gpu else "memory"
        raise CapacityError(
            f"training needs at least {needed / 1e9:.1f} GB of {kind}, and there are {present / 1e9:.1f} GB",
            "set a smaller loop.micro_batch_size or model",
        )
