"""How training is spread over processes, from outside of the models."""

from __future__ import annotations

from tallow.parallel.config import ParallelConfig
from tallow.parallel.layout import Layout
from tallow.parallel.learner import Learner
from tallow.parallel.world import ALONE, World, join_world

__all__ = ["ALONE", "Layout", "Learner", "ParallelConfig", "World", "join_world"]
