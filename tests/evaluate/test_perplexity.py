from __future__ import annotations

import json
import math
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tests.parity.smollm2_reference import transformers_twin
from tokenizers import decoders, models, pre_tokenizers, processors

from tallow.engine.choices import Precision
from tallow.engine.language_model import SCORED_TOGETHER, LanguageModel, load
from tallow.engine.make_runner import make_runner
from tallow.engine.request import SamplingParams
from tallow.errors import DataError, UsageError
from tallow.evaluate.perplexity import EvaluateConfig, Perplexity, evaluate, perplexity, read_text
from tallow.evaluate.windows import cut_windows
from tallow.models.blocks.context import SequenceContext
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder, initialize
from tallow.models.formats import load_model, open_model, save_model
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer

TEXT = "Wax light was dear; a tallow dip cost a farthing — für zwei Stunden Licht. 蠟燭很貴。\n" * 9
CONFIG = DecoderConfig(
    vocab_size=260, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=64, max_positions=128
)


def make_tokenizer(bos: bool = False) -> Tokenizer:
    """One token a byte; with `bos`, one that it puts before a text."""
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>"])
    if bos:
        backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    return Tokenizer.from_backend(backend, bos_token="<s>")


def make_model(config: DecoderConfig = CONFIG) -> Decoder:
    model = Decoder(config)
    initialize(model, seed=0)
    return model.eval()


def uniform_model() -> Decoder:
    """A model to which all tokens are alike."""
    model = make_model()
    with torch.no_grad():
        model.embed.weight.zero_()
    return model


def in_engine(model: Decoder, bos: bool = False, precision: Precision = "fp32") -> LanguageModel:
    return LanguageModel(make_runner(model, precision), make_tokenizer(bos), Path("model"))


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    score = perplexity(in_engine(uniform_model()), TEXT, window=16)
    assert score.perplexity == pytest.approx(260, rel=1e-6)
    assert score.bits_per_byte == pytest.approx(math.log2(260), rel=1e-6)  # one token a byte
    assert score.bytes == score.tokens == len(TEXT.encode()) - math.ceil(len(TEXT.encode()) / 16)


