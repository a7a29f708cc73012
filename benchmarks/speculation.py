"""Speculative decoding on and off, where it helps and where it does not: one stream, greedy, the same tokens.

`python benchmarks/speculation.py [--model smollm2-135m] [--precision q4]`: a Markdown table.
"""

from __future__ import annotations

import argparse
import statistics
import time

import tallow
from tallow.engine.language_model import LanguageModel

PASSAGE = (
    "Up betimes, and by water to Westminster, where I met my Lord and walked with him an hour in the Park. He told me "
    "of the business of the fleet, and how the King is resolved to have the ships ready by the spring. Thence home to "
    "dinner, where my wife had a good piece of beef, and after dinner to the office till late, and so to bed."
)
TASKS = {
    "copy a text": f"Repeat this text word for word, nothing else:\n\n{PASSAGE}",
    "mend a text": f"Write this text again with every 'I' replaced by 'he':\n\n{PASSAGE}",
    "tell freely": "Tell a story about a lighthouse keeper and a storm.",
}
NEW_TOKENS = 128
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--precision", default="q4", choices=("fp32", "bf16", "q8", "q4"))
    options = parser.parse_args()
    ways = ("off", "ngram", options.model)
    models = {way: tallow.load(options.model, options.precision, speculate=way) for way in ways}
    print(f"| {options.precision}, tokens/s | off | n-gram | itself in 8 bits | accepted | accepted |")
    print("|---|---|---|---|---|---|")
    for task, text in TASKS.items():
        prompt = [{"role": "user", "content": text}]
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        before = {way: _counts(model) for way, model in models.items()}
        answers = set()
        for _ in range(ROUNDS):
            for way, model in models.items():
                params = tallow.SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
                begin = time.perf_counter()
                answer = model.generate(prompt, params)
                speeds[way].append(len(answer.ids) / (time.perf_counter() - begin))
                answers.add(tuple(answer.ids))
        assert len(answers) == 1, "speculation has changed an answer"
        cells = [f"{statistics.median(speeds[way]):.0f}" for way in ways]
        for way in ways[1:]:
            guessed, accepted = (new - old for new, old in zip(_counts(models[way]), before[way], strict=True))
            cells.append(f"{accepted} of {guessed}")
        print(f"| {task} | " + " | ".join(cells) + " |", flush=True)


def _counts(model: LanguageModel) -> tuple[int, int]:
    state = model.engine.state
    return state.guessed_tokens, state.accepted_tokens


if __name__ == "__main__":
    main()
