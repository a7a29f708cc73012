"""Domains of the data and their shares of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, model_validator

from tallow.errors import UsageError
from tallow.recipe import Section

MOST_DOMAINS = 1000
Weight = Annotated[float, Field(ge=0)]


class MixtureConfig(Section):
    """How much of a run comes from where.

    Args:
        domains: By name, patterns of the sources that a domain consists of (`books/*`, from the end of their paths); a
            source belongs to the first domain that has it. None: each source is a domain of its own.
        weights: Of domains, relative to each other; 0 leaves one out. None: they follow from `temperature`.
        temperature: A domain's weight is its number of tokens to the power of 1/temperature: 1 takes the data as they
            are, more raises the share of small domains (arXiv 1907.05019, section 4.2).
        max_epochs: A domain is gone through so many times at most; what is left of its share goes to the others. Up to
            four times, repeated text is almost as good as new (arXiv 2305.16264).
    """

    domains: dict[str, tuple[str, ...]] | None = None
    weights: dict[str, Weight] | None = None
    temperature: PositiveFloat = 1.0
    max_epochs: PositiveFloat = 4.0

    @model_validator(mode="after")
    def _weights_are_of_domains(self) -> Self:
        if self.weights is not None:
            if self.temperature != 1:
                raise ValueError("weights and temperature are both set; leave one of them out")
            if not any(self.weights.values()):
                raise ValueError("all weights are 0")
            if self.domains is not None and self.weights.keys() != self.domains.keys():
                odd = sorted(self.weights.keys() ^ self.domains.keys())
                raise ValueError(f"{odd[0]} is not both in domains and in weights")
        return self


class DomainShare(Section):
    """What a run takes from a domain.

    Args:
        tokens: It has.
        weight: Its share of the run, as it was asked for.
        share: As it is, once no domain is gone through too often.
        epochs: How often it is gone through.
    """

    tokens: int
    weight: float
    share: float
    epochs: float


def sources_of(config: MixtureConfig, sources: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The sources of each domain.

    Raises:
        UsageError: There are too many domains, a source is in none, one has no source, or weights are of others.
    """
    sources = tuple(dict.fromkeys(sources))
    if len(sources if config.domains is None else config.domains) > MOST_DOMAINS:
        raise UsageError(f"there are more than {MOST_DOMAINS:,} domains", "group sources in mixture.domains")
    if config.domains is None:
        found = {source: (source,) for source in sources}
        if config.weights is not None and (odd := sorted(config.weights.keys() ^ found.keys())):
            raise UsageError(
                f"mixture.weights and the sources of the tokens differ in {odd[0]}",
                "name sources as the manifest of the tokens does, or group them in mixture.domains",
            )
        return found
    lists: dict[str, list[str]] = {name: [] for name in config.domains}
    for source in sources:
        owner = next((name for name, patterns in config.domains.items() if _matches(source, patterns)), None)
        if owner is None:
            raise UsageError(
                f"source {source} is in no domain of mixture.domains", "add a last one with the pattern '*'"
            )
        lists[owner].append(source)
    if empty := [name for name, own in lists.items() if not own]:
        raise UsageError(
            f"domain {empty[0]} of mixture.domains has no source",
            f"mend its patterns, or move it up; there are {', '.join(sources[:9])}",
        )
    return {name: tuple(own) for name, own in lists.items()}


def _matches(source: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(source, each) or fnmatchcase(source, f"*/{each}") for each in patterns)


def domain_weights(config: MixtureConfig, tokens: Mapping[str, int]) -> dict[str, float]:
    """Shares of domains that have so many tokens, before any limit: they add up to 1."""
    if config.weights is not None:
        weights = {name: config.weights[name] for name in tokens}
    else:
        most = max(tokens.values())
        weights = {name: (own / most) ** (1 / config.temperature) for name, own in tokens.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def limit_epochs(
    weights: Mapping[str, float], rows: Mapping[str, int], run_rows: int, max_epochs: float
) -> dict[str, float]:
    """Shares of a run of so many rows in which no domain is gone through more often than allowed.

    What is cut off goes to the others in the ratio of their weights.

    Raises:
        UsageError: A domain with a weight has no rows, or all domains together have too few.
    """
    if empty := [name for name, weight in weights.items() if weight and not rows[name]]:
        raise UsageError(f"domain {empty[0]} has no tokens", "set its weight in mixture.weights to 0")
    most = {name: max_epochs * rows[name] / run_rows for name in weights}
    total = sum(most[name] for name, weight in weights.items() if weight)
    if total < 1:
        raise UsageError(
            f"the run takes {run_rows:,} rows, but in {max_epochs:g} epochs its domains give {int(total * run_rows):,}",
            "lower pretrain.token_budget or pretrain.loop.steps, raise mixture.max_epochs, or give more text",
        )
    full: set[str] = set()
    while True:
        left = 1 - sum(most[name] for name in full)
        open_weight = sum(weight for name, weight in weights.items() if name not in full)
        shares = {
            name: most[name] if name in full else weight * left / open_weight if weight else 0.0
            for name, weight in weights.items()
        }
        over = {name for name in shares.keys() - full if shares[name] > most[name] * (1 + 1e-12)}
        if not over:
            return shares
        full |= over


def apportion(shares: Sequence[float], seats: int) -> list[int]:
    """Whole numbers that add up to `seats`, each within one of its share: the largest remainders are rounded up.

    What has a share gets one at least; this may take one from the largest.
    """
    exact = [share * seats for share in shares]
    counts = [int(each) for each in exact]
    by_rest = sorted(range(len(shares)), key=lambda number: (counts[number] - exact[number], number))
    for number in by_rest[: seats - sum(counts)]:
        counts[number] += 1
    for number, share in enumerate(shares):
        if share and not counts[number]:
            counts[number] += 1
            counts[counts.index(max(counts))] -= 1
    return counts