def test_with_bos_every_byte_counts() -> None:
    score = perplexity(in_engine(uniform_model(), bos=True), TEXT, window=16)
    assert score.bytes == score.tokens == len(TEXT.encode())
    assert score.protocol["bos_id"] == 256


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("changes", [{}, {"positions": "learned", "max_positions": 24}, {"window": 7}])
def test_equals_the_module_window_by_window(changes: dict[str, Any], stride: int | None) -> None:
    model = make_model(DecoderConfig(**{**CONFIG.model_dump(), **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10 if parameter.ndim == 2 else 1)  # else a token hardly depends on those before it
    texts = [TEXT, "A short one.", TEXT[:50], "x", "", "Another short one, longer."]
    loss = 0.0
    for text in texts:
        for piece in cut_windows(make_tokenizer().encode(text), 24, stride):
            row_BT = torch.tensor([piece.ids])
            with torch.inference_mode():
                logits_TV = model.logits(model(row_BT, SequenceContext.plain(1, row_BT.shape[1])))[0]
            losses_T = torch.nn.functional.cross_entropy(logits_TV[:-1], row_BT[0, 1:], reduction="none")
            loss += float(losses_T[-piece.scored :].double().sum())
    score = perplexity(in_engine(model), texts, window=24, stride=stride)
    assert score.perplexity == pytest.approx(math.exp(loss / score.tokens), rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "q8", "q4"])
def test_company_changes_nothing(precision: Precision) -> None:
    model = in_engine(make_model(), precision=precision)
    pieces = [piece.ids for piece in cut_windows(make_tokenizer().encode(TEXT), 20, 9)]
    assert len(pieces) > SCORED_TOGETHER
    together = list(model.log_probs_batch(pieces))
    assert [len(log_probs_T) for log_probs_T in together] == [len(ids) - 1 for ids in pieces]
    for index in (0, 1, 40, len(pieces) - 1):
        assert np.array_equal(together[index], model.log_probs(pieces[index]))


def test_scoring_leaves_nothing_behind() -> None:
    model = in_engine(make_model())
    perplexity(model, TEXT, window=64)
    state = model.engine.state
    assert (state.waiting, state.running, state.free_blocks) == (0, 0, state.num_blocks)
    model.generate(model.tokenizer.encode(TEXT)[:64], SamplingParams(max_new_tokens=1))
    assert model.engine.state.hit_tokens == 0  # nor in the cache, which a long text would fill
    scores = model.log_probs_batch([[1, 2, 3]] * 9)
    next(scores)
    scores.close()
    assert (model.engine.state.waiting, model.engine.state.running) == (0, 0)
    model.engine.check_blocks()


def test_documents_are_scored_each_by_itself() -> None:
    model = in_engine(make_model())
    first, second = (perplexity(model, text, window=32) for text in (TEXT, TEXT[7:61]))
    both = perplexity(model, [TEXT, TEXT[7:61]], window=32)
    bits = first.bits_per_byte * first.bytes + second.bits_per_byte * second.bytes
    assert both.bits_per_byte * both.bytes == pytest.approx(bits, rel=1e-6)


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("bos", [False, True])
def test_equals_transformers(tmp_path: Path, stride: int | None, bos: bool) -> None:
    torch.manual_seed(0)
    reference = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=260,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
            max_position_embeddings=64,
        )
    ).eval()
    reference.save_pretrained(tmp_path)
    text = TEXT[:200]
    model = LanguageModel(make_runner(open_model(tmp_path), "fp32"), make_tokenizer(bos), tmp_path)
    score = perplexity(model, text, window=12, stride=stride)

    # token by token: each is predicted from what its first window holds before it
    ids = make_tokenizer().encode(text)
    room = 12 - bos
    losses = []
    with torch.inference_mode():
        for index in range(len(ids)):
            step = stride or room
            start = max(0, math.ceil((index - room + 1) / step) * step)  # of the first window that has it
            before = [256] * bos + ids[start:index]
            if before:
                logits = reference(torch.tensor([before])).logits[0, -1]
                losses.append(-float(logits.double().log_softmax(-1)[ids[index]]))
    assert score.tokens == len(losses)
    assert score.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_max_tokens_takes_the_start_of_the_text() -> None:
    model = in_engine(make_model())
    limited = perplexity(model, [TEXT[:40], TEXT], window=16, max_tokens=100)
    rest = model.tokenizer.decode(model.tokenizer.encode(TEXT)[:60])
    expected = perplexity(model, [TEXT[:40], rest], window=16)
    assert limited.protocol["text_tokens"] == 100
    assert limited.bits_per_byte == expected.bits_per_byte


