"""Answers fit their structures, and hostile structures fail alone."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLParserLimits
from tests.engine.conftest import BYTE_TOKENS, make_model, tiny

from tallow.engine import grammar, grammar_worker
from tallow.engine.engine import Engine
from tallow.engine.grammar import Constraint, Grammars
from tallow.engine.grammar_process import GrammarProcess
from tallow.engine.grammar_worker import Vocabulary
from tallow.engine.language_model import LanguageModel, load
from tallow.engine.request import Request, RequestState, SamplingParams
from tallow.engine.structure import CompileLimits, Structure
from tallow.engine.torch_runner import TorchRunner
from tallow.errors import UsageError
from tallow.models.blocks.context import SequenceContext
from tallow.models.decoder import Decoder
from tallow.tokenizer.tokenizer import Tokenizer

END, TURN_END = 0, 2
SHORT = CompileLimits(cpu_s=0.3, memory_bytes=1 << 28)
PROMPT = (BYTE_TOKENS + 65,)

TREE = {"$ref": "#/$defs/tree"}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nested": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 5},
            "place": {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "on": {"type": "boolean"}, "gone": {"type": "null"}},
                "required": ["x", "on"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "place"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["été", 'a"b\\', "日本", 3, None, {"k": [1, 2]}]},
    "array": {
        "type": "array",
        "items": {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 120}, {"const": "x"}]},
        "minItems": 2,
        "maxItems": 4,
    },
    "number": {"type": "array", "items": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2}, "maxItems": 2},
    "pattern": {"type": "string", "pattern": r"^[A-Zß-ü]{2}-\d{3}(/[a-f]+)?$"},
    "format": {"type": "array", "items": {"type": "string", "format": "date"}, "maxItems": 2},
    "recursive": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"v": {"enum": [1, 2]}, "next": {"anyOf": [{"type": "null"}, TREE]}},
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        **TREE,
    },
}
REGEXES = [
    r"[a-c]{3,5}x?",
    r"[0-9]{1,3}(\.[0-9]{1,3}){3}",
    r"(ja|nein|日本|é+)!",
    r"(?i)tallow\s[\x00-\x1f]",
    r"a/b\\\"\n",
    r"^(a|ab)(c|bcd)(d*)$",
]


def finish(engine: Engine, requests: Sequence[Request]) -> None:
    while any(request.state is not RequestState.FINISHED for request in requests):
        engine.step()


def sampled(structure: Structure | None, seed: int = 0, **settings: Any) -> SamplingParams:
    return SamplingParams(
        **{"max_new_tokens": 400, "temperature": 1.0, "seed": seed, **settings, "structure": structure}
    )


def answers(engine: Engine, structure: Structure, count: int, **settings: Any) -> list[str]:
    """The texts of some seeds, all complete."""
    requests = [engine.submit(PROMPT, sampled(structure, seed, **settings)) for seed in range(count)]
    finish(engine, requests)
    for request in requests:
        assert request.error is None, request.error
        assert request.finish_reason == "stop", request.text
    return [request.text for request in requests]


@pytest.fixture(scope="module")
def long_model() -> Decoder:
    return make_model(tiny(max_positions=512, num_layers=1))


@pytest.fixture(scope="module")
def engine(long_model: Decoder, tokenizer: Tokenizer) -> Engine:
    return Engine(TorchRunner(long_model), tokenizer, compile_limits=SHORT)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, tokenizer.vocab_size + 3, [END], SHORT)


def ready(grammars: Grammars, structure: Structure, stop_ids: Sequence[int] = (END,)) -> Constraint:
    constraint = grammars.constraint(structure, stop_ids)
    while not constraint.is_ready:
        grammars.wait(1.0)
    if constraint.error is not None:
        raise constraint.error
    return constraint


def spell(text: str) -> list[int]:
    return [BYTE_TOKENS + byte for byte in text.encode()]


def allowed(constraint: Constraint, size: int) -> list[int]:
    logits_V = np.zeros(size, np.float32)
    constraint.mask_logits(logits_V)
    return np.flatnonzero(np.isfinite(logits_V)).tolist()


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_is_valid(engine: Engine, name: str) -> None:
    schema = SCHEMAS[name]
    texts = answers(engine, Structure(json_schema=schema), 12)
    for text in texts:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
        assert not re.search(r"[ \t]{17}|\n\s*\n", text), "no more white space than said"
    assert len(set(texts)) > 3


def test_any_json_object(engine: Engine) -> None:
    # its strings may be long, so many of them are not finished; what is finished parses
    params = [sampled(Structure(json_object=True), seed, max_new_tokens=60) for seed in range(12)]
    requests = [engine.submit(PROMPT, param) for param in params]
    finish(engine, requests)
    complete = [request.text for request in requests if request.finish_reason == "stop"]
    assert all(isinstance(json.loads(text), dict) for text in complete)
    assert complete
    assert all(request.text.startswith("{") and request.error is None for request in requests)


@pytest.mark.parametrize("regex", REGEXES)
def test_regex_matches(engine: Engine, regex: str) -> None:
    for text in answers(engine, Structure(regex=regex), 8):
        assert re.fullmatch(regex, text), text


def test_every_choice_comes_and_nothing_else(engine: Engine) -> None:
    choices = ("a", "ab", 'say "no"\\', "line\nend", "日本", "nul\0", "delete\x7f", "e\u0301")
    assert set(answers(engine, Structure(choice=choices), 60, temperature=5.0)) == set(choices)


def test_grammar(engine: Engine) -> None:
    source = 'start: sum\nsum: term ("+" term)*\nterm: "(" sum ")" | NUMBER\nNUMBER: /[1-9][0-9]?/'
    for text in answers(engine, Structure(grammar=source), 12):
        assert re.fullmatch(r"[0-9+()]+", text)
        assert isinstance(eval(text), int)


def test_greedy_takes_the_likeliest_that_fits_and_log_probs_are_the_models_own(
    engine: Engine, long_model: Decoder
) -> None:
    request = engine.submit(PROMPT, sampled(Structure(regex="[p-z]{12}"), temperature=0.0))
    finish(engine, [request])
    fitting, ids = spell("pqrstuvwxyz"), list(PROMPT)
    for _ in range(12):
        with torch.inference_mode():
            hidden_BTD = long_model(torch.tensor([ids]), SequenceContext.plain(1, len(ids)))
            logits_V = long_model.logits(hidden_BTD)[0, -1]
        ids.append(max(fitting, key=lambda id: float(logits_V[id])))
    assert request.ids == ids[1:]
    np.testing.assert_allclose(request.log_probs, engine.log_probs(ids), rtol=0, atol=1e-4)


def test_company_and_preemption_change_nothing(tokenizer: Tokenizer) -> None:
    exact = make_model(tiny(max_positions=512, num_layers=1)).double()
    structure = Structure(regex=r"([a-z]{30} ){2}")
    params = [sampled(structure if seed % 2 else None, seed, max_new_tokens=70) for seed in range(6)]
    alone = Engine(TorchRunner(exact), tokenizer)
    expected = []
    for param in params:
        request = alone.submit(PROMPT, param)
        finish(alone, [request])
        expected.append(request.ids)
    runner = TorchRunner(exact)
    crowded = Engine(runner, tokenizer, max_tokens_per_step=7, cache_bytes=9 * runner.block_bytes)
    requests = [crowded.submit(PROMPT, param) for param in params]
    finish(crowded, requests)
    assert crowded.state.preemptions > 0
    assert [request.ids for request in requests] == expected
    crowded.check_blocks()


def test_where_an_answer_may_end(engine: Engine) -> None:
    open_end, closed = Structure(regex="ab+"), Structure(regex="ab")
    assert set(answers(engine, open_end, 5, stop_ids=(TURN_END,), logit_bias={TURN_END: 9.0})) == {"ab"}
    for end in (END, TURN_END):
        request = engine.submit(PROMPT, sampled(open_end, logit_bias={end: 50.0}, stop_ids=(end,)))
        finish(engine, [request])
        assert (request.text, request.ids[-1]) == ("ab", end)
    request = engine.submit(PROMPT, sampled(closed))  # complete: no end token is needed
    finish(engine, [request])
    assert (request.ids, request.finish_reason) == (spell("ab"), "stop")
    request = engine.submit(PROMPT, sampled(open_end, ignore_eos=True, max_new_tokens=20))
    finish(engine, [request])
    assert (request.text, request.finish_reason) == ("a" + 19 * "b", "length")
    request = engine.submit(PROMPT, sampled(Structure(grammar='start: "ab" <|im_end|>'), stop_ids=(TURN_END,)))
    finish(engine, [request])
    assert request.ids == [*spell("ab"), TURN_END]


@pytest.mark.parametrize("structure", [Structure(regex="ab"), Structure(choice=("x", "xy"))])
def test_nothing_left(engine: Engine, structure: Structure) -> None:
    other = engine.submit(PROMPT, sampled(None, max_new_tokens=20, ignore_eos=True))
    request = engine.submit(PROMPT, sampled(structure, min_new_tokens=5))
    finish(engine, [other, request])
    assert isinstance(request.error, UsageError)
    assert "leaves no token" in request.error.message
    assert len(other.ids) == 20
    engine.check_blocks()


def test_a_structure_needs_a_tokenizer(long_model: Decoder) -> None:
    with pytest.raises(UsageError, match="tokenizer"):
        Engine(TorchRunner(long_model), None).submit(PROMPT, sampled(Structure(regex="a")))


def test_through_the_language_model(long_model: Decoder, tokenizer: Tokenizer) -> None:
    lm = LanguageModel(TorchRunner(long_model), tokenizer, Path("tiny"))
    choice = Structure(choice=("yes", "no"))
    assert lm.generate("Well?", sampled(choice)).text in ("yes", "no")
    assert "".join(lm.stream("Well?", sampled(choice))) in ("yes", "no")
    with pytest.raises(UsageError, match=r"cannot be used: .* unclosed character class"):
        lm.generate("Well?", sampled(Structure(regex="[")))
    with pytest.raises(UsageError, match=r'at 2\(8\): unknown name: "NONE"'):
        lm.generate("Well?", sampled(Structure(grammar="\nstart: NONE")))


HOSTILE: dict[str, Structure] = {
    "alternatives that are the same": Structure(regex="(a|a)*{1,50}(a?){3000}"),
    "exponential automaton": Structure(regex="(a|b)*a(a|b){300}"),
    "states without end": Structure(regex="(.{0,300}a){0,300}b(.*x.*y.*z){20}"),
    "repetition": Structure(regex="((a{1,100000}){1,100000}){1,100000}"),
    "one repetition": Structure(regex="a{1000000000}"),
    "brackets": Structure(regex="(" * 50_000 + "a" + ")" * 50_000),
    "lark brackets": Structure(grammar="start: " + "(" * 50_000 + '"a"' + ")" * 50_000),
    "modulo": Structure(json_schema={"type": "integer", "multipleOf": 99_999_989}),
    "intersections": Structure(
        grammar="start: A\nA: " + " & ".join(f"/(.*{c}.{{{9 + i}}}{c}.*)*/" for i, c in enumerate("abcdefghijkl"))
    ),
    "huge enum": Structure(json_schema={"enum": [f"x{number}" for number in range(20_000)]}),
    "huge choice": Structure(choice=tuple(f"x{number}" for number in range(20_000))),
    "reference to itself": Structure(json_schema={"$ref": "#"}),
    "references in a circle": Structure(
        json_schema={"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    ),
    "reference to elsewhere": Structure(json_schema={"$ref": "http://127.0.0.1:9/schema.json"}),
    "endless": Structure(grammar="start: start"),
    "never complete": Structure(grammar='start: "ab" start'),
    "ambiguous": Structure(grammar='start: x\nx: x x | "a" | "ab" | "b" | ""'),
    "garbage": Structure(grammar="\0\1 garbage {"),
    "serialized": Structure(grammar='{"grammars": []}'),
    "nothing fits": Structure(json_schema={"type": "integer", "minimum": 5, "maximum": 3}),
    "dead end": Structure(grammar='start: "a" x | "b" x\nx: x'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_structures_fail_alone(engine: Engine, name: str) -> None:
    """Each ends with a complete answer, at its length, or with an error of its own; another request goes on."""
    other = engine.submit(PROMPT, sampled(None, max_new_tokens=30, ignore_eos=True))
    request = engine.submit(PROMPT, sampled(HOSTILE[name], max_new_tokens=30))
    finish(engine, [other])
    assert other.error is None
    assert len(other.ids) == 30
    finish(engine, [request])
    if request.error is not None:
        assert isinstance(request.error, UsageError)
        assert "structure" in request.error.message
        assert len(request.error.message) < 300
    engine.check_blocks()
    assert answers(engine, Structure(regex="fine"), 1) == ["fine"]


def test_hostile_structures_that_must_fail(grammars: Grammars) -> None:
    for name in ("modulo", "endless", "reference to elsewhere", "garbage", "serialized", "nothing fits", "brackets"):
        with pytest.raises(UsageError, match="structure cannot be"):
            ready(grammars, HOSTILE[name])


def test_others_generate_while_a_grammar_compiles(engine: Engine) -> None:
    slow = engine.submit(PROMPT, sampled(Structure(json_schema={"type": "integer", "multipleOf": 99_999_971})))
    quick = engine.submit(PROMPT, sampled(Structure(regex="quick")))
    plain = engine.submit(PROMPT, sampled(None, max_new_tokens=40, ignore_eos=True))
    ended: list[Request] = []
    while len(ended) < 3:
        ended += [request for request in engine.step() if request.state is RequestState.FINISHED]
    assert ended[-1] is slow
    assert quick.text == "quick"
    assert len(plain.ids) == 40
    assert engine.state.waiting == 0


def test_waiting_for_a_grammar_takes_no_processor(engine: Engine) -> None:
    request = engine.submit(PROMPT, sampled(Structure(json_schema={"type": "integer", "multipleOf": 99_999_959})))
    steps, start, used = 0, time.perf_counter(), time.thread_time()
    while request.state is not RequestState.FINISHED:
        engine.step()
        steps += 1
    assert request.error is not None
    waited, used = time.perf_counter() - start, time.thread_time() - used
    assert waited > SHORT.cpu_s
    assert used < 0.2 * waited
    assert steps < 3 + waited / 0.015


def test_an_aborted_request_does_not_wait(engine: Engine) -> None:
    request = engine.submit(PROMPT, sampled(Structure(json_schema={"type": "integer", "multipleOf": 99_999_941})))
    engine.abort(request)
    assert engine.state.waiting == 0
    assert request.finish_reason == "abort"
    assert engine.step() == []


def test_limits_while_generating(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar that compiles may still grow beyond its limits later; then it is forgotten, and can be tried again."""
    monkeypatch.setattr(grammar_worker, "LIMITS", LLParserLimits(max_lexer_states=200, verbose_errors=False))
    structure = Structure(regex="(.*a.{3,60}b){12}")
    requests = [engine.submit(PROMPT, sampled(structure, seed)) for seed in range(2)]
    other = engine.submit(PROMPT, sampled(None, max_new_tokens=20, ignore_eos=True))
    finish(engine, [*requests, other])
    for request in requests:  # they share a lexer
        assert isinstance(request.error, UsageError)
        assert "too many states" in request.error.message
        assert 10 < len(request.ids) < 400
    assert len(other.ids) == 20
    monkeypatch.undo()
    again = engine.submit(PROMPT, sampled(structure, 0))
    finish(engine, [again])
    assert again.ids[: len(requests[0].ids)] == requests[0].ids
    assert again.error is None


