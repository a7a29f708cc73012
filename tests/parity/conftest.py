"""Tiny random models of `transformers`, the numerical reference of the families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder

VOCAB_SIZE = 61
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
GPT2_SIZES = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
CONTROL_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """No progress bars; what transformers thinks of odd tiny configs stays unsaid."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity_warning()
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def make_reference() -> Callable[..., PreTrainedModel]:
    """`make_reference(model_type, **config)`: a tiny model with random weights, norms and biases included."""

    def make(model_type: str, **options: Any) -> PreTrainedModel:
        sizes = GPT2_SIZES if model_type == "gpt2" else SIZES
        config = AutoConfig.for_model(model_type, **{"vocab_size": VOCAB_SIZE, **sizes, **CONTROL_TOKENS, **options})
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        randomize(model)
        return model

    return make


def randomize(model: PreTrainedModel) -> None:
    """Weights so large that every part of the model shows in its logits, which come out with a deviation of 1 to 2."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        biases = (buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias"))
        for parameter in (*model.parameters(), *biases):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)


@pytest.fixture(scope="session")
def reference_logits() -> Callable[[PreTrainedModel, Tensor], Tensor]:
    def compute(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(input_ids=ids_BT).logits

    return compute


@pytest.fixture(scope="session")
def our_logits() -> Callable[[Decoder, Tensor], Tensor]:
    def compute(model: Decoder, ids_BT: Tensor) -> Tensor:
        with torch.inference_mode():
            return model.logits(model(ids_BT, SequenceContext.plain(len(ids_BT), ids_BT.shape[1])))

    return compute


@pytest.fixture(scope="session")
def ids_BT() -> Tensor:
    """Two sequences of 40 tokens, longer than the windows and trained lengths that the tests use."""
    return torch.randint(0, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(1))
