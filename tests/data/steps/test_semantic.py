"""Documents whose vectors are alike, wherever they lie."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.data.steps.corpora import by_text, make_parts, ways_to_part

from tallow.data.duplicates.embed import Embedder
from tallow.data.duplicates.semantic import SemanticSettings, as_integers
from tallow.data.steps.semantic import drop_but_survivors, semantic_duplicates
from tallow.data.work.engines import LocalEngine
from tallow.data.work.work import Work
from tallow.models.encoder_config import EncoderConfig
from tallow.models.formats import save_model
from tallow.models.skeletons import new_model
from tallow.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path) -> Path:
    shape = EncoderConfig(
        vocab_size=257, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16, max_positions=64
    )
    directory = tmp_path_factory.mktemp("encoder") / "model"
    save_model(new_model(shape, 3), Tokenizer.load(tokenizer_directory), directory)
    return directory


def make_texts() -> list[str]:
    """Texts of few letters each, some of them in another order."""
    chance = random.Random(5)
    texts = ["?", ""]
    for _ in range(30):
        letters = chance.choices("abcdefghijklmnop qrstuvwxyz", k=5)
        text = chance.choices(letters, k=30)
        texts += ["".join(chance.sample(text, len(text))) for _ in range(chance.randrange(1, 4))]
    return texts


@pytest.mark.parametrize("clusters", [1, 5])
def test_survivors_do_not_depend_on_parts(tmp_path: Path, model: Path, clusters: int) -> None:
    settings = SemanticSettings(model=model, threshold=0.97, clusters=clusters, sample=40, center=clusters > 1)
    found, counts = [], []
    for number, (parted, _) in enumerate(ways_to_part(make_texts(), 2)):
        work = Work(tmp_path / str(number), LocalEngine(1))
        parts, verdicts = make_parts(work, parted)
        survivors = semantic_duplicates(work, parts, verdicts, settings)
        found.append([by_text(parts, survivors, column) for column in ("survivor", "size", "similarity")])
        dropped = drop_but_survivors(work, parts, verdicts, survivors, "semantic")
        reasons = [reason for _, _, reason in by_text(parts, dropped, "dropped_by")]
        assert reasons == [
            "too short" if len(text) < 2 else "semantic" if survivor not in (None, id) else None
            for id, text, survivor in found[-1][0]
        ]
        counts.append(sum(int(part.counts["semantic"]) for part in dropped))
    assert found[0] == found[1] == found[2]
    assert counts[0] == counts[1] == counts[2] > 10
    if clusters == 1:  # all are compared: pairs above the threshold are together, and each group has its smallest id
        ids, texts, survivors = zip(*[row for row in found[0][0] if len(row[1]) > 1], strict=True)
        vectors, _ = Embedder(model).embed(pa.array(texts), settings.max_tokens)
        whole = as_integers(vectors, np.zeros(16)).astype(float)
        cosines = (whole @ whole.T) / np.sqrt(np.outer((whole**2).sum(1), (whole**2).sum(1)))
        pairs = np.argwhere(np.triu(cosines >= settings.threshold, 1)).tolist()
        groups = {id: {id} for id in ids}
        for one, other in pairs:
            both = groups[ids[one]] | groups[ids[other]]
            groups |= dict.fromkeys(both, both)
        assert list(survivors) == [min(groups[id]) if len(groups[id]) > 1 else None for id in ids]


def test_two_processes_make_the_same(tmp_path: Path, model: Path) -> None:
    """All but the vectors, for which each process would have to load PyTorch."""
    texts, settings = make_texts(), SemanticSettings(model=model, threshold=0.97, clusters=3)
    work = Work(tmp_path, LocalEngine(1))
    parts, verdicts = make_parts(work, [texts[:20], texts[20:25], texts[25:]])
    made = semantic_duplicates(work, parts, verdicts, settings)
    before = [part.path.read_bytes() for part in made]
    for record in tmp_path.glob("*.json"):
        if "semantic:" in record.read_text() and "semantic:EMBED" not in record.read_text():
            for file in tmp_path.glob(f"{record.stem}*"):
                file.unlink()
    assert not any(part.path.exists() for part in made)
    with LocalEngine(2) as engine:
        semantic_duplicates(Work(tmp_path, engine), parts, verdicts, settings)
    assert [part.path.read_bytes() for part in made] == before


def test_nothing_to_embed(tmp_path: Path, model: Path) -> None:
    work = Work(tmp_path, LocalEngine(1))
    parts, verdicts = make_parts(work, [["?", ""], []])
    survivors = semantic_duplicates(work, parts, verdicts, SemanticSettings(model=model))
    assert [row[2] for row in by_text(parts, survivors, "survivor")] == [None, None]


def test_only_what_is_in_the_model_matters(tmp_path: Path, model: Path) -> None:
    """Vectors and all that follows from them are found again where the same model is at another place."""
    shutil.copytree(model, tmp_path / "moved")
    work = Work(tmp_path / "work", LocalEngine(1))
    parts, verdicts = make_parts(work, [make_texts()])
    made = [
        semantic_duplicates(work, parts, verdicts, SemanticSettings(model=place, threshold=0.97, clusters=3))
        for place in (model, tmp_path / "moved")
    ]
    assert made[0] == made[1]
    (tmp_path / "moved" / "added.txt").write_text("another model")
    later = Work(tmp_path / "work", LocalEngine(1))  # which has not looked at the model yet
    other = semantic_duplicates(
        later, parts, verdicts, SemanticSettings(model=tmp_path / "moved", threshold=0.97, clusters=3)
    )
    assert other != made[0]
