"""Training of tokenizers: CPU seconds, memory and what the vocabulary is worth, beside the library `tokenizers`.

    .venv/bin/python benchmarks/tokenizer_training.py [--vocab 8000] [--megabytes 5] [--file TEXTS.jsonl.xz …]

Both learn from the same texts, cut by the same rule, each time in a new process, by turns; the median is shown. Reading
the file is not counted, counting words and building the tokenizer is. `bytes/token` and, of Unigram, `bits/byte` under
the model's own best segmentation, are of every eleventh text, which is held out. The library's WordPiece is BPE in
disguise; its Unigram and its BPE over characters have no bytes for rare characters, so 256 pieces more.
"""

from __future__ import annotations

import argparse
import json
import lzma
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from tallow.kernels.text.word_counts import WordCounter
from tallow.tokenizer.trainers import TRAINERS
from tallow.tokenizer.trainers.byte_level import byte_level_pre_tokenizers
from tallow.tokenizer.trainers.settings import TrainerSettings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
UNKNOWN = "<unk>"
PIECE = 1 << 16  # characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--megabytes", type=float, default=5)
    parser.add_argument(
        "--file", type=Path, nargs="+", default=[DATA / "corpus_python_docs" / "python3.11_doc.en.jsonl.xz"]
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        algorithm, who = options.one
        print(json.dumps(measure(algorithm, who, options)))
        return
    print("| algorithm | trainer | CPU s | peak MB more | bytes/token | bits/byte |\n|---|---|---|---|---|---|")
    for algorithm in TRAINERS:
        turns = [
            {who: run([*sys.argv[1:], "--one", algorithm, who]) for who in ("tallow", "tokenizers")}
            for _ in range(options.repeat)
        ]
        for who in ("tallow", "tokenizers"):
            row = {key: statistics.median(turn[who][key] for turn in turns) for key in turns[0][who]}
            bits = f"{row['bits']:.3f}" if row["bits"] else ""
            print(f"| {algorithm} | {who} | {row['seconds']:.2f} | {row['mb']:.0f} | {row['bytes']:.3f} | {bits} |")


def run(arguments: Sequence[str]) -> dict[str, float]:
    output = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def measure(algorithm: Any, who: str, options: argparse.Namespace) -> dict[str, float]:
    texts = list[str]()
    for path in options.file:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            room = 1.1e6 * options.megabytes / len(options.file)
            while room > 0 and (line := file.readline()):
                texts.append(json.loads(line)["text"])
                room -= len(texts[-1].encode())
    held_out = texts[10::11]
    del texts[10::11]
    pieces = [text[at : at + PIECE] for text in texts for at in range(0, len(text), PIECE)]
    pa.array([""])  # imports pandas if that is installed
    memory, start = peak_mb(), time.process_time()
    backend = own(algorithm, pieces, options.vocab) if who == "tallow" else peer(algorithm, pieces, options.vocab)
    seconds, memory = time.process_time() - start, peak_mb() - memory
    ids = np.concatenate([np.array(encoding.ids) for encoding in backend.encode_batch_fast(held_out)])
    num_bytes, bits = sum(len(text.encode()) for text in held_out), 0.0
    if algorithm == "unigram":
        scores = np.array([score for _, score in json.loads(backend.to_str())["model"]["vocab"]])
        scores[backend.token_to_id(UNKNOWN)] = scores.min() - 10  # as the model has it
        bits = -scores[ids].sum() / np.log(2) / num_bytes
    return {"seconds": seconds, "mb": memory, "bytes": num_bytes / len(ids), "bits": bits}


def own(algorithm: Any, texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    counter = WordCounter(1)
    for text in texts:
        counter.add(pa.array([text]))
    settings = TrainerSettings((UNKNOWN,), vocab_size, None, 1, 1.0)
    return TRAINERS[algorithm].train(counter.counts(), settings)


def peer(algorithm: str, texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    over_bytes = algorithm in ("bpe", "wordpiece")
    known: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": [UNKNOWN], "show_progress": False}
    if algorithm == "unigram":
        backend, trainer = tokenizers.Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token=UNKNOWN, **known)
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if over_bytes else []
        if algorithm == "wordpiece":
            backend = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
            trainer = trainers.WordPieceTrainer(initial_alphabet=alphabet, continuing_subword_prefix="", **known)
        else:
            backend = tokenizers.Tokenizer(models.BPE(unk_token=UNKNOWN))
            trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **known)
    split, as_bytes = byte_level_pre_tokenizers(1)
    spaces = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes if over_bytes else spaces])
    backend.train_from_iterator(texts, trainer)
    return backend


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
