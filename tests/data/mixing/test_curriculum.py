"""What is easy comes first, nothing before it may, and everything once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.mixing.test_mixing import write_tokens

from tallow.data.dataset import TokenDataset
from tallow.data.mixing.curriculum import CurriculumConfig, paced_order
from tallow.data.mixing.mixture import MixtureConfig, sources_of
from tallow.data.mixing.plan import plan_order
from tallow.errors import DataError, UsageError

pacings = st.builds(
    CurriculumConfig,
    pacing=st.sampled_from(("linear", "root")),
    start=st.floats(0.01, 1),
    until=st.floats(0.01, 1),
    hardest_first=st.booleans(),
)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), pacings, st.integers(1, 80), st.integers(0, 5))
def test_nothing_comes_before_it_may(values: list[int], config: CurriculumConfig, length: int, seed: int) -> None:
    hardness = np.array(values, dtype=np.float64)
    order = paced_order(hardness, config, length, seed)
    assert sorted(order.tolist()) == list(range(len(values)))
    ranked = np.sort(-hardness if config.hardest_first else hardness)
    for place, row in enumerate(order.tolist()):
        time = place / min(length, len(values))
        may = max(place + 1, math.ceil(len(values) * config.competence(time) - 1e-9))
        assert (-values[row] if config.hardest_first else values[row]) <= ranked[may - 1]
    assert order.tolist() == paced_order(hardness, config, length, seed).tolist()


def test_competence_rises_to_one() -> None:
    for pacing in ("linear", "root"):
        config = CurriculumConfig.model_validate({"pacing": pacing, "start": 0.1, "until": 0.5})
        curve = [config.competence(time) for time in (0, 0.25, 0.5, 1)]
        assert curve[0] == pytest.approx(0.1)
        assert curve[2:] == [1, 1]
        assert curve == sorted(curve)
        assert curve[1] == pytest.approx(0.55 if pacing == "linear" else math.sqrt((0.01 + 1) / 2))


def test_rows_are_as_hard_as_their_documents(tmp_path: Path) -> None:
    documents = [(f"{'ab'[number % 2]}", [number + 1] * (5 + 3 * number) + [0]) for number in range(12)]
    directory = write_tokens(tmp_path / "tokens", [documents[:5], documents[5:]])
    for packing in ("split", "best_fit"):
        dataset = TokenDataset(directory, "train", 16, 3, packing, {"a": ("a",), "b": ("b",)})
        begins = dataset.document_begins()
        scores = np.square(np.arange(12, dtype=np.float64))
        assert dataset.owners is not None
        number = 0
        for domain, stream in enumerate(dataset.streams.values()):
            own = dataset.owners == domain
            means = stream.means(stream.places_of(begins[own]), scores[own])
            for mean in means.tolist():
                row = dataset.sequence(number)
                ids = row.tokens_BT[0][row.trainable_BT[0]]
                places = row.documents_BT[0][row.trainable_BT[0]]
                owners = [int(ids[places == place].max()) - 1 for place in places]  # the end token is its document's
                if 0 not in ids.tolist()[:1]:  # else there is nothing left to know the document by
                    assert mean == pytest.approx(np.mean([scores[owner] for owner in owners]))
                number += 1


def test_a_run_begins_with_what_is_easy(tmp_path: Path) -> None:
    documents = [("ab"[number % 2], [1 + number % 60] * 15 + [0]) for number in range(120)]
    directory = write_tokens(tmp_path / "tokens", [documents])
    table = pa.table({"id": [f"id{number}" for number in range(119)], "loss": [float(n % 60) for n in range(119)]})
    pq.write_table(table, tmp_path / "scores.parquet")
    config = CurriculumConfig(by="loss", scores=tmp_path / "scores.parquet", start=0.02, until=1, pacing="linear")
    mixture = MixtureConfig(weights={"a": 1, "b": 1})
    dataset = TokenDataset(directory, "train", 15, 0, "best_fit", sources_of(mixture, ["a", "b"]))
    order, _ = plan_order(dataset, 120, mixture, config)
    kinds = [int(dataset.sequence(row).tokens_BT[0, 0]) - 1 for row in order.numbers(range(120))]
    assert max(kinds[:12]) < 20
    assert len(set(order.numbers(range(120)))) == 120  # and epochs differ in their numbers
    for begin in range(0, 100, 20):
        assert np.mean(kinds[begin : begin + 20]) < np.mean(kinds[begin + 20 : begin + 40]) + 8
    later = [int(dataset.sequence(row).tokens_BT[0, 0]) - 1 for row in order.numbers(range(200, 240))]
    assert np.mean(later[:20]) > 20  # in random order

    with pytest.raises(UsageError, match=r"curriculum.by is loss"):
        plan_order(dataset, 120, mixture, CurriculumConfig(by="loss"))
    with pytest.raises(DataError, match="not a parquet file with the columns id and los"):
        plan_order(dataset, 120, mixture, config.model_copy(update={"by": "los"}))
    pq.write_table(table.slice(0, 0), tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="has no loss of any document"):
        plan_order(dataset, 120, mixture, config)
