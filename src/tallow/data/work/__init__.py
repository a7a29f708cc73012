"""Work on tables in parts: pure functions, done in any process, and never twice."""

from tallow.data.work.step import Input, Part, Step
from tallow.data.work.work import Work

__all__ = ["Input", "Part", "Step", "Work"]
