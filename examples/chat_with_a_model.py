"""Answer questions with a model, piece by piece, and look at what it was sure of.

    python examples/chat_with_a_model.py MODEL QUESTION...

MODEL is a directory, a .gguf file, a run such as runs/quickstart, or a name that `tallow pull` has brought.
"""

from __future__ import annotations

import math
import sys

import tallow
from tallow.errors import TallowError


def main(name: str, questions: list[str]) -> list[str]:
    """Ask the questions in one conversation; returns the answers."""
    model = tallow.load(name)
    params = tallow.SamplingParams(max_new_tokens=60, temperature=0.7, top_p=0.95, seed=0)
    messages: list[dict[str, str]] = []
    for question in questions:
        print(f"> {question}")
        messages.append({"role": "user", "content": question})
        stream = model.stream_chat(messages, params)
        for piece in stream:
            print(piece, end="", flush=True)
        answer = stream.result()
        messages.append({"role": "assistant", "content": answer.text})
        mean = sum(answer.log_probs) / len(answer.log_probs)
        print(f"\n  [{len(answer.ids)} tokens, each {math.exp(mean):.0%} likely to the model on average]")
    return [message["content"] for message in messages if message["role"] == "assistant"]


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:] or ["Who are you?"])
    except TallowError as error:
        sys.exit(f"{error.message}: {error.hint}")
