"""The tune stage learns answers, and only answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tallow.engine.language_model import load
from tallow.engine.request import SamplingParams
from tallow.errors import DataError, UsageError
from tallow.models.formats import load_model, load_tokenizer, save_model
from tallow.models.quantization import quantize_modules
from tallow.run import StageRun
from tallow.stages import run_stage
from tallow.train.batch_plan import plan_batches
from tallow.train.trainable import refuse_quantized
from tallow.tune.adapter import load_adapter
from tallow.tune.examples import Example
from tallow.tune.lora import merge_adapters
from tallow.tune.sft import TuneConfig, TuneLoopConfig, _batches, hold_out

from .conftest import tiny_model

MANUAL = Path(__file__).resolve().parents[2] / "docs" / "use.md"
QUESTIONS = {"sky": "blue", "grass": "green", "coal": "black", "snow": "white"}


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    with path.open("w") as file:
        for thing, colour in QUESTIONS.items():
            messages = [{"role": "user", "content": f"{thing}?"}, {"role": "assistant", "content": colour}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def settings(model: Path, data: Path, **changes: Any) -> TuneConfig:
    loop = {"steps": 200, "batch_size": 2, "sequence_length": 80, "learning_rate": 5e-3, "precision": "fp32"}
    return TuneConfig.model_validate(
        {"model": model, "data": [data], "validation_fraction": 0, "loop": loop, **changes}
    )


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_tiny_model_learns_four_answers_and_when_to_stop(
    method: str, model_directory: Path, chat_file: Path, tmp_path: Path
) -> None:
    changes = {"lora": {"rank": 16, "alpha": 64.0}} if method == "lora" else {}
    result = run_stage("tune", settings(model_directory, chat_file, method=method, **changes), StageRun(tmp_path / "t"))
    assert result["loss"] < 0.2, "far below the 1.4 nats of the first letter alone"
    tuned = load(tmp_path / "t" / "model", "fp32")
    for thing, colour in QUESTIONS.items():
        answer = tuned.chat([{"role": "user", "content": f"{thing}?"}], SamplingParams(max_new_tokens=20))
        assert (answer.text, answer.finish_reason) == (colour, "stop")


def test_the_adapter_on_the_base_is_the_merged_model(model_directory: Path, chat_file: Path, tmp_path: Path) -> None:
    config = settings(model_directory, chat_file, method="lora")
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"steps": 5})})
    run_stage("tune", config, StageRun(tmp_path / "t"))
    adapted = load_model(model_directory)
    load_adapter(adapted, tmp_path / "t" / "adapter")
    merge_adapters(adapted)
    merged = load_model(tmp_path / "t" / "model")
    for (name, ours), (_, theirs) in zip(adapted.named_parameters(), merged.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0, msg=name)


def test_the_manuals_ways_to_use_and_to_merge_an_adapter(
    model_directory: Path, chat_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(model_directory, chat_file, method="lora")
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"steps": 2})})
    run_stage("tune", config, StageRun(tmp_path / "runs" / "mine" / "tune"))
    model_directory.rename(tmp_path / "runs" / "mine" / "pretrain")
    _, section = MANUAL.read_text(encoding="utf-8").split("## LoRA adapters\n")
    monkeypatch.chdir(tmp_path)
    for block in section.split("```python\n")[1:3]:
        exec(block.split("```")[0], {})
    expected = dict(load_model(Path("runs/mine/tune/model")).named_parameters())
    for name, parameter in load_model(Path("merged")).named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=0, rtol=0, msg=name)


def test_an_adapter_named_as_a_model_is_refused_with_the_way(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="is an adapter") as refused:
        load(tmp_path / "adapter")
    assert "--adapter" in refused.value.hint
    save_model(tiny_model(300), None, tmp_path / "model")
    with pytest.raises(UsageError) as refused:
        load(tmp_path / "adapter")
    assert f"name {tmp_path}," in refused.value.hint


def test_the_end_of_a_turn_becomes_an_end_token_of_the_model(
    model_directory: Path, chat_file: Path, tmp_path: Path
) -> None:
    config = settings(model_directory, chat_file)
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"steps": 1})})
    run_stage("tune", config, StageRun(tmp_path / "t"))
    end = load_tokenizer(model_directory).backend.token_to_id("<|im_end|>")
    assert end in load_model(tmp_path / "t" / "model").config.eos_ids


def test_sets_and_models_that_cannot_be_tuned_are_refused(
    model_directory: Path, chat_file: Path, tmp_path: Path
) -> None:
    silent = tmp_path / "silent.jsonl"
    silent.write_text(json.dumps({"messages": [{"role": "user", "content": "Hello?"}]}) + "\n")
    with pytest.raises(DataError, match=r"silent.jsonl, line 1: has no assistant message"):
        run_stage("tune", settings(model_directory, silent), StageRun(tmp_path / "a"))
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text(json.dumps({"text": "Hello?"}) + "\n")
    with pytest.raises(DataError, match=r"foreign.jsonl, line 1: has neither"):
        run_stage("tune", settings(model_directory, foreign), StageRun(tmp_path / "b"))
    with pytest.raises(UsageError, match="context has 256"):
        run_stage("tune", settings(model_directory, chat_file, loop={"sequence_length": 300}), StageRun(tmp_path / "c"))
    model = load_model(model_directory)
    save_model(quantize_modules(model, 8, 32), load_tokenizer(model_directory), tmp_path / "q8")
    with pytest.raises(UsageError, match="quantized"):
        run_stage("tune", settings(tmp_path / "q8", chat_file), StageRun(tmp_path / "d"))


def test_bad_records_are_kept_in_a_file_of_the_run(model_directory: Path, chat_file: Path, tmp_path: Path) -> None:
    with chat_file.open("a") as file:
        file.write(json.dumps({"messages": []}) + "\n")
    config = settings(model_directory, chat_file, max_bad_fraction=0.3)
    config = config.model_copy(update={"loop": config.loop.model_copy(update={"steps": 1})})
    for _ in range(2):
        run_stage("tune", config, StageRun(tmp_path / "t", resume=False))
        [line] = (tmp_path / "t" / "rejected.jsonl").read_text().splitlines()
        assert json.loads(line)["reason"] == "messages is no list, or an empty one"
    with pytest.raises(DataError, match="1 of 5 records cannot be used"):
        run_stage("tune", settings(model_directory, chat_file), StageRun(tmp_path / "a"))


def test_a_quantized_model_of_a_run_is_refused_with_the_one_that_it_was_made_of(tmp_path: Path) -> None:
    model = tiny_model(300)
    for product in ("pretrain/model", "tune/model"):
        save_model(model, None, tmp_path / product)
    refuse_quantized(model, tmp_path / "tune" / "model")
    with pytest.raises(UsageError, match="quantized") as refused:
        refuse_quantized(quantize_modules(model, 8, 32), tmp_path / "compress" / "model")
    assert refused.value.hint == f"name {tmp_path / 'tune'}, and compress the result"


def test_rows_go_by_their_numbers_whatever_the_epoch() -> None:
    rows = [[Example([index] * 4, [True] * 4)] for index in range(5)]
    loop = TuneLoopConfig(steps=4, batch_size=3, micro_batch_size=2, sequence_length=4)
    batches = _batches(rows, plan_batches(loop, rows=12), 5, 0, loop)
    seen: list[int] = []
    for step in range(4):
        for packed in batches(step):
            assert packed.numbers_B is not None
            assert (packed.numbers_B % 5).tolist() == packed.tokens_BT[:, 0].tolist()
            seen += packed.numbers_B.tolist()
    assert sorted(seen[:10]) == list(range(10))
    assert len(set(seen)) == 12


def test_equal_examples_fall_on_one_side() -> None:
    examples = [Example([n % 50], [True]) for n in range(400)]
    training, held_out = hold_out(examples, 0.3)
    assert len(training) + len(held_out) == 400
    assert held_out
    assert {example.ids[0] for example in training}.isdisjoint(example.ids[0] for example in held_out)
