"""What a user chooses of a model that is loaded: precision, device, and where its weights are kept."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "fp32", "bf16", "q8", "q4"]
PRECISIONS = ("auto", "fp32", "bf16", "q8", "q4")
CachePrecision = Literal["auto", "fp32", "bf16", "q8"]
CACHE_PRECISIONS = ("auto", "fp32", "bf16", "q8")
Placement = Literal["auto", "memory", "mapped"]
PLACEMENTS = ("auto", "memory", "mapped")
Device = Literal["auto", "cpu", "cuda"]
DEVICES = ("auto", "cpu", "cuda")
