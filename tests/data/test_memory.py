"""Memory of preparation follows from the size of parts, not from that of the corpus."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from tallow.data.config import PrepareConfig, QualityConfig
from tallow.data.duplicates.minhash import MinHashSettings
from tallow.data.duplicates.units import UnitSettings
from tallow.data.prepare import prepare
from tallow.data.work.cluster import ClusterConfig
from tallow.run import StageRun, peak_rss_bytes

config = PrepareConfig(
    sources=(Path(sys.argv[1]),),
    quality=QualityConfig(c4=None),
    near_duplicates=MinHashSettings(bands=4),
    repeated_units=(UnitSettings(),),
    part_mb=1,
    cluster=ClusterConfig(processes=1),
)
prepare(config, StageRun(Path(sys.argv[2])))
print(peak_rss_bytes() >> 20)
"""


def peak_mb(directory: Path, size_mb: int) -> int:
    """Of a corpus of so many MB, in which each tenth document is much like another one."""
    chance = random.Random(0)
    words = ["the", "of", *("".join(chance.choices("abcdefgh", k=6)) for _ in range(5000))]
    source, size = directory / f"{size_mb}.jsonl", 0
    with open(source, "w") as file:
        while size < size_mb << 20:
            text = " and the ".join(" ".join(chance.choices(words, k=8)) + "." for _ in range(30))
            for version in (text, text.replace("and", "with", 1))[: 1 + (chance.random() < 0.1)]:
                size += file.write(json.dumps({"text": version}) + "\n")
    command = [sys.executable, "-c", SCRIPT, str(source), str(directory / f"run{size_mb}")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout.split()[-1])


def test_four_times_the_corpus_takes_little_more_memory(tmp_path: Path) -> None:
    small, large = peak_mb(tmp_path, 6), peak_mb(tmp_path, 24)
    assert large < small + 20
