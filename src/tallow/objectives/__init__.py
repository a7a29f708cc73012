"""What a model learns from: pure functions from packed tokens to inputs, targets, loss mask and attention rule."""

from __future__ import annotations

from collections.abc import Callable

from tallow.objectives.causal import causal
from tallow.objectives.example import Example, Objective, TokenModel
from tallow.objectives.masked import make_masked
from tallow.tokenizer.tokenizer import Tokenizer

MakeObjective = Callable[[Tokenizer, int], Objective]
"""Makes an objective for a tokenizer's texts; a seed names its chances, if it has any."""

OBJECTIVES: dict[str, MakeObjective] = {"causal": lambda _tokenizer, _seed: causal, "masked": make_masked}

__all__ = ["OBJECTIVES", "Example", "MakeObjective", "Objective", "TokenModel"]