@given(data=st.data())
def test_accepts_is_what_the_masks_say(grammars: Grammars, data: st.DataObject) -> None:
    size = 262
    source = data.draw(st.sampled_from(["ab*c", "(a|bc){2,3}", "a+", "[a-c]*"]))
    constraint = ready(grammars, Structure(regex=source))
    walked = 0
    for _ in range(data.draw(st.integers(0, 4))):
        choices = [token for token in allowed(constraint, size) if token != END]
        if constraint.is_finished or not choices:
            break
        constraint.accept(data.draw(st.sampled_from(choices)))
        walked += 1
    before = (allowed(constraint, size), constraint.is_finished)
    draft = data.draw(st.lists(st.sampled_from([*spell("abc"), END]), max_size=5))
    fitting = constraint.accepts(draft)
    assert (allowed(constraint, size), constraint.is_finished) == before
    taken = 0
    for token in draft:
        if token not in allowed(constraint, size):
            break
        taken += 1
        if token == END:
            break
        constraint.accept(token)
    assert fitting == taken
    constraint.rollback(sum(token != END for token in draft[:taken]))
    assert (allowed(constraint, size), constraint.is_finished) == before
    constraint.rollback(walked)
    assert allowed(constraint, size) == allowed(ready(grammars, Structure(regex=source)), size)


