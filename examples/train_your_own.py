"""From a text file to a language model that continues it, in a minute.

    python examples/train_your_own.py TEXT_FILE DIRECTORY [STEPS]

The stages and settings are those of a recipe; docs/recipe.md describes them all.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tallow
from tallow.errors import TallowError


def main(text: Path, directory: Path, steps: int = 200) -> str:
    """Train a small model on a text; returns how it goes on after the text's first words."""
    recipe = tallow.Recipe.parse(
        {
            "prepare": {"sources": [str(text)], "split": "paragraphs"},
            "tokenizer": {"vocab_size": 1024},
            "encode": {},
            "pretrain": {
                "model": {"hidden_size": 128, "num_layers": 4, "intermediate_size": 352},
                "loop": {"steps": steps, "batch_size": 8, "sequence_length": 128, "learning_rate": 4e-3},
            },
            "evaluate": {"window": 128, "max_tokens": 4096},
        }
    )
    results = tallow.run_recipe(recipe, directory)
    print(f"held-out text: {results['evaluate']['pretrain_bits_per_byte']:.3f} bits per byte")

    model = tallow.load(directory)
    start = " ".join(text.read_text(encoding="utf-8").split()[:4])
    answer = model.generate(start, tallow.SamplingParams(max_new_tokens=60, temperature=0.8, seed=1))
    print(f"{start} →{answer.text}")
    return answer.text


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), *(int(argument) for argument in sys.argv[3:]))
    except TallowError as error:
        sys.exit(f"{error.message}: {error.hint}")
