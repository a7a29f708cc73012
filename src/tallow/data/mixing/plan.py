"""The order of a run from its settings and its data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tallow.data.dataset import TokenDataset
from tallow.data.mixing.curriculum import LENGTH, CurriculumConfig, document_scores, lengths, paced_order
from tallow.data.mixing.mixture import DomainShare, MixtureConfig, domain_weights, limit_epochs
from tallow.data.mixing.order import MixedOrder, Order


def plan_order(
    dataset: TokenDataset, run_rows: int, mixture: MixtureConfig | None, curriculum: CurriculumConfig | None
) -> tuple[Order, dict[str, DomainShare]]:
    """The order of a run of so many rows, and what it takes from which domain.

    Args:
        dataset: With the domains of the mixture.
        run_rows: Rows of the whole run.
        mixture: Shares of domains; None: there is one domain.
        curriculum: None: rows come in random order.

    Raises:
        UsageError: The domains have too few rows, or a curriculum lacks its scores.
        DataError: Scores or lineage are missing or damaged.
    """
    if mixture is None and curriculum is None:
        return dataset, {}
    streams = dataset.streams
    rows = {name: stream.num_rows for name, stream in streams.items()}
    if mixture is None:
        asked = shares = dict.fromkeys(rows, 1.0)
    else:
        asked = domain_weights(mixture, {name: stream.num_tokens for name, stream in streams.items()})
        shares = limit_epochs(asked, rows, run_rows, mixture.max_epochs)
    firsts = None if curriculum is None else _firsts(dataset, curriculum, shares, run_rows)
    order = MixedOrder(list(rows.values()), list(shares.values()), dataset.seed, firsts)
    told = {
        name: DomainShare(
            tokens=streams[name].num_tokens,
            weight=asked[name],
            share=shares[name],
            epochs=shares[name] * run_rows / max(1, rows[name]),
        )
        for name in rows
    }
    return order, told if mixture is not None else {}


def _firsts(
    dataset: TokenDataset, curriculum: CurriculumConfig, shares: Mapping[str, float], run_rows: int
) -> list[np.ndarray[tuple[int], np.dtype[np.int64]] | None]:
    begins = dataset.document_begins()
    if curriculum.by == LENGTH and curriculum.scores is None:
        scores = lengths(begins, dataset.num_tokens)
    else:
        scores = document_scores(curriculum, dataset.lineage("id"))
    owners = dataset.owners if dataset.owners is not None else np.zeros(len(begins), dtype=np.int64)
    firsts = []
    for number, (name, stream) in enumerate(dataset.streams.items()):
        own = owners == number
        if not stream.num_rows:
            firsts.append(None)
            continue
        hardness = stream.means(stream.places_of(begins[own]), scores[own])
        length = max(1, round(shares[name] * run_rows))
        firsts.append(paced_order(hardness, curriculum, length, dataset.seed + number))
    return firsts