def test_compiled_once(grammars: Grammars) -> None:
    ready(grammars, Structure(regex="once"))
    assert grammars.constraint(Structure(regex="once"), ()).is_ready
    assert not grammars.constraint(Structure(regex="twice"), ()).is_ready


def test_the_least_recently_used_is_forgotten(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "CACHE_BYTES", 3 * grammar.LEAST_BYTES)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, [END], SHORT)
    for regex in ("a", "b", "c", "a", "d"):
        ready(grammars, Structure(regex=regex))
    assert [grammars.constraint(Structure(regex=regex), ()).is_ready for regex in "acdb"] == [True, True, True, False]


def workers() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, FileNotFoundError):  # it has just ended
            if child.status() != psutil.STATUS_ZOMBIE and any("grammar_worker" in part for part in child.cmdline()):
                found.append(child)
    return found


def test_a_killed_worker_is_replaced(tokenizer: Tokenizer) -> None:
    tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    process = GrammarProcess(Vocabulary(tokens, [0, 1, 2], [END]), CompileLimits())
    before, errors = {child.pid for child in workers()}, []
    process.prove(Structure(regex="a").source())

    def compile_slowly() -> None:
        try:
            process.prove(HOSTILE["modulo"].source())
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=compile_slowly)
    thread.start()
    time.sleep(0.1)
    (worker,) = [child for child in workers() if child.pid not in before]
    os.kill(worker.pid, signal.SIGKILL)
    thread.join()
    assert len(errors) == 1
    assert process.prove(Structure(regex="a").source()) >= 0
    (worker,) = [child for child in workers() if child.pid not in before]
    os.kill(worker.pid, signal.SIGKILL)  # while it has nothing to do
    worker.wait()
    assert process.prove(Structure(regex="b").source()) >= 0
    process.close()


