"""What answers grow by, between the engine's process and whoever reads them."""

from __future__ import annotations

import asyncio

import pytest

from tallow.serve.engine_process import Job
from tallow.serve.errors import ApiError
from tallow.serve.wire import Update


def grown(choice: int, token: int, text: str, end: str | None = None) -> Update:
    return Update(1, choice, [token], text, end, [-float(token)], [[(token, -float(token))]], [], [], 4)


def test_a_reader_who_comes_late_finds_all_at_once() -> None:
    async def read() -> None:
        job = Job({"count": 2})
        first = grown(0, 5, "A ")._replace(prompt_log_probs=[-1.0])
        for update in (first, grown(1, 6, "The "), grown(0, 7, "candle", "stop")):
            job.grow(update)
        assert list(await job.read()) == [
            Update(1, 0, [5, 7], "A candle", "stop", [-5, -7], [[(5, -5)], [(7, -7)]], [-1.0], [], 4),
            grown(1, 6, "The "),
        ]
        job.grow(grown(1, 8, "wax", "length"))
        assert list(await job.read()) == [grown(1, 8, "wax", "length")]
        assert list(await job.read()) == []

    asyncio.run(read())


def test_who_wants_all_of_it_waits_for_the_end() -> None:
    async def read() -> None:
        job = Job({"count": 2})
        reading = asyncio.create_task(job.read_all())
        for update in (grown(1, 5, "A"), grown(0, 6, "B", "stop"), grown(1, 7, "C", "stop")):
            await asyncio.sleep(0)
            assert not reading.done()
            job.grow(update)
        assert [update.text for update in await reading] == ["B", "AC"]

    asyncio.run(read())


def test_an_error_comes_after_what_there_was() -> None:
    async def read() -> None:
        job = Job({"count": 1})
        job.grow(grown(0, 5, "A"))
        job.fail(ApiError(500, "the engine failed"))
        assert [update.text for update in await job.read()] == ["A"]
        for reading in (job.read, job.read_all):
            with pytest.raises(ApiError, match="the engine failed"):
                await reading()

    asyncio.run(read())
