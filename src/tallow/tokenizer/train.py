"""The tokenizer stage: learn a vocabulary from documents, or adopt one that exists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tokenizers
from pydantic import Field, model_validator
from tokenizers import AddedToken

from tallow.console import progress, say
from tallow.errors import DataError, UsageError, reading
from tallow.files import atomic_directory
from tallow.kernels.text.word_counts import WordCounter
from tallow.recipe import Section
from tallow.run import StageRun
from tallow.tokenizer.chat import CHATML, ChatTemplate
from tallow.tokenizer.tokenizer import Tokenizer
from tallow.tokenizer.trainers import TRAINERS, Algorithm
from tallow.tokenizer.trainers.settings import TrainerSettings

END_OF_TEXT = "<|endoftext|>"  # ends a document, and fills up batches
SPECIAL_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
NUM_BYTES = 256  # each of which has a token
BATCH_ROWS = 256
PIECE_CHARACTERS = 1 << 16  # a longer document is read in pieces of that length
SAMPLE_BYTES = 2_000_000  # of held-out text, to measure bytes per token


class TokenizerConfig(Section):
    """Settings of the tokenizer stage.

    Attributes:
        documents: The product of `prepare`: `{train,validation}/*.parquet` with a column `text`.
        pretrained: A directory with `tokenizer.json` to adopt instead of training.
        algorithm: `bpe` merges the most frequent pair of tokens, beginning with bytes (as GPT-2). `byte_fallback_bpe`
            begins with characters, and says rare ones in bytes (as Llama 2). `wordpiece` merges the pair whose parts
            are seldom apart, beginning with bytes, and encodes by longest match (as BERT). `unigram` keeps the pieces
            without which the text would be least probable, and encodes by the most probable ones; rare characters are
            said in bytes (as T5).
        vocab_size: Tokens of the vocabulary, special tokens included. Little text may yield fewer.
        min_frequency: A pair of tokens is merged, or a piece considered, only if it occurs at least that often. None:
            2; for `wordpiece`, whose score likes rare pairs best, about the highest that fills the vocabulary.
        character_coverage: For `byte_fallback_bpe` and `unigram`: the share of the text's characters that are to have
            tokens of their own, the most frequent first.
        max_bytes: Train on at most that much text, taken evenly from all documents.
        max_digits: Longest run of digits in one token. llama.cpp knows 1 and 3; with 2, it will take other tokens for
            some numbers.
        special_tokens: Further special tokens beside `<|endoftext|>`, `<|im_start|>` and `<|im_end|>`.
        mask_token: A special token that stands for a masked one, such as `<|mask|>`: `pretrain.objective: masked` needs
            it. None: there is none, or that of `pretrained`.
        chat_template: `chatml`, `none`, or a file with a Jinja template. None keeps that of `pretrained`.
    """

    documents: Path | None = None
    pretrained: str | None = None
    algorithm: Algorithm = "bpe"
    vocab_size: int = Field(4096, ge=1)
    min_frequency: int | None = Field(None, ge=1)
    character_coverage: float = Field(0.9995, gt=0, le=1)
    max_bytes: int = Field(100_000_000, ge=1)
    max_digits: Literal[1, 2, 3] = 1
    special_tokens: tuple[str, ...] = ()
    mask_token: str | None = Field(None, min_length=1)
    chat_template: str | None = None

    @model_validator(mode="after")
    def _can_be_trained(self) -> Self:
        smallest = len(self.all_special_tokens()) + NUM_BYTES
        if self.pretrained is None and self.vocab_size < smallest:
            raise UsageError(
                f"tokenizer.vocab_size is {self.vocab_size}, but the bytes and special tokens alone are {smallest}",
                f"set it to {smallest} or more",
            )
        return self

    def all_special_tokens(self) -> list[str]:
        """Those that every trained tokenizer has, and the further ones."""
        more = [token for token in (self.mask_token, TRAINERS[self.algorithm].unknown) if token is not None]
        return list(dict.fromkeys((*SPECIAL_TOKENS, *self.special_tokens, *more)))


def train_tokenizer(config: TokenizerConfig, run: StageRun) -> dict[str, Any]:
    """Write `tokenizer/` below the run's directory.

    Returns:
        `vocab_size`; `bytes_per_token` on held-out documents (None without documents); `measured_on`, the split
        that this was measured on; `training_bytes`.

    Raises:
        UsageError: There is neither `documents` nor `pretrained`.
        DataError: The documents are missing, broken or empty; or the pretrained tokenizer or the template is broken.
    """
    training_bytes = 0
    if config.pretrained is not None:
        tokenizer = Tokenizer.load(config.pretrained)
        if config.mask_token is not None:
            named = {**tokenizer.special_tokens, "mask_token": config.mask_token}
            tokenizer = Tokenizer(tokenizer.backend, named, tokenizer.chat_template)
    elif config.documents is not None:
        backend, training_bytes = _train(config, config.documents)
        tokenizer = Tokenizer.from_backend(
            backend,
            eos_token=END_OF_TEXT,
            pad_token=END_OF_TEXT,
            unk_token=TRAINERS[config.algorithm].unknown,
            mask_token=config.mask_token,
        )
    else:
        raise UsageError("the tokenizer stage has no text", "set tokenizer.documents or tokenizer.pretrained")
    source = _template_source(config)
    if source is not None:
        tokenizer.chat_template = ChatTemplate(source, tokenizer.special_tokens) if source else None
    if tokenizer.chat_template is not None:
        tokenizer.chat_template.render([{"role": "user", "content": "Hello"}], add_generation_prompt=True)
    with atomic_directory(run.directory / "tokenizer") as directory:
        tokenizer.save(directory)
    return {
        "vocab_size": tokenizer.vocab_size,
        "training_bytes": training_bytes,
        **(_measure(tokenizer, config.documents) if config.documents is not None else {}),
    }


def _train(config: TokenizerConfig, documents: Path) -> tuple[tokenizers.Tokenizer, int]:
    available = _text_bytes(documents, "train")
    if available == 0:
        raise DataError(f"the documents in {documents / 'train'} hold no text", "check what prepare has kept")
    counter = WordCounter(config.max_digits)
    training_bytes = 0
    with progress("tokenizer", min(available, config.max_bytes), "bytes") as bar:
        for piece in _evenly(documents, "train", config.max_bytes / available):
            counter.add(pa.array([piece]))
            size = len(piece.encode())
            training_bytes += size
            bar.advance(size)
    special = config.all_special_tokens()
    backend = TRAINERS[config.algorithm].train(
        counter.counts(),
        TrainerSettings(
            tuple(special), config.vocab_size, config.min_frequency, config.max_digits, config.character_coverage
        ),
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if backend.get_vocab_size() < config.vocab_size:
        say(
            f"the text yields only {backend.get_vocab_size():,} tokens of the {config.vocab_size:,} asked for: "
            "nothing else is in it often enough"
        )
    return backend, training_bytes


def _measure(tokenizer: Tokenizer, documents: Path) -> dict[str, Any]:
    """Bytes per token on held-out documents, or on those trained on if none are held out."""
    split = "validation" if _text_bytes(documents, "validation") else "train"
    available = _text_bytes(documents, split)
    num_bytes = num_tokens = 0
    for text in _evenly(documents, split, SAMPLE_BYTES / max(available, 1)):
        num_bytes += len(text.encode())
        num_tokens += len(tokenizer.encode(text))
    return {"bytes_per_token": num_bytes / num_tokens if num_tokens else None, "measured_on": split}


def _evenly(documents: Path, split: str, share: float) -> Iterator[str]:
    """A share of the text, in pieces spread evenly over all documents; all of it if `share` is 1 or more."""
    seen = taken = 0
    for column in _columns(documents, split):
        for text in column.to_pylist():
            for start in range(0, len(text or ""), PIECE_CHARACTERS):
                piece = text[start : start + PIECE_CHARACTERS]
                size = len(piece.encode())
                seen += size
                if taken < seen * share:
                    taken += size
                    yield piece


def _text_bytes(documents: Path, split: str) -> int:
    lengths = (pc.call_function("binary_length", [column]) for column in _columns(documents, split))
    return sum(pc.call_function("sum", [length]).as_py() or 0 for length in lengths)


def _columns(documents: Path, split: str) -> Iterator[pa.Array]:
    """The texts of a split, some hundred at a time, in the order of the files' names."""
    directory = documents / split
    paths = sorted(directory.glob("*.parquet"))
    if not paths and split == "train":
        raise DataError(f"{directory} holds no documents (*.parquet)", "run the prepare stage, or check the path")
    for path in paths:
        with reading(path, "documents"):
            try:
                file = pq.ParquetFile(path)
                schema = file.schema_arrow
                if "text" not in schema.names or not pa.types.is_string(schema.field("text").type):
                    raise DataError(f"documents {path} have no column of strings named text", "run prepare again")
                for batch in file.iter_batches(BATCH_ROWS, columns=["text"]):
                    yield batch.column(0)
            except pa.ArrowException as error:
                raise DataError(f"documents {path} are broken ({error})", "run prepare again") from error


def _template_source(config: TokenizerConfig) -> str | None:
    """The chat template to set; empty for none, None to leave it as it is."""
    if config.chat_template is None:
        return CHATML if config.pretrained is None else None
    if config.chat_template in ("chatml", "none"):
        return CHATML if config.chat_template == "chatml" else ""
    path = Path(config.chat_template)
    with reading(path, "chat template"):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"chat template {path} is not UTF-8 text", "save it as UTF-8") from error
