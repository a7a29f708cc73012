"""Clients that build on OpenAI's API, each as it comes, against a server that runs (`clients.py` is what they do)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serve import clients
from tests.serve.clients import ENOUGH_TOKENS, ITEMS, MESSAGES, NUM_TOKENS, PROMPT, SEED
from tests.serve.conftest import Served
from transformers import AutoModelForCausalLM, AutoTokenizer

PYTHON = Path(__file__).parents[2] / ".venv-clients" / "bin" / "python"
CLIENT_S = 120
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "LITELLM_LOCAL_MODEL_COST_MAP")


def tried(client: str, served: Served, model: Path, directory: Path) -> Any:
    """What a client has been told."""
    assert PYTHON.exists(), "run `make .venv-clients/.installed`"
    environment = dict.fromkeys(OFFLINE, "1") | {"HOME": str(directory), "PATH": os.environ["PATH"]}
    command = [str(PYTHON), clients.__file__, client, served.url, str(model), str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CLIENT_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answer(served: Served, **settings: Any) -> Any:
    """What the server says without any of them."""
    with served.client() as client:
        return client.post(
            "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": NUM_TOKENS, "seed": SEED} | settings
        ).json()


def test_langchain(served: Served, model_path: Path, tmp_path: Path) -> None:
    told, plain = tried("langchain", served, model_path, tmp_path), answer(served)
    assert told["text"] == told["streamed"] == plain["choices"][0]["message"]["content"]
    assert told["num_tokens"] == plain["usage"]["completion_tokens"]
    for pet in told["structured"].values():
        clients.Pet.model_validate(pet)
    arguments = told["call"]["arguments"]
    assert told["call"] == {"name": "add", "arguments": arguments, "result": str(arguments["a"] + arguments["b"])}
    before, after = told["num_prompt_tokens"]
    assert after > before + len(told["call"]["result"])  # its tokens are bytes


def test_litellm(served: Served, model_path: Path, tmp_path: Path) -> None:
    told, plain = tried("litellm", served, model_path, tmp_path), answer(served)
    assert told["text"] == told["streamed"] == plain["choices"][0]["message"]["content"]
    assert told["num_tokens"] == plain["usage"]["completion_tokens"]
    assert told["finish_reasons"] == [plain["choices"][0]["finish_reason"]] * 2
    with served.client() as client:
        continued = client.post(
            "/v1/completions", json={"prompt": PROMPT, "max_tokens": NUM_TOKENS, "seed": SEED}
        ).json()
    assert told["continuation"] == continued["choices"][0]["text"]
    assert "no model 'other'" in told["refused"]


def test_instructor(served: Served, model_path: Path, tmp_path: Path) -> None:
    told = tried("instructor", served, model_path, tmp_path)
    assert set(told) == {"TOOLS", "JSON_SCHEMA"}
    for pet in told.values():
        clients.Pet.model_validate(pet)
    schema = {"name": "Pet", "schema": clients.Pet.model_json_schema()}
    plain = answer(served, max_tokens=ENOUGH_TOKENS, response_format={"type": "json_schema", "json_schema": schema})
    assert json.loads(plain["choices"][0]["message"]["content"]) == told["JSON_SCHEMA"]


def test_lm_eval(served: Served, model_path: Path, tmp_path: Path) -> None:
    told = tried("lm-eval", served, model_path, tmp_path)
    assert told["tokens"] == told["texts"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_path), AutoTokenizer.from_pretrained(model_path)

    def encode(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])

    hits = []
    for item, scores in zip(ITEMS, told["tokens"]["scores"], strict=True):
        context = encode(item["question"])
        expected = []
        for choice in item["choices"]:
            continuation = encode(f" {choice}")
            with torch.no_grad():
                log_probs_TV = (
                    model(torch.cat([context, continuation])[None]).logits[0, len(context) - 1 : -1].log_softmax(-1)
                )
            expected.append(log_probs_TV.gather(-1, continuation[:, None]).sum().item())
        assert [score for score, _ in scores] == pytest.approx(expected, abs=1e-3)
        assert not any(is_greedy for _, is_greedy in scores)
        hits.append(expected.index(max(expected)) == item["answer"])
    assert told["tokens"]["accuracy"] == sum(hits) / len(hits)
