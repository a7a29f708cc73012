"""What a model learns from: pure functions from packed tokens to inputs, targets, loss mask and attention rule."""

from __future__ import annotations

from tallow.objectives.causal import causal
from tallow.objectives.example import Example, Objective, TokenModel

OBJECTIVES: dict[str, Objective] = {"causal": causal}

__all__ = ["OBJECTIVES", "Example", "Objective", "TokenModel"]
