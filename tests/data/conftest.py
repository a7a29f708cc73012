from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from tallow.data.config import PrepareConfig
from tallow.data.encode import EncodeConfig, encode
from tallow.data.prepare import prepare
from tallow.run import StageRun
from tallow.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer that merges nothing: one token a byte, ids 1 to 256, and the end token 0."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=257,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
        show_progress=False,
    )
    backend.train_from_iterator([], trainer)
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer.from_backend(backend, eos_token="<|end|>").save(directory)
    return directory


@pytest.fixture
def make_tokens(tmp_path: Path, tokenizer_directory: Path) -> Callable[..., Path]:
    """`make_tokens(texts, …)`: the texts prepared and encoded; the directory of tokens."""

    def make(texts: list[str], shard_tokens: int = 2**26, validation_fraction: float = 0.0) -> Path:
        source = tmp_path / "texts"
        source.mkdir()
        for number, text in enumerate(texts):
            (source / f"{number:05}.txt").write_text(text, encoding="utf-8", newline="")
        prepare(
            PrepareConfig(sources=(source,), validation_fraction=validation_fraction), StageRun(tmp_path / "prepare")
        )
        config = EncodeConfig(
            documents=tmp_path / "prepare" / "documents", tokenizer=tokenizer_directory, shard_tokens=shard_tokens
        )
        encode(config, StageRun(tmp_path / "encode"))
        return tmp_path / "encode" / "tokens"

    return make
