"""SmolLM2-135M-Instruct from its GGUF file, against `transformers` reading the same file, in fp32, without a cache."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tests.parity.smollm2_reference import NEW_TOKENS, PROMPTS
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from tallow.models.decoder import Decoder
from tallow.models.formats import load_model, load_tokenizer, save_model
from tallow.tokenizer.tokenizer import Tokenizer

pytestmark = pytest.mark.smollm2

PEAK = """
import json, resource, sys
from pathlib import Path
import torch
from tallow.models.formats import load_model
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = load_model(Path(sys.argv[1]), dtype=torch.bfloat16)
print(json.dumps([peak() - before, sum(parameter.nbytes for parameter in model.parameters())]))
"""


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Decoder:
    return load_model(smollm2_gguf, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(smollm2_gguf: Path) -> Tokenizer:
    return load_tokenizer(smollm2_gguf)


@pytest.fixture(scope="module")
def reference(smollm2_gguf: Path) -> Iterator[PreTrainedModel]:
    """What `transformers` makes of the file; it reads the header and builds the table of names many times over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", cache(gguf.GGUFReader))
        patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        yield AutoModelForCausalLM.from_pretrained(
            smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
        ).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.encode(prompt, parse_special=True) for prompt in PROMPTS]


def test_tokenizer(smollm2_gguf: Path, tokenizer: Tokenizer) -> None:
    theirs = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    texts = [*PROMPTS, "  naïve café 日本語 🤗\n\n\tx**2", "I'LL don't <|im_end|>"]
    for text in texts:
        if not any(character.isdigit() for character in text):
            assert tokenizer.encode(text, parse_special=True) == theirs.encode(text)
    # the reader of `transformers` leaves aside that this tokenizer takes digits one by one
    digits = tokenizer.encode("In 1984, 27 %")
    assert [tokenizer.decode([id]) for id in digits] == ["In", " ", "1", "9", "8", "4", ",", " ", "2", "7", " %"]
    ids = (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)
    assert ids == (49152, 1, 2, 2, 0)
    assert tokenizer.encode("Hi", add_special_tokens=True) == tokenizer.encode("Hi")
    assert tokenizer.chat_template is not None
    messages = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.chat_template.render(messages, add_generation_prompt=True)
    assert rendered == theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def test_logits(
    model: Decoder,
    reference: PreTrainedModel,
    prompts: list[list[int]],
    our_logits: Callable[[Decoder, Tensor], Tensor],
    reference_logits: Callable[[PreTrainedModel, Tensor], Tensor],
) -> None:
    ids_BT = torch.tensor([[id for prompt in prompts for id in prompt]])
    expected = reference_logits(reference, ids_BT)
    torch.testing.assert_close(our_logits(model, ids_BT), expected, rtol=0, atol=1e-4)


def test_greedy_continuations_without_a_cache(
    model: Decoder,
    reference: PreTrainedModel,
    prompts: list[list[int]],
    our_logits: Callable[[Decoder, Tensor], Tensor],
) -> None:
    """Those of `generate`, token for token.

    One pass over a prompt with its continuation says what the model would take at each place, given all before it; if
    that is the continuation, so is what it would have written token by token, as the first prompt shows.
    """
    answers = generate(reference, prompts)
    assert [len(answer) for answer in answers] == [NEW_TOKENS] * len(PROMPTS)
    rows = [torch.tensor(prompt + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    # padded behind the end, where causal attention does not look
    likeliest_BT = our_logits(model, pad_sequence(rows, batch_first=True)).argmax(-1)
    for likeliest_T, prompt, answer in zip(likeliest_BT, prompts, answers, strict=True):
        assert likeliest_T[len(prompt) - 1 :][:NEW_TOKENS].tolist() == answer
    ids = list(prompts[0])
    for _ in range(4):
        ids.append(int(our_logits(model, torch.tensor([ids]))[0, -1].argmax()))
    assert ids == prompts[0] + answers[0][:4]


def generate(reference: Any, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations of all prompts at once, which are padded at their beginnings; none ends early."""
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    reference.generation_config.eos_token_id = None
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    with torch.inference_mode():
        out_BT = reference.generate(ids_BT, attention_mask=mask_BT, generation_config=config)
    return out_BT[:, longest:].tolist()


def test_exported_directory(
    tmp_path: Path,
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    our_logits: Callable[[Decoder, Tensor], Tensor],
    reference_logits: Callable[[PreTrainedModel, Tensor], Tensor],
) -> None:
    save_model(model, tokenizer, tmp_path / "hub")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hub", dtype=torch.float32).eval()
    ids_BT = torch.tensor([prompts[-1]])
    torch.testing.assert_close(reference_logits(theirs, ids_BT), our_logits(model, ids_BT), rtol=0, atol=1e-4)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hub")
    for prompt, ids in zip(PROMPTS, prompts, strict=True):
        assert their_tokenizer.encode(prompt) == ids


def test_peak_memory_of_loading(smollm2_gguf: Path) -> None:
    """Of a process of its own: below 1.3 times the weights it ends up with, here in bfloat16."""
    command = [sys.executable, "-c", PEAK, str(smollm2_gguf)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    grown, weights = json.loads(done.stdout)
    assert weights == 2 * 134515008
    assert grown < 1.3 * weights
