"""Sample answers: what a model says to a few prompts, kept beside its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tallow.engine.language_model import load
from tallow.engine.request import SamplingParams
from tallow.files import write_json
from tallow.recipe import Section
from tallow.run import StageRun


class SampleConfig(Section):
    """Settings of the sample stage.

    Args:
        model: The model that answers.
        prompts: What it is asked; wrapped in the chat template where the model has one.
        sampling: How tokens are chosen; the seed is fixed, so that a rerun gives the same answers.
    """

    model: Path
    prompts: tuple[str, ...] = ()
    sampling: SamplingParams = SamplingParams(max_new_tokens=64, temperature=0.7, top_p=0.95, seed=0)


def sample(config: SampleConfig, run: StageRun) -> dict[str, Any]:
    """Answer each prompt; the product is `samples.json`, a list of prompts and answers."""
    model = load(config.model)
    chat = model.tokenizer.chat_template is not None
    samples = []
    for prompt in config.prompts:
        if chat:
            answer = model.chat([{"role": "user", "content": prompt}], config.sampling)
        else:
            answer = model.generate(prompt, config.sampling)
        run.ledger.tokens += len(answer.prompt_ids) + len(answer.ids)
        samples.append({"prompt": prompt, "answer": answer.text, "finish_reason": answer.finish_reason})
    write_json(run.directory / "samples.json", {"model": str(config.model), "samples": samples})
    return {"samples": len(samples)}
