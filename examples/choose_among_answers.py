"""Three ways to more than one answer: draw several, keep the best of many, or search for the likeliest.

    python examples/choose_among_answers.py MODEL PROMPT

MODEL is a directory, a .gguf file, a run such as runs/quickstart, or a name that `tallow pull` has brought.
"""

from __future__ import annotations

import sys

import tallow
from tallow.engine.generation import Generation
from tallow.errors import TallowError


def main(name: str, prompt: str) -> dict[str, list[Generation]]:
    """Continue the prompt; returns the answers that each way has found."""
    model = tallow.load(name)
    params = tallow.SamplingParams(max_new_tokens=20, temperature=1.0, seed=0)
    ways = {
        "three at random": model.sample(prompt, params, 3),
        "the best three of twelve": model.sample(prompt, params, 3, best_of=12),
        "the best three of a search": model.beam_search(prompt, tallow.BeamParams(num_beams=3, max_new_tokens=20)),
    }
    for way, answers in ways.items():
        print(f"{way}:")
        for answer in answers:
            print(f"  {answer.score:6.3f} {answer.text!r}")
    return ways


if __name__ == "__main__":
    try:
        main(sys.argv[1], " ".join(sys.argv[2:]) or "Up, and to the office, where")
    except TallowError as error:
        sys.exit(f"{error.message}: {error.hint}")
