"""Teach a model with LoRA on a few records of one's own, then use it with and without the adapter.

    python examples/tune_with_lora.py MODEL RECORDS.jsonl DIRECTORY QUESTION

MODEL is one that is not quantized: `runs/quickstart/tune`, not `runs/quickstart`, whose last model is.
A record is {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tallow
from tallow.errors import TallowError
from tallow.models.store import resolve
from tallow.tune.lora import LoraConfig
from tallow.tune.sft import TuneConfig, TuneLoopConfig


def main(model: str, records: Path, directory: Path, question: str, steps: int = 60) -> tuple[str, str]:
    """Tune; returns the answers to the question before and after."""
    config = TuneConfig(
        model=resolve(model),
        data=(records,),
        method="lora",
        lora=LoraConfig(rank=8, alpha=16.0),
        validation_fraction=0.0,
        loop=TuneLoopConfig(steps=steps, batch_size=4, sequence_length=128, learning_rate=2e-3),
    )
    result = tallow.run_stage("tune", config, tallow.StageRun(directory / "tune"))
    print(f"loss on the answers: {result['loss']:.3f}; adapter in {directory / 'tune' / 'adapter'}")

    messages = [{"role": "user", "content": question}]
    params = tallow.SamplingParams(max_new_tokens=40)
    before, after = (tallow.load(path).chat(messages, params).text for path in (model, directory / "tune"))
    print(f"before: {before}\nafter:  {after}")
    return before, after


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
    except TallowError as error:
        sys.exit(f"{error.message}: {error.hint}")