def test_memory_is_limited() -> None:
    vocabulary = Vocabulary([b"", *(bytes([byte]) for byte in range(256))], [0], [0])
    process = GrammarProcess(vocabulary, CompileLimits(cpu_s=60, memory_bytes=20 << 20))
    with pytest.raises(UsageError, match="within 60 s and 20 MB"):
        process.prove(HOSTILE["modulo"].source())
    process.close()


def test_workers_end_with_their_engine(long_model: Decoder, tokenizer: Tokenizer) -> None:
    before = {child.pid for child in workers()}
    engine = Engine(TorchRunner(long_model), tokenizer)
    answers(engine, Structure(regex="a"), 1)
    ours = {child.pid for child in workers()} - before
    assert ours
    del engine
    gc.collect()  # ends other tests' workers too, where an engine of theirs was still in a cycle
    assert not ours & {child.pid for child in workers()}


ORPHAN = """
import sys
from tallow.engine.grammar_process import GrammarProcess
from tallow.engine.grammar_worker import Vocabulary
from tallow.engine.structure import CompileLimits, Structure
process = GrammarProcess(Vocabulary([b"", b"1"], [0], [0]), CompileLimits(cpu_s=0.5))
process.prove(Structure(regex="1").source())
print(process._process.pid, flush=True)
process.prove(Structure(json_schema={"type": "integer", "multipleOf": 99999989}).source())
"""


def test_a_worker_does_not_outlive_a_killed_engine() -> None:
    engine = subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    worker = psutil.Process(int(engine.stdout.readline()))
    engine.kill()
    engine.communicate()
    worker.wait(timeout=60)


def test_the_worker_is_light() -> None:
    code = "import sys, tallow.engine.grammar_worker; print(len({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


@pytest.mark.smollm2
def test_smollm2(smollm2_gguf: Path) -> None:
    lm = load(smollm2_gguf)
    structures = [Structure(json_schema=SCHEMAS[name]) for name in ("array", "pattern")]
    for structure in structures:
        for text in answers(lm.engine, structure, 3, max_new_tokens=150):
            jsonschema.validate(json.loads(text), json.loads(str(structure.json_schema)))
    choice = Structure(choice=(" blue", " nonsense"))
    assert lm.generate("The color of the sky is", sampled(choice, temperature=0.0)).text == " blue"
