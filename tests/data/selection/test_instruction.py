from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallow.data.selection.instruction import score_instructions

texts = st.lists(st.tuples(*[st.lists(st.sampled_from("abc"), max_size=9)] * 2), max_size=5)


@given(texts)
def test_scores_are_what_they_say(pairs: list[tuple[list[str], list[str]]]) -> None:
    prompts, responses = (pa.array([" ".join(pair[side]) for pair in pairs], pa.string()) for side in (0, 1))
    rows = score_instructions(prompts, responses).to_pylist()
    for row, (prompt, response) in zip(rows, pairs, strict=True):
        given_grams, grams = (
            [tuple(words[at : at + 3]) for at in range(len(words) - 2)] for words in (prompt, response)
        )
        assert row["instruction.prompt_words"] == len(prompt)
        assert row["instruction.response_words"] == len(response)
        if not grams:
            assert row["instruction.distinct"] is row["instruction.copied"] is None
            continue
        assert row["instruction.distinct"] == pytest.approx(len(set(grams)) / len(grams))
        assert row["instruction.copied"] == pytest.approx(sum(gram in given_grams for gram in grams) / len(grams))
