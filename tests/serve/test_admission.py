"""How much the server takes on: what can never be answered is told so, the prompts of one request take turns."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from tallow.serve.admission import Admission
from tallow.serve.errors import ApiError
from tallow.serve.settings import Limits


def test_places_come_back() -> None:
    async def run() -> None:
        admission = Admission(Limits(requests=2, queued_tokens=100))
        async with admission.place(60), admission.place(40):
            for num_bytes in (0, 1):
                with pytest.raises(ApiError) as refused:
                    async with admission.place(num_bytes):
                        pass
                assert (refused.value.status, refused.value.code) == (429, "queue_full")
        assert (admission.num_requests, admission.num_queued_tokens) == (0, 0)
        async with admission.place(60), asyncio.timeout(1):
            with pytest.raises(ApiError) as refused:
                async with admission.place(60):
                    pass
            assert refused.value.status == 429

    asyncio.run(run())


def test_a_prompt_that_never_fits_is_told_so() -> None:
    async def run() -> None:
        with pytest.raises(ApiError, match="101 bytes, at most 100 are taken") as refused:
            async with Admission(Limits(queued_tokens=100)).place(101):
                pass
        assert refused.value.status == 400

    asyncio.run(run())


def test_a_place_is_left_in_time() -> None:
    async def run() -> None:
        admission = Admission(Limits(request_s=0.05))
        for timeout_s in (None, 0.01, 50):
            with pytest.raises(ApiError) as late:
                async with admission.place(1, timeout_s):
                    await asyncio.sleep(5)
            assert late.value.status == 408
        assert admission.num_requests == 0

    asyncio.run(run())


@pytest.mark.parametrize(("num_bytes", "most"), [(10, 3), (50, 2), (100, 1)])
def test_prompts_of_one_request_never_keep_each_other_out(num_bytes: int, most: int) -> None:
    async def run() -> None:
        admission = Admission(Limits(requests=3, queued_tokens=100))
        seen = []

        async def work(number: int) -> int:
            async with admission.place(num_bytes):
                seen.append(admission.num_requests)
                await asyncio.sleep(0.001 * (number % 3))
            return number

        works = [partial(work, number) for number in range(8)]
        assert await admission.in_turns(works, num_bytes, None) == list(range(8))
        assert max(seen) == most

    asyncio.run(run())


def test_one_deadline_holds_for_all_turns() -> None:
    async def run() -> None:
        admission = Admission(Limits(requests=1))

        async def work() -> None:
            async with admission.place(1, 0.2):
                await asyncio.sleep(0.1)

        with pytest.raises(ApiError) as late:
            await admission.in_turns([work] * 9, 1, 0.2)
        assert late.value.status == 408
        await asyncio.sleep(0)
        assert admission.num_requests == 0

    asyncio.run(run())
