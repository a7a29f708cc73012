"""Loading, continuing, answering, streaming and scoring."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.engine.conftest import make_model, make_tokenizer, tiny

import tallow
from tallow.engine.beam_search import BeamParams
from tallow.engine.engine import MAX_ANSWERS
from tallow.engine.language_model import LanguageModel, load
from tallow.engine.request import SamplingParams
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import DataError, UsageError
from tallow.kernels import cpu
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


@pytest.mark.parametrize(
    "prompt", [None, 5, b"abc", QUESTION[0], [1, *QUESTION], [*QUESTION, "x"], [True], ["a"], [None], iter([1])]
)
def test_what_is_no_prompt(lm: LanguageModel, prompt: Any) -> None:
    for ask in (lm.generate, lm.stream, lm.beam_search, lm.log_probs):
        with pytest.raises(UsageError, match="the prompt"):
            ask(prompt)
    assert lm.engine.state.waiting == 0


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
    np.testing.assert_allclose(scored_T[2:], answer.log_probs, atol=1e-5, rtol=0)


def test_every_kind_of_prompt_is_scored(lm: LanguageModel) -> None:
    for prompt in ("abc", lm.tokenizer.encode("abc"), QUESTION):
        assert np.array_equal(lm.log_probs(prompt), lm.log_probs(lm.encode_prompt(prompt)))
    assert lm.encode_prompt(QUESTION) == lm.encode_chat(QUESTION)


def test_what_was_asked_to_be_told(lm: LanguageModel) -> None:
    plain = lm.generate("abc", PARAMS)
    assert (plain.top_log_probs, plain.prompt_log_probs, plain.prompt_top_log_probs) == ([], [], [])
    answer = lm.generate("abc", replace(PARAMS, top_log_probs=3, prompt_log_probs=True))
    assert answer.ids == plain.ids
    assert answer.score == pytest.approx(sum(plain.log_probs) / 20)
    assert [len(top) for top in answer.top_log_probs] == [3] * 20
    assert [len(top) for top in answer.prompt_top_log_probs] == [3] * 2
    np.testing.assert_allclose(answer.prompt_log_probs, lm.log_probs("abc"), atol=1e-5, rtol=0)
    scored = lm.generate("abc", SamplingParams(max_new_tokens=0, prompt_log_probs=True))
    assert (scored.ids, scored.score, len(scored.prompt_log_probs)) == ([], 0.0, 2)


def test_samples_are_the_answers_of_their_seeds(lm: LanguageModel) -> None:
    answers = lm.sample("abc", PARAMS, 4)
    assert [answer.ids for answer in answers] == [
        lm.generate("abc", replace(PARAMS, seed=seed)).ids for seed in (3, 4, 5, 6)
    ]
    assert len({tuple(answer.ids) for answer in answers}) == 4


def test_the_best_of_several_are_those_with_the_likeliest_tokens(lm: LanguageModel) -> None:
    params = replace(PARAMS, stop=("e", "a"), max_new_tokens=60)
    drawn = lm.sample("abc", params, 8)
    assert len({len(answer.ids) for answer in drawn}) > 1, "or the mean would be as good as the sum"
    means = {tuple(answer.ids): sum(answer.log_probs) / len(answer.ids) for answer in drawn}
    best = lm.sample("abc", params, 3, best_of=8)
    assert [tuple(answer.ids) for answer in best] == sorted(means, key=lambda ids: -means[ids])[:3]


@pytest.mark.parametrize(
    ("temperature", "n", "best_of", "message"),
    [
        (1.0, 3, 2, "3 of 2"),
        (1.0, -1, 5, "-1 of 5"),
        (1.0, None, None, "n is None"),
        (1.0, 1, 2.5, "best_of is 2.5"),
        (1.0, 1, MAX_ANSWERS + 1, "1,025 answers"),
        (0.0, 2, None, "temperature 0"),
        (0.0, 1, 2, "temperature 0"),
        (1.0, 0, None, "0 of 0"),
    ],
)
def test_samples_that_make_no_sense(lm: LanguageModel, temperature: float, n: Any, best_of: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lm.sample("abc", replace(PARAMS, temperature=temperature), n, best_of=best_of)


def test_one_beam_is_the_greedy_answer(lm: LanguageModel) -> None:
    for prompt in ("abc", QUESTION):
        greedy = lm.generate(prompt, SamplingParams(max_new_tokens=30))
        [found] = lm.beam_search(prompt, BeamParams(1, 30))
        assert (found.prompt_ids, found.ids, found.text) == (greedy.prompt_ids, greedy.ids, greedy.text)
        assert found.finish_reason == greedy.finish_reason
        assert found.score == pytest.approx(greedy.score, abs=1e-5)
        assert found.prefill_s > 0
        assert found.decode_s > 0


def test_beams_end_where_the_answer_does(lm: LanguageModel) -> None:
    ends = tuple(range(3, 131))
    found = lm.beam_search("abc", BeamParams(4, 20, length_penalty=0.0, stop_ids=ends))
    assert [answer.score for answer in found] == sorted((sum(answer.log_probs) for answer in found), reverse=True)
    stopped = [answer for answer in found if answer.finish_reason == "stop" and answer.ids[-1] in ends]
    assert stopped
    assert all(answer.text == lm.tokenizer.decode(answer.ids[:-1]) for answer in stopped)
    assert lm.engine.state.running == lm.engine.state.waiting == 0


def test_the_end_of_the_turn_ends_answers_to_conversations(lm: LanguageModel) -> None:
    (turn_end,) = lm.tokenizer.encode("<|im_end|>", parse_special=True)
    params = SamplingParams(max_new_tokens=90 - len(lm.encode_chat(QUESTION)), temperature=1.0, seed=0)
    as_messages = lm.sample(QUESTION, params, 12)
    as_tokens = lm.sample(lm.encode_chat(QUESTION), params, 12)
    ended = [answer for answer in as_messages if answer.ids[-1] == turn_end]
    assert ended
    assert all(answer.finish_reason == "stop" for answer in ended)
    assert any(turn_end in answer.ids[:-1] for answer in as_tokens)
    chatted, streamed = lm.chat(QUESTION, params), lm.stream(QUESTION, params).result()
    assert chatted.ids == streamed.ids == lm.generate_batch([QUESTION], params)[0].ids == as_messages[0].ids


def test_a_tokenizer_of_another_model(model: Decoder, tokenizer: Tokenizer) -> None:
    small = Decoder(model.config.model_copy(update={"vocab_size": 100}))
    with pytest.raises(DataError, match="259 tokens"):
        LanguageModel(TorchRunner(small), tokenizer, Path("tiny"))


def test_load(directory: Path, lm: LanguageModel) -> None:
    loaded = tallow.load(directory)
    assert loaded.generate("abc", PARAMS).ids == lm.generate("abc", PARAMS).ids


@pytest.mark.parametrize("speculate", ["ngram", "draft"])
def test_speculation_changes_no_answer(
    directory: Path, lm: LanguageModel, tmp_path: Path, tokenizer: Tokenizer, speculate: str
) -> None:
    if speculate == "draft":
        save_model(make_model(tiny(num_layers=1), seed=1), tokenizer, tmp_path / "draft")
    loaded = load(directory, speculate=speculate if speculate == "ngram" else tmp_path / "draft")
    for params in (PARAMS, SamplingParams(max_new_tokens=60, ignore_eos=True)):
        assert loaded.generate("abcabc", params).ids == lm.generate("abcabc", params).ids
    assert loaded.engine.state.guessed_tokens > 0


def test_a_draft_model_of_8_bits_guesses_for_the_model_that_it_is(directory: Path) -> None:
    loaded = load(directory, speculate=directory)
    loaded.generate("abc", SamplingParams(max_new_tokens=60, ignore_eos=True))
    state = loaded.engine.state
    assert state.accepted_tokens > 0.5 * state.guessed_tokens > 0


def test_a_cache_as_large_as_asked_for(directory: Path) -> None:
    block_bytes = load(directory).engine.runner.block_bytes
    assert load(directory, cache_bytes=2 * block_bytes).context_length == 32
    with pytest.raises(UsageError, match="cannot hold one block"):
        load(directory, cache_bytes=block_bytes - 1)


@pytest.mark.skipif(cpu.native() is None, reason="the C++ kernels are not built")
def test_a_cache_of_8_bits(directory: Path) -> None:
    wide, narrow = load(directory, "bf16"), load(directory, "bf16", cache_precision="q8")
    assert narrow.engine.runner.block_bytes < 0.7 * wide.engine.runner.block_bytes
    answer = narrow.generate("abc", PARAMS)
    assert len(answer.ids) == 20
    ids = [*answer.prompt_ids, *answer.ids]
    scored_T = narrow.log_probs(ids)
    np.testing.assert_allclose(scored_T[2:], answer.log_probs, atol=1e-5, rtol=0)
    assert 0 < np.abs(scored_T - wide.log_probs(ids)).mean() < 0.05


def test_load_says_what_is_wrong(directory: Path, tmp_path: Path) -> None:
    unknown: Any = "q5"
    nothing: Any = None
    other = make_tokenizer()
    other.backend.add_tokens(["hello"])
    save_model(make_model(tiny(vocab_size=260)), other, tmp_path / "other")
    with pytest.raises(UsageError, match="another vocabulary"):
        load(directory, speculate=tmp_path / "other")
    with pytest.raises(UsageError, match="None is no model"):
        load(directory, speculate=nothing)
    with pytest.raises(DataError, match="no-such-draft"):
        load(directory, speculate="no-such-draft")
    with pytest.raises(UsageError, match="'q5'"):
        load(directory, unknown)
    with pytest.raises(UsageError, match="cache in precision 'q5'"):
        load(directory, cache_precision=unknown)
    with pytest.raises(DataError, match="no-such-model"):
        load("no-such-model")


def test_import_is_quick_and_names_are_there() -> None:
    assert tallow.LanguageModel is LanguageModel
    assert tallow.SamplingParams is SamplingParams
    assert not hasattr(tallow, "nothing")
    script = "import sys, tallow; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


UNNEEDED = ("jinja2", "pyarrow", "pandas", "transformers", "rich", "torch._dynamo", "sympy", "tallow.train")
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
