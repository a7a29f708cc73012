"""How training is spread over processes, from outside of the models."""

from __future__ import annotations

from tallow.parallel.world import ALONE, World, join_world

__all__ = ["ALONE", "World", "join_world"]
