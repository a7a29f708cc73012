"""A linear classifier that a user trains on examples of what is wanted and what is not: good prose, toxic text, …

Logistic regression on hashed n-grams of words and characters. A part of the examples, chosen by their content, is held
out, and what the classifier says of these is its report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tallow.data.quality.logistic import fit_logistic, sigmoid
from tallow.data.quality.precision import Point, Report, measure
from tallow.data.split import is_held_out
from tallow.errors import DataError
from tallow.files import atomic_directory, read_json, write_json
from tallow.kernels.text.hashed_grams import Features, Grams, hashed_grams, sum_grams
from tallow.recipe import Section

WEIGHTS, SETTINGS, FORMAT = "classifier.safetensors", "classifier.json", "tallow-classifier-1"


class ClassifierConfig(Section):
    """A classifier of texts, and its training."""

    bits: int = Field(default=18, ge=8, le=24, description="It has 2^bits weights.")
    word_grams: int = Field(default=2, ge=0, le=8, description="Words of the longest n-gram of words; 0: none.")
    shortest: int = Field(default=3, ge=1, le=16, description="Characters of the shortest n-gram of characters.")
    longest: int = Field(default=4, ge=0, le=16, description="Characters of the longest n-gram of characters; 0: none.")
    sample_bytes: int = Field(default=20_000, ge=1, description="Bytes of a text's beginning that are looked at.")
    l2: float = Field(default=1e-4, gt=0, description="How much large weights cost.")
    held_out: float = Field(default=0.2, gt=0, lt=1, description="Share of the examples that the report is made of.")
    most_steps: int = Field(default=100, ge=1, description="Steps of the training, at most.")
    tolerance: float = Field(default=1e-5, gt=0, description="Training ends where no part of the gradient is larger.")

    def grams(self) -> Grams:
        return Grams(self.sample_bytes, self.word_grams, self.shortest, self.longest, self.bits)


@dataclass(frozen=True, eq=False)
class Classifier:
    """What was learned.

    Args:
        config: Of the training.
        weights: float32, 2^bits.
        bias: Added to the sum of a text's weights.
        report: On the examples that were held out.
    """

    config: ClassifierConfig
    weights: npt.NDArray[np.float32]
    bias: float
    report: Report

    def probabilities(self, texts: pa.StringArray) -> npt.NDArray[np.float32]:
        """The probability that each text is of the first kind, float32; both kinds are taken to be as frequent."""
        return _probabilities(texts, self.config, self.weights, self.bias)

    def save(self, directory: Path | str) -> None:
        """Write it as a directory of safetensors and JSON, whole or not at all."""
        with atomic_directory(directory) as temporary:
            save_file({"weights": self.weights, "bias": np.array([self.bias])}, temporary / WEIGHTS)
            config, report = self.config.model_dump(mode="json"), asdict(self.report)
            write_json(temporary / SETTINGS, {"format": FORMAT, "config": config, "report": report})


def train_classifier(good: pa.StringArray, bad: pa.StringArray, config: ClassifierConfig) -> Classifier:
    """Learn to tell good texts from bad ones.

    Memory: about 20 bytes for each n-gram that is new in its text, and three times as much for a moment.

    Args:
        good: Examples of what has a high probability.
        bad: Examples of what has a low one. A text that is there twice counts twice, always on the same side of the
            split.
        config: Its settings.

    Raises:
        DataError: After the split a kind has no examples to learn from, or none to be measured by.
    """
    learned, held = list[pa.StringArray](), list[pa.StringArray]()
    for kind, texts in (("good", good), ("bad", bad)):
        is_held = _is_held(texts, config.held_out)
        learned.append(texts.filter(pa.array(~is_held)))
        held.append(texts.filter(pa.array(is_held)))
        if not len(learned[-1]) or not len(held[-1]):
            raise DataError(
                f"of {len(texts)} {kind} examples {len(held[-1])} are held out to measure by",
                "give more examples of that kind",
            )
    features = _join([hashed_grams(texts, config.grams()) for texts in learned])
    fitted = fit_logistic(features, _kinds(learned), 1 << config.bits, config.l2, config.most_steps, config.tolerance)
    weights = fitted.weights.astype(np.float32)
    probabilities = [_probabilities(texts, config, weights, fitted.bias) for texts in held]
    return Classifier(config, weights, fitted.bias, measure(np.concatenate(probabilities), _kinds(held)))


def find_classifier(directory: Path | str) -> Path:
    """The directory, if it holds a classifier: a small file in it says so.

    Raises:
        DataError: It is missing, or something else.
    """
    directory = Path(directory)
    if read_json(directory / SETTINGS, "classifier").get("format") != FORMAT:
        raise _broken(directory)
    return directory


def _broken(directory: Path) -> DataError:
    return DataError(f"{directory} is not a classifier of tallow's, or damaged", "train it again")


def load_classifier(directory: Path | str) -> Classifier:
    """Read what `save` has written.

    Raises:
        DataError: It is missing, damaged, or something else.
    """
    directory = find_classifier(directory)
    values = read_json(directory / SETTINGS, "classifier")
    broken = _broken(directory)
    try:
        config = ClassifierConfig.model_validate(values["config"])
        tensors = load_file(directory / WEIGHTS)
        weights, bias = tensors["weights"], tensors["bias"]
        report = _read_report(values["report"])
    except (KeyError, TypeError, ValidationError, SafetensorError, OSError) as error:
        raise broken from error
    if weights.dtype != np.float32 or weights.shape != (1 << config.bits,) or bias.shape != (1,):
        raise broken
    if not np.isfinite(weights).all() or not np.isfinite(bias).all():
        raise broken
    return Classifier(config, weights, float(bias[0]), report)


def _probabilities(
    texts: pa.StringArray, config: ClassifierConfig, weights: npt.NDArray[np.float32], bias: float
) -> npt.NDArray[np.float32]:
    return sigmoid(sum_grams(texts, config.grams(), weights) + bias).astype(np.float32)


def _read_report(values: dict[str, Any]) -> Report:
    return Report(**{**values, "points": tuple(Point(**point) for point in values["points"])})


def _is_held(texts: pa.StringArray, fraction: float) -> npt.NDArray[np.bool_]:
    digests = (hashlib.sha256((text or "").encode()).digest() for text in texts.to_pylist())
    return np.array([is_held_out(digest, fraction) for digest in digests], dtype=bool)


def _kinds(sides: Sequence[pa.StringArray]) -> npt.NDArray[np.bool_]:
    return np.repeat([True, False], [len(texts) for texts in sides])


def _join(parts: Sequence[Features]) -> Features:
    starts = np.cumsum([0, *(len(part.places) for part in parts)])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    return Features(
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        np.concatenate([part.places for part in parts]),
        np.concatenate([part.values for part in parts]),
    )
