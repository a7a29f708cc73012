"""Reports on a server's log: the curves say what the rows say, whatever the rows are."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tallow.cli import app
from tallow.errors import DataError
from tallow.report.load import MOST_SPANS, LogSummary, summarize_log
from tallow.report.page import write_log_report
from tallow.serve.request_log import LoggedRequest, RequestLog

BEGIN_S = 1_795_000_000.0


def row(
    after_s: float = 0.0, first_s: float | None = 1.0, latency_s: float = 5.0, tokens: int = 9, status: int = 200
) -> LoggedRequest:
    """A request with a prompt of 100 tokens, 40 of which were in the cache."""
    return LoggedRequest(
        BEGIN_S + after_s,
        "<b>alice",
        "/v1/chat/completions",
        "tiny",
        status,
        100,
        40,
        tokens,
        first_s,
        latency_s,
        "stop",
    )


REFUSED = row(2.0, None, 0.0, 0, 429)


def write(path: Path, *rows: LoggedRequest) -> Path:
    log = RequestLog(path)
    for each in rows:
        log._rows.put(each)
    log.close()
    return path


def test_curves_say_what_the_rows_say() -> None:
    load = LogSummary(Path("log"), [row(), row(2.0, 2.5, 4.5), REFUSED]).load()
    assert list(load.edges_s - BEGIN_S) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert list(load.waiting) == [1, 0, 1, 1, 1, 0, 0], "one waits from 0 to 1, another from 2 to 4.5"
    assert list(load.running) == [0, 1, 1, 1, 2, 1, 1], "one grows from 1 to 5, another from 4.5 to 6.5"
    assert load.tokens_per_s == pytest.approx([0, 2.25, 2.25, 2.25, 4.5, 4.5, 2.25])
    assert list(load.prompt_tokens_per_s) == [0, 60, 0, 0, 60, 0, 0]
    np.testing.assert_array_equal(load.first_token_s[50], [1.0, np.nan, 2.5, np.nan, np.nan, np.nan, np.nan])


@given(
    st.lists(
        st.builds(
            lambda after, first, rest, tokens: row(
                after, first, (first or 0.0) + rest, tokens if first is not None else 0
            ),
            st.floats(0, 1e7),
            st.none() | st.floats(0, 100),
            st.floats(0, 1000),
            st.integers(1, 1000),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_nothing_is_lost_between_the_spans(rows: list[LoggedRequest]) -> None:
    rows.sort()
    load = LogSummary(Path("log"), rows).load()
    span_s = load.edges_s[1] - load.edges_s[0]
    assert len(load.waiting) <= MOST_SPANS + 1
    assert load.edges_s[0] <= rows[0].arrived_s < load.edges_s[1]
    assert load.tokens_per_s.sum() * span_s == pytest.approx(sum(each.completion_tokens for each in rows), rel=1e-6)
    begun = [each for each in rows if each.first_token_s is not None]
    assert load.prompt_tokens_per_s.sum() * span_s == pytest.approx(60 * len(begun), rel=1e-6)
    assert 0 <= max(load.waiting) <= len(rows)
    assert 0 <= max(load.running) <= len(begun)


def test_figures_are_of_what_was_answered() -> None:
    figures = LogSummary(Path("log"), [row(), row(2.0, 3.0, 5.0, 5), REFUSED]).as_json()
    assert (figures["requests"], figures["answered"]) == (3, 2)
    assert (figures["prompt_tokens"], figures["cached_tokens"], figures["completion_tokens"]) == (300, 120, 14)
    assert figures["first_token_s"]["p50"] == 2.0
    assert figures["time_per_token_s"]["max"] == 0.5
    assert figures["first"] == "2026-11-18T11:06:40+00:00"
    assert LogSummary(Path("log"), [REFUSED]).as_json()["latency_s"] is None


def test_the_command_takes_a_log(tmp_path: Path) -> None:
    log = write(tmp_path / "requests.sqlite", row(), row(2.0, 2.5, 4.5), REFUSED)
    ran = CliRunner().invoke(app, ["report", str(log), "--json"])
    told = json.loads(ran.stdout)
    assert told["requests"] == 3
    page = Path(told["report"])
    assert page == tmp_path / "requests.sqlite.html"
    text = page.read_text()
    html.parser.HTMLParser().feed(text)
    assert text.count("<svg") == 1
    assert "&lt;b&gt;alice" in text
    assert "<b>alice" not in text
    assert "<script" not in text
    assert write_log_report(summarize_log(log)).read_text() == text, "the same log gives the same page"


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no request has been written"):
        summarize_log(write(tmp_path / "empty.sqlite"))
