"""Whether what the stage prepare goes by is there and of its kind: told before anything is hashed or read."""

from __future__ import annotations

from tallow.data.config import PrepareConfig
from tallow.data.language.identify import find_language_model
from tallow.data.quality.classifier import find_classifier
from tallow.data.quality.ngram import find_ngrams
from tallow.data.read import require_records
from tallow.data.sources import find_sources
from tallow.models.store import resolve


def check_inputs(config: PrepareConfig) -> None:
    """Look at models and benchmarks, of each model at a small file by which it is known.

    Raises:
        DataError: One is missing, or something else.
        UsageError: A model's name is not a possible one.
    """
    if config.language is not None:
        find_language_model(config.language)
    for rule in config.classifiers.values():
        find_classifier(rule.model)
    if config.perplexity is not None:
        find_ngrams(config.perplexity.model)
    if config.semantic_duplicates is not None:
        resolve(config.semantic_duplicates.model)
    if config.privacy is not None and config.privacy.name is not None:
        resolve(config.privacy.name.model)
    if config.contamination is not None:
        for source in find_sources(config.contamination.benchmarks):
            require_records(source)
    if config.importance is not None:
        find_sources(config.importance.target)
