from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from tests.train.toys import pack, tiny_model

from tallow.data.batch import Packed
from tallow.models.config import DecoderConfig
from tallow.models.decoder import Decoder
from tallow.objectives.causal import causal
from tallow.objectives.loss import summed_loss
from tallow.parallel import Layout
from tallow.train.precision import (
    _ATTENTION,
    PROBE_SECONDS,
    Precision,
    autocast,
    count_flops,
    settle_workload,
    time_precisions,
)

ROWS = pack(torch.ones(3, 9, dtype=torch.int64))
ROW = pack(torch.ones(1, 9, dtype=torch.int64))


LAYOUT = Layout(tiny_model())


class Machine:
    """A clock that rehearsals turn, each precision at its own speed; `busy`: how much slower each one in turn is."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, fp32_s: float, bf16_s: float, busy: Iterable[float] = itertools.repeat(1)
    ) -> None:
        self.seconds: dict[Precision, float] = {"fp32": fp32_s, "bf16": bf16_s}
        self.busy = iter(busy)
        self.now = 0.0
        self.rehearsals = 0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def rehearse(self, packed: Packed, wanted: Precision) -> None:
        assert packed.tokens_BT.shape == (1, 9)
        torch.mm(torch.ones(8, 16), torch.ones(16, 5))
        self.rehearsals += 1
        self.now += self.seconds[wanted] * next(self.busy)


@pytest.mark.parametrize(("fp32_s", "bf16_s", "expected"), [(2.0, 1.0, "bf16"), (1.0, 1.0, "fp32"), (1.0, 3.0, "fp32")])
def test_auto_takes_the_faster_one_and_bfloat16_must_be_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp32_s: float, bf16_s: float, expected: str
) -> None:
    machine = Machine(monkeypatch, fp32_s, bf16_s)
    workload = settle_workload("auto", machine.rehearse, ROWS, tmp_path / "workload.json", LAYOUT)
    assert workload.precision == expected
    assert workload.seconds == {"fp32": fp32_s, "bf16": bf16_s}
    assert workload.flops_per_token == 2 * 8 * 16 * 5 / 8


def test_a_busy_machine_does_not_change_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the rehearsals, by chance, are up to four times slower, and yet two runs of a recipe agree."""
    for seed, (bf16_s, expected) in itertools.product(range(100), ((0.008, "bf16"), (0.010, "fp32"))):
        chance = random.Random(seed)
        busy = (1 + max(0.0, chance.uniform(-3, 3)) for _ in itertools.count())
        machine = Machine(monkeypatch, 0.010, bf16_s, busy)
        workload = settle_workload("auto", machine.rehearse, ROWS, tmp_path / f"{seed} {expected}.json", LAYOUT)
        assert workload.precision == expected


def test_the_probe_is_longer_in_doubt_and_never_long(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsals = {}
    for fp32_s, bf16_s in ((0.02, 0.01), (0.01, 0.02), (0.0110, 0.01), (0.3, 0.4), (20.0, 10.0)):
        machine = Machine(monkeypatch, fp32_s, bf16_s)
        time_precisions(lambda precision, machine=machine: machine.rehearse(ROW, precision))
        rehearsals[fp32_s, bf16_s] = machine.rehearsals
        assert machine.now < PROBE_SECONDS + fp32_s + bf16_s
    # the round that allocates and seven that count; in doubt all that fit; one is enough if it is so slow
    assert list(rehearsals.values()) == [16, 16, pytest.approx(286, abs=2), 10, 2]


def test_a_run_that_goes_on_keeps_its_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "workload.json"
    first = settle_workload("auto", Machine(monkeypatch, 2.0, 1.0).rehearse, ROWS, path, LAYOUT)
    changed = Machine(monkeypatch, 1.0, 2.0)
    assert settle_workload("auto", changed.rehearse, ROWS, path, LAYOUT) == first
    assert changed.rehearsals == 0


def test_what_the_user_wants_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "workload.json"
    machine = Machine(monkeypatch, 2.0, 1.0)
    settle_workload("auto", machine.rehearse, ROWS, path, LAYOUT)
    assert settle_workload("fp32", machine.rehearse, ROWS, path, LAYOUT).precision == "fp32"


@pytest.mark.parametrize("note", ["", "{", "[]", '{"precision": "fp8"}'])
def test_a_broken_note_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: str) -> None:
    path = tmp_path / "workload.json"
    path.write_text(note)
    assert settle_workload("auto", Machine(monkeypatch, 2.0, 1.0).rehearse, ROWS, path, LAYOUT).precision == "bf16"


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_counted_operations_are_those_of_the_formula(wanted: Precision) -> None:
    # 2 rows of 64 are one piece of 128 targets, with nothing to fill up
    hidden, inner, layers, vocabulary, tokens = 32, 48, 2, 40, 64
    shape = {"hidden_size": hidden, "intermediate_size": inner, "num_layers": layers, "num_heads": 2}
    model = Decoder(DecoderConfig.model_validate({"vocab_size": vocabulary, "num_kv_heads": 2, **shape}))
    example = causal(pack(torch.ones(2, tokens + 1, dtype=torch.int64)))

    def work() -> None:
        with autocast(wanted, torch.device("cpu")):
            summed_loss(model, example).backward()

    weights = layers * (4 * hidden**2 + 3 * hidden * inner) + hidden * vocabulary
    attention = layers * tokens * hidden  # products of queries and keys of a token, and as many of weights and values
    # seven products (one is done again in the backward pass), half of each
    expected = 6 * weights + 7 * attention
    assert count_flops(work) / (2 * tokens) == expected


@pytest.mark.parametrize("kind", ["flash_attention", "efficient_attention", "cudnn_attention"])
def test_attention_of_gpus_is_counted_as_that_of_cpus(kind: str) -> None:
    q, k = [2, 4, 16, 8], [2, 4, 16, 8]  # 2 rows, 4 heads, 16 places, 8 numbers a head
    full = 2 * 2 * 2 * 4 * 16 * 16 * 8
    forward = getattr(torch.ops.aten, f"_scaled_dot_product_{kind}")
    formula = _ATTENTION[forward]
    between = {
        "flash_attention": (0.0,),
        "efficient_attention": (None, True, 0.0),
        "cudnn_attention": (None, True, 0.0),
    }
    assert formula(q, k, k, *between[kind], False) == full
    assert formula(q, k, k, *between[kind], True) == full // 2
    backward = getattr(torch.ops.aten, f"_scaled_dot_product_{kind}_backward")
    names = [argument.name for argument in backward.default._schema.arguments]
    given = {"query": q, "key": k, "is_causal": True}
    before = [given.get(name) for name in names[: names.index("is_causal") + 1]]
    assert _ATTENTION[backward](*before) == full // 2 * 5 // 2
