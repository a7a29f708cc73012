"""Memory that training keeps and uses again."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from tallow.kernels.memory import keeping_freed_memory
from tallow.run import rss_bytes

PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE = PAGES.exists() and "[never]" not in PAGES.read_text()
VALUES = 64 << 20


def faults_of_a_tensor() -> int:
    """Pages that the system has to find for a tensor of 256 MB, which is then forgotten."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(VALUES)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    assert faults_of_a_tensor() >= VALUES * 4 // (2 << 20)
    with keeping_freed_memory():
        # what is asked for is a little more than what was freed, so that a second place may be needed beside the first
        assert [faults_of_a_tensor() for _ in range(4)][-1] < 64


@pytest.mark.skipif(not LARGE, reason="this system gives no large pages")
def test_its_pages_are_large() -> None:
    with keeping_freed_memory():
        assert faults_of_a_tensor() < VALUES * 4 // 4096 // 16


def test_it_is_given_back_at_the_end() -> None:
    before = rss_bytes()
    with keeping_freed_memory():
        torch.zeros(VALUES)
        assert rss_bytes() > before + VALUES * 3
    assert rss_bytes() < before + VALUES
