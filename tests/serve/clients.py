"""Other people's clients against a server: run in their own virtual environment (`make .venv-clients`), which has no
tallow: `clients.py CLIENT URL MODEL DIRECTORY`.

What each has been told goes to standard output as one JSON object; the tests judge it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

MESSAGES: Any = [{"role": "user", "content": "Say something."}]
PROMPT = "Say something."
SEED = 5
NUM_TOKENS = 12
ENOUGH_TOKENS = 300
ITEMS = [
    {"question": "a b c", "choices": ["d", "zz z"], "answer": 0},
    {"question": "one two", "choices": ["three", "x", "4"], "answer": 1},
]
CHOICE_TASK = r"""
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {test: ITEMS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
"""
CONTINUATION_TASK = r"""
task: local_continuation
dataset_path: json
dataset_kwargs: {data_files: {test: ITEMS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\n\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


class Pet(BaseModel):
    """A pet."""

    model_config = ConfigDict(extra="forbid")  # or a model that writes noise makes up more and more fields
    kind: Literal["cat", "dog"]
    legs: Literal[3, 4]
    is_old: bool


def try_langchain(url: str, _model: Path, _directory: Path) -> dict[str, Any]:
    """Answers, streams, structured output by both methods, and tools."""
    langchain, tools = _installed("langchain_openai"), _installed("langchain_core.tools")

    @tools.tool
    def add(a: Literal[1, 22], b: Literal[3, 44]) -> int:
        """Add two numbers."""
        return a + b

    chat = langchain.ChatOpenAI(
        base_url=f"{url}/v1", api_key="none", model="tiny", seed=SEED, max_tokens=NUM_TOKENS, max_retries=0
    )
    answer = chat.invoke(PROMPT)
    called = chat.bind_tools([add], tool_choice="add", strict=True).invoke(PROMPT, max_tokens=ENOUGH_TOKENS)
    [call] = called.tool_calls
    result = add.invoke(call)
    after = chat.invoke([("user", PROMPT), called, result])
    structured = {
        method: chat.with_structured_output(Pet, method=method, strict=True).invoke(PROMPT, max_tokens=ENOUGH_TOKENS)
        for method in ("json_schema", "function_calling")
    }
    return {
        "text": answer.content,
        "num_tokens": answer.usage_metadata["output_tokens"],
        "streamed": "".join(chunk.content for chunk in chat.stream(PROMPT)),
        "structured": {method: pet.model_dump() for method, pet in structured.items()},
        "call": {"name": call["name"], "arguments": call["args"], "result": result.content},
        "num_prompt_tokens": [said.usage_metadata["input_tokens"] for said in (answer, after)],
    }


def try_litellm(url: str, _model: Path, _directory: Path) -> dict[str, Any]:
    """Chat and text completions, whole and streamed, and an error."""
    litellm = _installed("litellm")
    settings: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": "none", "num_retries": 0}
    settings |= {"max_tokens": NUM_TOKENS, "seed": SEED}
    answer = litellm.completion("openai/tiny", MESSAGES, **settings)
    chunks = list(litellm.completion("openai/tiny", MESSAGES, stream=True, **settings))
    continued = litellm.text_completion(prompt=PROMPT, model="text-completion-openai/tiny", **settings)
    try:
        refused = litellm.completion("openai/other", MESSAGES, **settings)
    except litellm.NotFoundError as error:
        refused = error.message
    return {
        "text": answer.choices[0].message.content,
        "num_tokens": answer.usage.completion_tokens,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        "finish_reasons": [answer.choices[0].finish_reason, chunks[-1].choices[0].finish_reason],
        "continuation": continued.choices[0].text,
        "refused": refused,
    }


def try_instructor(url: str, _model: Path, _directory: Path) -> dict[str, Any]:
    """Objects, by two of the ways in which it asks for them."""
    instructor, openai = _installed("instructor"), _installed("openai")
    found = {}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        plain = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        pet = instructor.from_openai(plain, mode=mode).chat.completions.create(
            model="tiny", messages=MESSAGES, response_model=Pet, max_retries=0, max_tokens=ENOUGH_TOKENS, seed=SEED
        )
        found[mode.name] = pet.model_dump()
    return found


def try_lm_eval(url: str, model: Path, directory: Path) -> dict[str, Any]:
    """Scores of choices and continuations of a task in local files, with prompts as tokens and as texts."""
    lm_eval, tasks = _installed("lm_eval"), _installed("lm_eval.tasks")
    items = directory / "items.jsonl"
    items.write_text("\n".join(map(json.dumps, ITEMS)))
    for name, task in (("choice", CHOICE_TASK), ("continuation", CONTINUATION_TASK)):
        (directory / f"{name}.yaml").write_text(task.replace("ITEMS", str(items)))
    found: dict[str, Any] = {}
    for form, as_tokens in (("tokens", True), ("texts", False)):
        arguments = {
            "base_url": f"{url}/v1/completions",
            "model": "tiny",
            "tokenizer": str(model),
            "tokenized_requests": as_tokens,
            "max_retries": 1,
            "max_length": 512,
        }
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args=arguments,
            tasks=["local_choice", "local_continuation"],
            task_manager=tasks.TaskManager(include_path=str(directory), include_defaults=False),
            bootstrap_iters=0,
        )
        found[form] = {
            "accuracy": results["results"]["local_choice"]["acc,none"],
            "scores": [sample["filtered_resps"] for sample in results["samples"]["local_choice"]],
            "continuations": [sample["filtered_resps"] for sample in results["samples"]["local_continuation"]],
        }
    return found


def _installed(name: str) -> Any:
    """A module of the clients' own virtual environment."""
    return importlib.import_module(name)


CLIENTS: dict[str, Callable[[str, Path, Path], dict[str, Any]]] = {
    "langchain": try_langchain,
    "litellm": try_litellm,
    "instructor": try_instructor,
    "lm-eval": try_lm_eval,
}


def main() -> None:
    """Try one client."""
    name, url, model, directory = sys.argv[1:]
    with redirect_stdout(sys.stderr):  # what clients print
        found = CLIENTS[name](url, Path(model), Path(directory))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
