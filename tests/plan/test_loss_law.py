from __future__ import annotations

import numpy as np
import pytest

from tallow.errors import UsageError
from tallow.plan.least_squares import Array
from tallow.plan.loss_law import LossLaw, fit_loss_law

# the constants that Besiroglu et al. found in Chinchilla's runs (arXiv 2404.10102, table 1)
LAW = LossLaw(
    irreducible=1.8172,
    parameters_factor=482.01,
    parameters_exponent=0.3478,
    tokens_factor=2085.43,
    tokens_exponent=0.3658,
)
TARGET = (80e6, 1.6e9)


def ladder() -> tuple[Array, Array]:
    """Four sizes, each with up to four budgets."""
    sizes = 1.25e6 * 2.0 ** np.arange(4)
    points = [
        (size, ratio * size) for size in sizes for ratio in (8, 24, 72, 216) if ratio * size**2 <= 24 * sizes[-1] ** 2
    ]
    return np.array([size for size, _ in points]), np.array([tokens for _, tokens in points])


def losses(law: LossLaw, noise: float = 0.0, seed: int = 0) -> Array:
    exact = np.array([law.loss(*point) for point in zip(*ladder(), strict=True)])
    return exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(exact)))


def test_the_constants_of_exact_losses_are_found() -> None:
    fit = fit_loss_law(*ladder(), losses(LAW))
    assert fit.law.irreducible == pytest.approx(LAW.irreducible, abs=0.02)
    assert fit.law.parameters_exponent == pytest.approx(LAW.parameters_exponent, abs=0.003)
    assert fit.law.tokens_exponent == pytest.approx(LAW.tokens_exponent, abs=0.003)
    assert fit.noise < 1e-4
    assert fit.predict(*TARGET).loss == pytest.approx(LAW.loss(*TARGET), rel=1e-3)


def test_an_outlier_hardly_moves_the_law() -> None:
    spoilt = losses(LAW)
    spoilt[3] *= 1.2
    fit = fit_loss_law(*ladder(), spoilt)
    assert fit.predict(*TARGET).loss == pytest.approx(LAW.loss(*TARGET), rel=0.02)


def test_intervals_hold_what_they_promise() -> None:
    """Of noisy runs eight times as large as the largest that was fitted, about nine in ten lie in their interval."""
    generator = np.random.default_rng(0)
    places, noise = [], 0.003
    for seed in range(10):
        alpha, beta = generator.uniform(0.28, 0.42, 2)
        law = LossLaw(
            irreducible=generator.uniform(1.5, 2.2),
            parameters_factor=generator.uniform(0.5, 1.5) * 1e7**alpha,
            parameters_exponent=alpha,
            tokens_factor=generator.uniform(0.5, 1.5) * 2e8**beta,
            tokens_exponent=beta,
        )
        interval = fit_loss_law(*ladder(), losses(law, noise, seed)).predict(*TARGET)
        assert interval.low < interval.loss < interval.high
        loss = law.loss(*TARGET) * np.exp(noise * generator.standard_normal())
        places.append((loss - interval.loss) / (interval.high - interval.low))
    # an interval of 0.9 is 3.3 standard deviations wide: their root mean square is 0.3 where it is right
    assert 0.15 < np.sqrt(np.mean(np.square(places))) < 0.5


def test_intervals_widen_with_the_distance_and_the_noise() -> None:
    def width(noise: float, factor: float) -> float:
        interval = fit_loss_law(*ladder(), losses(LAW, noise)).predict(factor * 1e7, factor * 2e8)
        return interval.high / interval.low

    assert width(0.002, 1) < width(0.002, 100)
    assert width(0.001, 10) < width(0.01, 10)


def test_a_fit_is_the_same_each_time() -> None:
    assert fit_loss_law(*ladder(), losses(LAW, 0.003)) == fit_loss_law(*ladder(), losses(LAW, 0.003))


def test_the_best_split_of_operations_is_a_minimum() -> None:
    flops = 6e17
    best = LAW.best_parameters(flops)
    tokens = flops / 6 / best
    assert LAW.best_tokens(best) == pytest.approx(tokens, rel=1e-6)
    for factor in (0.9, 1.1):
        assert LAW.loss(best * factor, tokens / factor) > LAW.loss(best, tokens)


@pytest.mark.parametrize("keep", [slice(0, 5), slice(0, 7)])
def test_too_few_runs_are_refused(keep: slice) -> None:
    sizes, tokens = ladder()
    with pytest.raises(UsageError, match="too few for a fit"):
        fit_loss_law(sizes[keep], tokens[keep], losses(LAW)[keep])