def test_protocol_is_whole() -> None:
    model = in_engine(make_model(), precision="bf16")
    protocol = perplexity(model, TEXT, window=None).protocol
    assert protocol == {
        "window": 128,
        "stride": None,
        "max_tokens": None,
        "bos_id": None,
        "documents": 1,
        "text_tokens": len(TEXT.encode()),
        "text_sha256": sha256(TEXT.encode()).hexdigest(),
        "tokenizer": model.tokenizer.fingerprint,
        "precision": model.engine.runner.precision,
    }


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [(129, None, "context, 128"), (1, None, "nothing to predict"), (0, None, "nothing to predict"), (8, 9, "stride")],
)
def test_windows_that_cannot_be_are_refused(window: int, stride: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        perplexity(in_engine(make_model()), TEXT, window, stride=stride)


def test_longrope_is_scored_within_its_trained_length() -> None:
    """Beyond it all frequencies would be others, and keys in the cache of the wrong ones."""
    factors = {"short_factors": [1.0] * 8, "long_factors": [4.0] * 8}
    scaling = {"kind": "longrope", "original_max_positions": 32, **factors}
    model = in_engine(make_model(DecoderConfig(**{**CONFIG.model_dump(), "rotary": {"scaling": scaling}})))
    assert perplexity(model, TEXT).protocol["window"] == 32
    with pytest.raises(UsageError, match="context, 32"):
        perplexity(model, TEXT, window=33)


def test_unusable_text_is_refused() -> None:
    with pytest.raises(DataError, match="too short"):
        perplexity(in_engine(make_model()), "a")
    with pytest.raises(UsageError, match="0 tokens"):
        perplexity(in_engine(make_model()), TEXT, max_tokens=0)


@pytest.mark.parametrize("scale", [math.nan, 1e6])
def test_damaged_models_are_refused(scale: float) -> None:
    model = make_model()
    with torch.no_grad():
        model.norm.weight.fill_(scale)
    with pytest.raises(DataError, match="not finite"):
        perplexity(in_engine(model), TEXT)


def test_reads_files_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "held.out.raw").write_text(TEXT, encoding="utf-8")
    (tmp_path / "held.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    assert read_text(tmp_path / "held.out.raw") == [TEXT]
    assert read_text(tmp_path / "held.jsonl") == ["one", "two"]


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"\x89PNG\0\0\x01", "binary"), (b"a\0b", "binary")])
def test_unusable_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "held.out"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(path)
    with pytest.raises(DataError, match="does not exist"):
        read_text(tmp_path / "nothing.txt")


def test_stage_scores_models_side_by_side(tmp_path: Path) -> None:
    text = tmp_path / "held.txt"
    text.write_text(TEXT, encoding="utf-8")
    paths = {"uniform": tmp_path / "uniform", "random": tmp_path / "random"}
    save_model(uniform_model(), make_tokenizer(), paths["uniform"])
    save_model(make_model(), make_tokenizer(), paths["random"])
    run = StageRun(tmp_path / "run")
    result = evaluate(EvaluateConfig(models=paths, file=text, window=16, precision="q8"), run)
    written = json.loads((run.directory / "evaluation.json").read_text())
    assert written["random"]["protocol"]["precision"].startswith("int8")
    assert result == {f"{name}_bits_per_byte": written[name]["bits_per_byte"] for name in paths}
    assert written["uniform"]["bits_per_byte"] == pytest.approx(math.log2(260), rel=1e-3)
    assert Perplexity(**written["uniform"]).tokens == run.ledger.tokens / 2
    assert run.ledger.flops > 0


def test_stage_takes_what_prepared_documents_hold_out(tmp_path: Path) -> None:
    from tallow.data.config import PrepareConfig
    from tallow.data.prepare import prepare

    source = tmp_path / "source.jsonl"
    lines = [json.dumps({"text": f"Document number {number} of twenty."}) for number in range(20)]
    source.write_text("\n".join(lines), encoding="utf-8")
    run = StageRun(tmp_path / "prepare")
    run.directory.mkdir()
    counts = prepare(PrepareConfig(sources=(source,), validation_fraction=0.25), run)
    texts = read_text(run.directory / "documents")
    assert 0 < len(texts) == counts["validation_documents"] < 20
    assert all(text.startswith("Document number") for text in texts)


@pytest.mark.smollm2
@pytest.mark.shared_data
def test_smollm2_equals_transformers(smollm2_gguf: Path, shared_data: Callable[..., Path]) -> None:
    model = load(smollm2_gguf, "fp32")
    text = read_text(shared_data("wikitext2", "wiki.valid.raw"))
    score = perplexity(model, text, window=256, max_tokens=512)

    reference = transformers_twin(load_model(smollm2_gguf, dtype=torch.float32))
    windows = torch.tensor(model.tokenizer.encode(text[0])[:512]).view(2, 256)
    with torch.inference_mode():
        loss = float(reference(windows, labels=windows).loss)
    assert score.tokens == 2 * 255
    assert score.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
