"""How a process begins."""

from __future__ import annotations

import gc
import mmap
import sys
import time

import pytest

from tallow.startup import Moment, uncollected


def test_nothing_is_collected_within() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
def test_a_moment() -> None:
    before = Moment.now()
    time.sleep(0.02)
    memory = mmap.mmap(-1, 32 << 20)  # the system's, not what the process has freed before
    for page in range(0, len(memory), mmap.PAGESIZE):
        memory[page] = 1
    after = Moment.now()
    assert 0 < before.age_s < after.age_s < 24 * 3600
    assert after.rss_bytes - before.rss_bytes > 0.9 * len(memory)
