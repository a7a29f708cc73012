"""How training is spread over processes, from outside of the models."""

from __future__ import annotations

from tallow.parallel.config import ParallelConfig
from tallow.parallel.layout import Layout
from tallow.parallel.learner import Learner
from tallow.parallel.world import ALONE, Position, World, join_world

__all__ = ["ALONE", "Layout", "Learner", "ParallelConfig", "Position", "World", "join_world"]
