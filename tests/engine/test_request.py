"""What a request may ask for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tallow.engine.request import MAX_SEED, SamplingParams
from tallow.errors import UsageError
from tallow.recipe import Section, parse_section


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("stop", "###"),
        ("stop", ("",)),
        ("stop", (1,)),
        ("stop", None),
        ("stop", 5),
        ("stop", b"x"),
        ("ignore_eos", "no"),
        ("ignore_eos", 1),
        ("prompt_log_probs", "no"),
        ("structure", "x"),
        ("structure", {"regex": "a"}),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", None),
        ("max_new_tokens", True),
        ("max_new_tokens", 10**400),
        ("seed", 10**400),
        ("top_k", 2**63),
        ("dry_allowed_length", 2**63),
        ("top_k", 1.5),
        ("seed", 1.5),
        ("temperature", "1"),
        ("temperature", None),
        ("temperature", True),
        ("temperature", 10**400),
        ("stop_ids", 5),
        ("stop_ids", ("a",)),
        ("stop_ids", b"a"),
        ("stop_ids", (True,)),
        ("logit_bias", None),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1.0}),
        ("logit_bias", {1: "a"}),
        ("logit_bias", {1: math.inf}),
        ("logit_bias", {1: 1e300}),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("frequency_penalty", -1e300),
        ("presence_penalty", math.nan),
        ("dry_multiplier", 1e300),
    ],
)
def test_nonsense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})


def test_biases_from_json() -> None:
    from_json: Any = {"17": 2}
    assert SamplingParams(logit_bias=from_json).logit_bias == {17: 2.0}


def test_lists_become_tuples() -> None:
    lists: Any = {"stop": ["a"], "stop_ids": [1]}
    params = SamplingParams(**lists)
    assert (params.stop, params.stop_ids) == (("a",), (1,))


class Holder(Section):
    sampling: SamplingParams = SamplingParams()


def test_parameters_in_a_recipe() -> None:
    section = parse_section(Holder, {"sampling": {"temperature": 0.5, "stop": ["\n"]}}, "sample")
    assert section.sampling == SamplingParams(temperature=0.5, stop=("\n",))
    with pytest.raises(UsageError, match="temprature"):
        parse_section(Holder, {"sampling": {"temprature": 0.5}}, "sample")
    with pytest.raises(UsageError, match="top_p"):
        parse_section(Holder, {"sampling": {"top_p": 2.0}}, "sample")
