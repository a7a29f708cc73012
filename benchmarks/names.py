"""Names of people found by a model: precision and recall of small taggers that are trained here from nothing.

    .venv/bin/python benchmarks/names.py ../shared/data/pii/presidio_generated_large.json.gz [--folds 5]

The labelled sentences are made from templates. Each fold's tagger is measured on sentences of templates that it has
not seen (or with `--unseen full_text` on sentences that it has not), as scrubbing would find them
(`prepare.privacy.name`). It shows what two thousand labelled sentences are worth, not what a tagger does that was
trained on millions: measure one of those with `--model DIR`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import tokenizers
import torch
from torch.nn import functional as F

from tallow.data.privacy import PrivacyConfig
from tallow.data.privacy.config import NameConfig
from tallow.data.privacy.scrub import locate
from tallow.models.blocks.bidirectional import BidirectionalContext
from tallow.models.encoder import initialize_encoder
from tallow.models.encoder_config import EncoderConfig
from tallow.models.formats import save_model
from tallow.models.tagger import Tagger
from tallow.tokenizer.tokenizer import Tokenizer

LABELS = ("O", "B-PER", "I-PER")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
Record = dict[str, Any]
VOCABULARY, TOKENS, BATCH, IGNORED = 3000, 96, 32, -100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled", type=Path, help="a JSON list with full_text, masked and spans, as Presidio's")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument(
        "--unseen", choices=("masked", "full_text"), default="masked", help="templates, or sentences only"
    )
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--model", type=Path, help="a tagger to measure instead")
    options = parser.parse_args()
    data = options.labelled.read_bytes()
    records: list[Record] = json.loads(gzip.decompress(data) if options.labelled.suffix == ".gz" else data)
    counts = Counter[str]()
    if options.model is not None:
        counts = measure(options.model, records)
    else:
        keys = sorted({record[options.unseen] for record in records})
        random.Random(0).shuffle(keys)
        for fold in range(options.folds):
            unseen = set(keys[fold :: options.folds])
            with tempfile.TemporaryDirectory() as directory:
                place = Path(directory) / "tagger"
                train([record for record in records if record[options.unseen] not in unseen], options.epochs, place)
                counts += measure(place, [record for record in records if record[options.unseen] in unseen])
    precision, recall = counts["right"] / counts["found"], counts["recalled"] / counts["labelled"]
    print(f"{counts['labelled']:,} names, {counts['found']:,} found: precision {precision:.3f}, recall {recall:.3f}")
    print(f"{counts['bytes'] / counts['milliseconds']:.1f} kB/s of processor time")


def names_of(record: Record) -> list[tuple[int, int]]:
    return [(s["start_position"], s["end_position"]) for s in record["spans"] if s["entity_type"] == "PERSON"]


def measure(model: Path, records: Sequence[Record]) -> Counter[str]:
    """How many names overlap with what is found, and the other way round."""
    config = PrivacyConfig(name=NameConfig(model=model))
    texts = pa.array([record["full_text"] for record in records])
    begin = time.process_time()
    located = locate(texts, config)
    counts = Counter({"milliseconds": round(1e3 * (time.process_time() - begin)), "bytes": texts.nbytes})
    for record, spans in zip(records, located, strict=True):
        found, wanted = [(span.start, span.end) for span in spans if span.kind == "name"], names_of(record)
        counts += Counter(found=len(found), labelled=len(wanted))
        counts["right"] += sum(any(a < end and start < b for a, b in wanted) for start, end in found)
        counts["recalled"] += sum(any(a < end and start < b for a, b in found) for start, end in wanted)
    return counts


def train(records: Sequence[Record], epochs: int, place: Path) -> None:
    """A tagger of four layers, to which names are also shown with letters that it has not met."""
    tokenizer = make_tokenizer([record["full_text"] for record in records])
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        intermediate_size=512,
        max_positions=256,
    )
    torch.manual_seed(0)
    model = Tagger(shape, LABELS)
    initialize_encoder(model, seed=0)
    rows = [encoded(tokenizer, record) for record in records]
    steps = epochs * -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-4, total_steps=steps)
    chance = random.Random(0)
    for _ in range(epochs):
        chance.shuffle(rows)
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            length = max(len(ids) for ids, _ in batch)
            ids_BT = torch.zeros(len(batch), length, dtype=torch.long)
            wanted_BT = torch.full((len(batch), length), IGNORED)
            for row, (ids, wanted) in enumerate(batch):
                ids_BT[row, : len(ids)], wanted_BT[row, : len(ids)] = torch.tensor(ids), torch.tensor(wanted)
            known_BT = torch.where((torch.rand(ids_BT.shape) < 0.1) & (ids_BT > 3), 1, ids_BT)
            padding_BT = (ids_BT == 0).long()
            context = BidirectionalContext(torch.arange(length).expand(len(batch), length), padding_BT)
            logits_BTL = model.logits(model(known_BT, context))
            F.cross_entropy(logits_BTL.flatten(0, 1), wanted_BT.flatten(), ignore_index=IGNORED).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    save_model(model, tokenizer, place)


def encoded(tokenizer: Tokenizer, record: Record) -> tuple[list[int], list[int]]:
    """Ids, and the label of each first token of a word."""
    encoding = tokenizer.backend.encode(record["full_text"])
    names, labels = names_of(record), list[int]()
    for piece, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        of = next((name for name in names if name[0] <= start < name[1]), None)
        label = 0 if of is None else 1 if start == of[0] else 2
        labels.append(IGNORED if piece.startswith("##") or start == end else label)
    return encoding.ids[:TOKENS], labels[:TOKENS]


def make_tokenizer(texts: Sequence[str]) -> Tokenizer:
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=[*SPECIAL])
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return Tokenizer.from_backend(backend, pad_token="[PAD]", unk_token="[UNK]")


if __name__ == "__main__":
    main()
