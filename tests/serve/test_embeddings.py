"""Embeddings: OpenAI's own client against a server that runs, and the engine's own results."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.engine.conftest import tiny
from tests.engine.lora import random_adapter
from tests.serve.conftest import KEY, Served, serving

import tallow
from tallow.engine.language_model import LanguageModel
from tallow.models.formats.adapters import write_adapter

TEXTS = ["abc", "Up, and to the office, where we sat all the morning.", "a", "Æ – ☃"]


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def lm(model_path: Path) -> LanguageModel:
    return tallow.load(model_path)


@pytest.fixture(scope="module")
def limited(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with a key and an adapter, that takes five inputs, and two at once."""
    directory = tmp_path_factory.mktemp("limited")
    (directory / "keys").write_text(f"alpha:{KEY}\n")
    config = tiny(max_positions=1024, num_layers=2)
    write_adapter(random_adapter(config, seed=1), config, directory / "adapter", "tiny")
    arguments = [f"--model=tiny={model_path}", f"--adapter=mine={directory / 'adapter'}"]
    arguments += ["--keys-file", str(directory / "keys")]
    for limit in ("prompts=5", "requests=2", "queued_tokens=3000"):
        arguments += ["--set", f"serve.limits.{limit}"]
    with serving(directory / "log", *arguments) as found:
        yield found


def vectors(answer: openai.types.CreateEmbeddingResponse) -> list[list[float]]:
    assert [(each.object, each.index) for each in answer.data] == [("embedding", n) for n in range(len(answer.data))]
    return [each.embedding for each in answer.data]


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}], ids=str)
def test_embeddings_are_the_engines(client: openai.OpenAI, lm: LanguageModel, encoding: Any) -> None:
    """To the bit, in every form; of texts and of their tokens."""
    expected = lm.embed_batch(TEXTS).tolist()
    tokens = [lm.encode_prompt(text) for text in TEXTS]
    answer = client.embeddings.create(model="tiny", input=TEXTS, user="somebody", **encoding)
    found: Any = vectors(answer)
    if "base64" in encoding.values():  # asked for by name, the client leaves it as it is
        found = [list(struct.unpack("<32f", base64.b64decode(vector))) for vector in found]
        assert found == expected
        return
    assert found == expected
    assert (answer.model, answer.object) == ("tiny", "list")
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))
    assert vectors(client.embeddings.create(model="tiny", input=tokens, **encoding)) == expected
    assert vectors(client.embeddings.create(model="tiny", input=TEXTS[1], **encoding)) == expected[1:2]
    assert vectors(client.embeddings.create(model="tiny", input=tokens[1], **encoding)) == expected[1:2]


def test_fewer_dimensions(client: openai.OpenAI, lm: LanguageModel) -> None:
    whole = lm.embed(TEXTS[1]).tolist()
    length = math.hypot(*whole[:5])
    encodings: list[dict[str, Any]] = [{"encoding_format": "float"}, {}]  # base64 if nothing is said
    for encoding in encodings:
        [vector] = vectors(client.embeddings.create(model="tiny", input=TEXTS[1], dimensions=5, **encoding))
        assert vector == pytest.approx([value / length for value in whole[:5]], abs=1e-6)
    [vector] = vectors(client.embeddings.create(model="tiny", input=TEXTS[1], dimensions=32))
    assert vector == pytest.approx(whole, abs=1e-6)


def test_more_inputs_than_are_computed_at_once(client: openai.OpenAI, lm: LanguageModel) -> None:
    texts = [f"{'x' * (number % 7)} {number}" for number in range(100)]
    assert vectors(client.embeddings.create(model="tiny", input=texts)) == lm.embed_batch(texts).tolist()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": ""}, "an input is empty"),
        ({"input": ["a", ""]}, "an input is empty"),
        ({"input": []}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [3, "a"]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [259]}, "token 259 is not in the model's vocabulary"),
        ({"input": ["a", "b " * 600]}, "1200 tokens, the model's context is of 1024"),
        ({"input": "a", "dimensions": 33}, "32 dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": ["a"] * 129}, "at most 128 inputs"),
        ({"input": {"text": "a"}}, "input"),
        ({}, "input"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_is_refused(served: Served, body: dict[str, Any], message: str) -> None:
    with served.client() as client:
        answer = client.post("/v1/embeddings", json=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert client.post("/v1/embeddings", json={"input": "a", "model": "other"}).status_code == 404


def test_keys_and_limits_hold(limited: Served, lm: LanguageModel) -> None:
    assert httpx.post(f"{limited.url}/v1/embeddings", json={"input": "a"}).status_code == 401
    client = openai.OpenAI(base_url=f"{limited.url}/v1", api_key=KEY, max_retries=0)
    assert vectors(client.embeddings.create(model="tiny", input=TEXTS)) == lm.embed_batch(TEXTS).tolist()
    with pytest.raises(openai.BadRequestError, match="at most 5 inputs"):
        client.embeddings.create(model="tiny", input=["a"] * 6)
    # two at once have room in the queue, five would not
    large = [f"{number}" * 1000 for number in range(5)]
    assert len(vectors(client.embeddings.create(model="tiny", input=large))) == 5
    with pytest.raises(openai.APIStatusError, match=r"within 0\.001 s") as late:
        client.embeddings.create(model="tiny", input=large, extra_body={"timeout": 0.001})
    assert late.value.status_code == 408
    with limited.client(KEY) as plain:
        metrics = plain.get("/metrics").text
        assert "\ntallow:requests 0.0" in metrics
        assert "\ntallow:queued_tokens 0.0" in metrics
        assert 'finished_reason="stop"' in metrics


def test_an_adapter_has_its_own(limited: Served, lm: LanguageModel) -> None:
    client = openai.OpenAI(base_url=f"{limited.url}/v1", api_key=KEY, max_retries=0)
    answer = client.embeddings.create(model="mine", input=TEXTS)
    assert answer.model == "mine"
    for found, plain in zip(vectors(answer), lm.embed_batch(TEXTS).tolist(), strict=True):
        assert math.hypot(*found) == pytest.approx(1, abs=1e-6)
        assert max(abs(ours - theirs) for ours, theirs in zip(found, plain, strict=True)) > 0.02
