"""Loading, continuing, answering, streaming and scoring."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tallow
from tallow.engine import language_model
from tallow.engine.language_model import LanguageModel, load
from tallow.engine.packing import pack_weights
from tallow.engine.request import SamplingParams
from tallow.errors import DataError, UsageError
from tallow.kernels import dequantize, quantize_groups
from tallow.models.decoder import Decoder
from tallow.models.formats import load_model, save_model
from tallow.models.quantization import dequantized_state, quantize_modules, quantized_modules
from tallow.tokenizer.tokenizer import Tokenizer

PARAMS = SamplingParams(max_new_tokens=20, temperature=1.0, seed=3)
QUESTION = [{"role": "user", "content": "hi"}]


@pytest.fixture
def lm(model: Decoder, tokenizer: Tokenizer) -> LanguageModel:
    return LanguageModel(model, tokenizer, Path("tiny"))


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
        LanguageModel(model, plain_tokenizer, Path("tiny")).chat(QUESTION)


def test_log_probs(lm: LanguageModel) -> None:
    answer = lm.generate("abc", PARAMS)
    scored_T = lm.log_probs([*answer.prompt_ids, *answer.ids])
    torch.testing.assert_close(scored_T[2:], torch.tensor(answer.log_probs), atol=1e-5, rtol=0)


def test_a_tokenizer_of_another_model(model: Decoder, tokenizer: Tokenizer) -> None:
    small = Decoder(model.config.model_copy(update={"vocab_size": 100}))
    with pytest.raises(DataError, match="259 tokens"):
        LanguageModel(small, tokenizer, Path("tiny"))


def test_load(directory: Path, lm: LanguageModel) -> None:
    loaded = tallow.load(directory)
    assert loaded.generate("abc", PARAMS).ids == lm.generate("abc", PARAMS).ids
    assert load(str(directory), "bf16").model.norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("precision", "bits"), [("q8", 8), ("q4", 4)])
def test_load_quantized(directory: Path, lm: LanguageModel, precision: language_model.Precision, bits: int) -> None:
    loaded = load(directory, precision)
    modules = quantized_modules(loaded.model)
    assert modules["layers.0.attention.q_proj"].weight.bits == bits
    ids = lm.tokenizer.encode("the quick brown fox")
    difference = (loaded.log_probs(ids) - lm.log_probs(ids)).abs().mean()
    assert 0 < difference < (0.1 if bits == 8 else 1.0)


@pytest.fixture(scope="module", params=[4, 8])
def quantized(
    request: pytest.FixtureRequest, model: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A stored model of 4 or 8 bits."""
    path = tmp_path_factory.mktemp("quantized") / "model"
    save_model(quantize_modules(copy.deepcopy(model), request.param, 32), tokenizer, path)
    return path


def test_stored_codes_stay(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = load_model(quantized).state_dict()
    bits = quantized_modules(load_model(quantized))["layers.0.attention.q_proj"].weight.bits
    for precision in ("auto", "q4" if bits == 4 else "q8"):
        torch.testing.assert_close(load(quantized, precision).model.state_dict(), stored, rtol=0, atol=0)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_stored_codes_are_unpacked(
    quantized: Path,
    precision: language_model.Precision,
    dtype: torch.dtype,
    model: Decoder,
    tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    by_hand = Decoder(model.config).eval()
    by_hand.load_state_dict(dict(dequantized_state(load_model(quantized))))
    expected = LanguageModel(pack_weights(by_hand.to(dtype)), tokenizer, quantized)
    loaded = load(quantized, precision)
    assert "does not come back" in capsys.readouterr().err
    assert not quantized_modules(loaded.model)
    torch.testing.assert_close(loaded.model.state_dict(), expected.model.state_dict(), rtol=0, atol=0)
    ids = tokenizer.encode("the quick brown fox")
    assert torch.equal(loaded.log_probs(ids), expected.log_probs(ids))


def test_stored_codes_are_rounded_anew(quantized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = quantized_modules(load_model(quantized))
    bits = 12 - stored["layers.0.attention.q_proj"].weight.bits
    loaded = quantized_modules(load(quantized, "q4" if bits == 4 else "q8").model)
    assert "does not come back" in capsys.readouterr().err
    assert list(loaded) == list(stored)
    for name, module in loaded.items():
        expected = quantize_groups(dequantize(stored[name].weight), 8 if name == "embed" else bits, 32)
        assert module.weight.bits == expected.bits
        assert torch.equal(module.codes, expected.codes)
        assert torch.equal(module.scales, expected.scales)


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision(directory: Path, native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 where weights and processor have it; fp16 is computed in fp32."""
    monkeypatch.setattr(language_model, "native_bf16", lambda: native)
    stored, tokenizer = load(directory, "bf16").model, load(directory).tokenizer
    save_model(stored, tokenizer, tmp_path / "bf16")
    save_model(stored.half(), tokenizer, tmp_path / "fp16")
    bf16 = torch.bfloat16 if native else torch.float32
    for path, dtype in {directory: torch.float32, "bf16": bf16, "fp16": torch.float32}.items():
        loaded = load(tmp_path / path)
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
        loaded.generate("a", PARAMS)


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
