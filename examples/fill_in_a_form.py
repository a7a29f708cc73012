"""Let a model fill in a form: its answer is JSON that a schema allows, whatever the model would rather say.

    python examples/fill_in_a_form.py MODEL TEXT...

MODEL is a directory, a .gguf file, a run such as runs/quickstart, or a name that `tallow pull` has brought.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import tallow
from tallow.errors import TallowError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "mood": {"enum": ["glad", "sad", "neither"]},
    },
    "required": ["name", "born", "mood"],
    "additionalProperties": False,
}


def main(name: str, texts: list[str]) -> list[dict[str, Any]]:
    """Fill in one form for each text, all at once; returns the forms."""
    model = tallow.load(name)
    params = tallow.SamplingParams(max_new_tokens=200, structure=tallow.Structure(json_schema=SCHEMA))
    prompts = [f"{text}\nThe same as JSON: " for text in texts]
    forms = []
    for text, answer in zip(texts, model.generate_batch(prompts, params), strict=True):
        form = json.loads(answer.text)  # an answer that is cut at max_new_tokens would not be complete
        print(f"{text}\n  {form}")
        forms.append(form)
    return forms


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:] or ["Samuel Pepys, born in 1633, dined well and was very merry."])
    except TallowError as error:
        sys.exit(f"{error.message}: {error.hint}")
