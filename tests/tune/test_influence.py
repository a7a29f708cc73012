"""What teaches a task is found among what does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tallow.cli import app
from tallow.data.instructions.samples import Conversation
from tallow.data.instructions.spellings import read_sample, recognise
from tallow.data.selection.chosen import Wanted
from tallow.errors import DataError, UsageError
from tallow.models.blocks.context import SequenceContext
from tallow.objectives.causal import causal
from tallow.objectives.loss import summed_loss
from tallow.parallel import ALONE
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.train.config import LoopConfig
from tallow.train.placing import lay_out
from tallow.train.update import Updater
from tallow.tune.examples import Example, encode_answered, to_packed
from tallow.tune.influence import InfluenceConfig, _Gradients, influence
from tallow.tune.lora import LoraConfig, add_adapters
from tallow.tune.select import select

from .conftest import tiny_model

CONFIG = InfluenceConfig(
    lora=LoraConfig(rank=4), warmup_examples=24, epochs=2, batch_size=8, learning_rate=5e-3, projection=2048
)
SUBJECTS = ("sky", "sea", "coal", "snow", "grass", "rose", "sun", "night", "milk", "blood", "ash", "gold")


def record(task: str, subject: str, number: int) -> dict[str, Any]:
    """Two tasks: one is answered by praise, the other by a number."""
    question = f"{'praise' if task == 'praise' else 'count'} {subject}"
    return {"instruction": question, "output": f"lovely {subject}" if task == "praise" else str(10**7 + 37**5 * number)}


RECORDS = [record(task, subject, n) for n, subject in enumerate(SUBJECTS) for task in ("praise", "number")]
TARGETS = [record("praise", subject, 0) for subject in ("leaf", "tar", "bone")]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    for name, records in (("data", RECORDS), ("target", TARGETS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path / "data.jsonl", tmp_path / "target.jsonl"


def encode(records: list[dict[str, Any]], tokenizer: Tokenizer) -> list[Example]:
    samples = [read_sample(record, recognise(record)) for record in records]
    return [encode_answered(sample, tokenizer) for sample in samples if isinstance(sample, Conversation)]


def target_loss(examples: list[Example], targets: list[Example], vocab_size: int) -> float:
    """Loss of the targets after adapters have learned the examples."""
    model = tiny_model(vocab_size)
    add_adapters(model, CONFIG.lora, seed=1)
    loop = LoopConfig(steps=20, batch_size=len(examples), sequence_length=64, learning_rate=5e-3, precision="fp32")
    updater = Updater(lay_out(model, loop, ALONE), causal, loop)
    row_tokens = max(map(len, examples))
    for step in range(20):
        updater.update(step, [to_packed([[example] for example in examples], row_tokens, 0)], 5e-3, "fp32")
    packed = causal(to_packed([[example] for example in targets], max(map(len, targets)), 0))
    with torch.no_grad():
        return float(summed_loss(model, packed) / packed.loss_mask_BT.sum())


def test_what_teaches_the_task_is_chosen_and_does_teach_it(
    model_directory: Path, files: tuple[Path, Path], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    data, target = files
    result = select(model_directory, [data], [target], tmp_path / "out.jsonl", CONFIG, Wanted(fraction=0.5))
    assert (result["selected"], result["examples"]) == (12, 24)
    chosen = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(record in RECORDS for record in chosen)
    right = sum(record["instruction"].startswith("praise") for record in chosen)
    assert right >= 11, "by chance six"
    scores = [json.loads(line) for line in (tmp_path / "out.jsonl.scores.jsonl").read_text().splitlines()]
    assert [line["place"] for line in scores] == [f"{data.as_posix()}, line {n}" for n in range(1, 25)]
    assert sum(line["selected"] for line in scores) == 12
    assert json.loads((tmp_path / "out.jsonl.json").read_text())["settings"]["fraction"] == 0.5

    others = [record for record in RECORDS if record not in chosen]
    losses = [
        target_loss(encode(records, tokenizer), encode(TARGETS, tokenizer), tokenizer.vocab_size)
        for records in (chosen, others)
    ]
    assert losses[0] < losses[1] - 0.1


def test_scores_are_cosines_and_always_the_same(tokenizer: Tokenizer) -> None:
    examples, targets = (
        encode(RECORDS[:6], tokenizer),
        {"a": encode(TARGETS, tokenizer), "b": encode(RECORDS[:1], tokenizer)},
    )
    first = influence(tiny_model(tokenizer.vocab_size), examples, targets, CONFIG)
    again = influence(tiny_model(tokenizer.vocab_size), examples, targets, CONFIG)
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert first.shape == (6, 2)
    assert float(first.abs().max()) <= 1
    assert int(first[:, 1].argmax()) == 0, "nothing teaches an example as it does itself"


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_an_update_is_what_adam_does_and_projections_keep_cosines(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer.vocab_size)
    add_adapters(model, CONFIG.lora, seed=0)
    loop = LoopConfig(
        steps=9, batch_size=2, sequence_length=64, learning_rate=1e-3, precision="fp32", weight_decay=0.0, clip_norm=1e9
    )
    updater = Updater(lay_out(model, loop, ALONE), causal, loop)
    examples = encode(RECORDS, tokenizer)
    for step in range(3):
        updater.update(step, [to_packed([examples[step : step + 1]], len(examples[step]), 0)], 1e-3, "fp32")
    gradients = _Gradients(model, updater, CONFIG, 0)
    expected = gradients.update(examples[7])
    before = flat(updater.parameters.values())
    updater.update(4, [to_packed([examples[7:8]], len(examples[7]), 0)], 1e-3, "fp32")
    step_taken = gradients._project(before - flat(updater.parameters.values())) / 1e-3
    torch.testing.assert_close(step_taken, expected, atol=2e-2, rtol=2e-2)
    generator = torch.Generator().manual_seed(0)
    size = len(before)
    one, other = torch.randn(2, size, generator=generator)
    other += one
    cosine = torch.nn.functional.cosine_similarity
    projected = cosine(gradients._project(one), gradients._project(other), dim=0)
    assert float(projected - cosine(one, other, dim=0)) == pytest.approx(0, abs=0.06)


def test_a_single_update_is_not_in_vain(tokenizer: Tokenizer) -> None:
    """With few examples and one epoch there is one, whose learning rate must not be that of the end, 0."""
    examples, targets = encode(RECORDS[:4], tokenizer), {"a": encode(RECORDS[:1], tokenizer)}
    config = CONFIG.model_copy(update={"epochs": 1})
    scores = influence(tiny_model(tokenizer.vocab_size), examples, targets, config)
    assert int(scores[:, 0].argmax()) == 0


def test_the_mean_gradient_is_that_of_the_mean_loss(tokenizer: Tokenizer) -> None:
    model = tiny_model(tokenizer.vocab_size)
    add_adapters(model, CONFIG.lora, seed=0)
    loop = LoopConfig(steps=1, batch_size=1, sequence_length=64, learning_rate=1e-3, precision="fp32")
    updater = Updater(lay_out(model, loop, ALONE), causal, loop)
    examples = encode(RECORDS[:3], tokenizer)
    gradients = _Gradients(model, updater, CONFIG, 0)
    total = torch.zeros(())
    for example in examples:
        ids = torch.tensor([example.ids])
        logits = model.logits(model(ids[:, :-1], SequenceContext.plain(1, len(example) - 1)))[0]
        learned = torch.tensor(example.learned[1:])
        total = total + torch.nn.functional.cross_entropy(logits[learned], ids[0, 1:][learned]) / 3
    expected = gradients._project(flat(torch.autograd.grad(total, list(updater.parameters.values()))))
    torch.testing.assert_close(gradients.mean(examples), expected, atol=1e-5, rtol=1e-4)


def test_nothing_to_choose_from_or_by_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to choose"):
        influence(tiny_model(300), [], {"a": []}, CONFIG)
    with pytest.raises(DataError, match="nothing to choose"):
        influence(tiny_model(300), [Example([1, 2], [False, True])], {"a": []}, CONFIG)


def test_the_command(
    model_directory: Path, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["data", "select", str(model_directory), "--data", str(files[0]), "--target", str(files[1])]
    settings = ["--set", "epochs=1", "--set", "lora.rank=2", "--set", "projection=64", "--fraction", "0.1"]
    app([*arguments, "--out", str(tmp_path / "out.jsonl"), *settings, "--json"], standalone_mode=False)
    result = json.loads(capsys.readouterr().out)
    assert (result["selected"], sum(each["selected"] for each in result["ranges"])) == (3, 3)
    with pytest.raises(UsageError, match="--min and --max are of what texts tell"):
        app([*arguments, "--out", str(tmp_path / "out.jsonl"), "--min", "distinct=1"], standalone_mode=False)
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3
