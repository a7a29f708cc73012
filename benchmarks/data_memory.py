"""Memory and time of preparation by the size of the corpus, which is made here.

    .venv/bin/python benchmarks/data_memory.py [--gb 0.5 5] [--processes N] [--threads N] [--part-mb MB]

Made-up English-like text with quality rules, near-duplicates (a tenth of the documents has a near copy), repeated lines
and private things. Takes about three times the size on disk below --place.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from data import measured
from tallow.data.config import PrepareConfig, QualityConfig
from tallow.data.duplicates.minhash import MinHashSettings
from tallow.data.duplicates.units import UnitSettings
from tallow.data.manifest import load_document_manifest
from tallow.data.privacy.config import PrivacyConfig
from tallow.recipe import dump_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, nargs="+", default=[0.5, 5])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part-mb", type=float, default=8)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    print("| GB | documents | kept | seconds | MB/s | peak MB, all processes |\n|" + "---:|" * 6)
    for size in options.gb:
        with tempfile.TemporaryDirectory(dir=options.place) as directory:
            place = Path(directory)
            documents = write_corpus(place / "corpus.jsonl", int(size * 1e9))
            config = PrepareConfig(
                sources=(place / "corpus.jsonl",),
                quality=QualityConfig(c4=None),
                near_duplicates=MinHashSettings(),
                repeated_units=(UnitSettings(),),
                privacy=PrivacyConfig(),
                part_mb=options.part_mb,
            )
            recipe = place / "recipe.yaml"
            recipe.write_text(dump_recipe({"name": "x", "prepare": config.model_dump(mode="json")}))
            command = [sys.executable, "-m", "tallow", "prepare", str(recipe), "--run", str(place / "run"), "--json"]
            seconds, peak = measured(
                [*command, "--set", f"cluster={{processes: {options.processes}, threads: {options.threads}}}"]
            )
            manifest = load_document_manifest(place / "run" / "prepare" / "documents")
            kept = sum(counts.documents for counts in manifest.splits.values())
            print(f"| {size} | {documents:,} | {kept:,} | {seconds:,.0f} | {size * 1e3 / seconds:.1f} | {peak:,.0f} |")
            shutil.rmtree(place / "run")


def write_corpus(path: Path, size: int) -> int:
    """JSON lines of about so many bytes; how many."""
    chance = random.Random(0)
    words = [*["the", "of", "and", "that"] * 40, *("".join(chance.choices("etaoinshrdlu", k=6)) for _ in range(20_000))]
    sentences = [" ".join(chance.choices(words, k=12)).capitalize() + "." for _ in range(200_000)]
    written = count = 0
    with open(path, "w") as file:
        while written < size:
            text = " ".join([*chance.choices(sentences, k=20), f"Write to {chance.random()}@example.org."])
            text = "\n".join(text[at : at + 400] for at in range(0, len(text), 400))
            versions = (text, text.replace(" the ", " that ", 1)) if chance.random() < 0.1 else (text,)
            for version in versions:
                written += file.write(json.dumps({"text": version}) + "\n")
                count += 1
    return count


if __name__ == "__main__":
    main()
