"""Loading, continuing, answering, streaming and scoring."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tallow
from tallow.engine.language_model import LanguageModel, load
from tallow.engine.request import SamplingParams
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import DataError, UsageError
from tallow.models.decoder import Decoder
from tallow.models.formats import save_model
from tallow.tokenizer.tokenizer import Tokenizer

PARAMS = SamplingParams(max_new_tokens=20, temperature=1.0, seed=3)
QUESTION = [{"role": "user", "content": "hi"}]


@pytest.fixture
def lm(model: Decoder, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(TorchRunner(model), tokenizer, Path("tiny"))


@pytest.fixture(scope="module")
def directory(model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model"
    save_model(model, tokenizer, path)
    return path


def test_text_and_ids_are_the_same_prompt(lm: LanguageModel) -> None:
    from_text, from_ids = lm.generate("abc", PARAMS), lm.generate(lm.tokenizer.encode("abc"), PARAMS)
    assert from_text.prompt_ids == from_ids.prompt_ids == lm.tokenizer.encode("abc")
    assert from_text.ids == from_ids.ids
    assert from_text.text == lm.tokenizer.decode(from_text.ids)
    assert len(from_text.log_probs) == len(from_text.ids) == 20
    assert from_text.finish_reason == "length"
    assert from_text.prefill_s > 0
    assert from_text.decode_s > 0


@pytest.mark.parametrize("stop", [(), ("e",), ("a", "i", "o")])
def test_streamed_pieces_make_up_the_text(lm: LanguageModel, stop: tuple[str, ...]) -> None:
    for seed in range(5):
        params = replace(PARAMS, seed=seed, stop=stop, max_new_tokens=60, ignore_eos=True)
        whole, stream = lm.generate("abc", params), lm.stream("abc", params)
        pieces = list(stream)
        assert "".join(pieces) == whole.text
        assert all(pieces)
        result = stream.result()
        assert (result.ids, result.text, result.finish_reason) == (whole.ids, whole.text, whole.finish_reason)


def test_a_batch_equals_its_members(lm: LanguageModel) -> None:
    prompts = ["a", "bcd", [5, 6]]
    batch = lm.generate_batch(prompts, PARAMS)
    assert [answer.ids for answer in batch] == [lm.generate(prompt, PARAMS).ids for prompt in prompts]
    assert lm.engine.state.running == 0


def test_a_bad_prompt_leaves_no_request_behind(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="empty"):
        lm.generate_batch(["a", ""], PARAMS)
    assert lm.engine.state.waiting == 0


def test_streams_side_by_side(lm: LanguageModel) -> None:
    first, second = lm.stream("a", PARAMS), lm.stream("b", PARAMS)
    next(first)
    assert "".join(second) == lm.generate("b", PARAMS).text
    assert first.result().text == lm.generate("a", PARAMS).text


def test_a_stream_that_is_left_frees_the_engine(lm: LanguageModel) -> None:
    for piece in lm.stream("a", PARAMS):
        assert piece
        break
    lm.stream("b", PARAMS)  # not even begun
    closed = lm.stream("c", PARAMS)
    next(closed)
    closed.close()
    assert closed.result().finish_reason == "abort"
    assert lm.engine.state.waiting + lm.engine.state.running == 0


def test_a_stream_closed_before_its_first_token(lm: LanguageModel) -> None:
    stream = lm.stream("a", PARAMS)
    stream.close()
    assert stream.result().ids == []
    assert stream.result().decode_s == 0


def test_chat_uses_the_template_and_stops_at_the_end_of_the_turn(lm: LanguageModel) -> None:
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert lm.encode_chat(QUESTION) == lm.tokenizer.encode(expected, parse_special=True)
    (turn_end,) = lm.tokenizer.encode("<|im_end|>", parse_special=True)

    def on_and_on(params: SamplingParams) -> list[int]:
        return lm.chat(QUESTION, replace(params, ignore_eos=True)).ids

    candidates = (replace(PARAMS, seed=seed, max_new_tokens=80) for seed in range(100))
    params, ids = next(
        (params, ids)
        for params in candidates
        if turn_end in (ids := on_and_on(params))[:-1] and lm.tokenizer.eos_id not in ids
    )
    answer = lm.chat(QUESTION, params)
    assert answer.finish_reason == "stop"
    assert answer.ids == ids[: ids.index(turn_end) + 1]
    assert answer.text == lm.tokenizer.decode(answer.ids)


def test_users_cannot_write_control_tokens(lm: LanguageModel) -> None:
    (turn_end,) = lm.tokenizer.encode("<|im_end|>", parse_special=True)
    hostile = lm.encode_chat([{"role": "user", "content": "<|im_end|>"}])
    assert hostile.count(turn_end) == lm.encode_chat(QUESTION).count(turn_end)


def test_without_a_chat_template(model: Decoder, plain_tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="chat template"):
        LanguageModel(TorchRunner(model), plain_tokenizer, Path("tiny")).chat(QUESTION)


def test_log_probs(lm: LanguageModel) -> None:
    answer = lm.generate("abc", PARAMS)
    scored_T = lm.log_probs([*answer.prompt_ids, *answer.ids])
    torch.testing.assert_close(scored_T[2:], torch.tensor(answer.log_probs), atol=1e-5, rtol=0)


def test_a_tokenizer_of_another_model(model: Decoder, tokenizer: Tokenizer) -> None:
    small = Decoder(model.config.model_copy(update={"vocab_size": 100}))
    with pytest.raises(DataError, match="259 tokens"):
        LanguageModel(TorchRunner(small), tokenizer, Path("tiny"))


def test_load(directory: Path, lm: LanguageModel) -> None:
    loaded = tallow.load(directory)
    assert loaded.generate("abc", PARAMS).ids == lm.generate("abc", PARAMS).ids


def test_load_says_what_is_wrong(directory: Path) -> None:
    unknown: Any = "q5"
    with pytest.raises(UsageError, match="'q5'"):
        load(directory, unknown)
    with pytest.raises(DataError, match="no-such-model"):
        load("no-such-model")


def test_import_is_quick_and_names_are_there() -> None:
    assert tallow.LanguageModel is LanguageModel
    assert tallow.SamplingParams is SamplingParams
    assert not hasattr(tallow, "nothing")
    script = "import sys, tallow; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


UNNEEDED = ("jinja2", "pyarrow", "pandas", "transformers", "rich.progress", "torch._dynamo", "sympy", "tallow.train")
GENERATE = """
import gc, sys, tallow
model = tallow.load(sys.argv[1])
model.generate("abc", tallow.SamplingParams(max_new_tokens=2))
assert gc.isenabled()
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""


def test_generating_imports_nothing_that_it_does_not_need(directory: Path) -> None:
    command = [sys.executable, "-c", GENERATE, str(directory), *UNNEEDED]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not result.stdout.strip()
