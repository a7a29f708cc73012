"""Loss as a function of parameters and tokens, fitted to small runs, with its uncertainty.

L(N, D) = E + A / N^alpha + B / D^beta (arXiv 2203.15556, section 3.3): what no model can know, what a model of N
parameters lacks, and what D tokens do not teach.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat

from tallow.errors import UsageError
from tallow.plan.least_squares import Array, minimize
from tallow.recipe import Section

MIN_RUNS = 6
MIN_LEVELS = 3
# Residuals of log loss up to this are taken for noise, larger ones for outliers. Chinchilla's 1e-3 is below the noise
# of small runs; the fit would go exactly through as many of them as it has parameters, and hide its own error.
HUBER_DELTA = 0.01
# What is believed beforehand: logarithms of E over the least loss, of alpha and of beta, and how far they may be off.
# Published exponents lie between 0.28 and 0.37 (2203.15556, 2404.10102).
PRIOR_MEAN = np.log([0.4, 0.35, 0.35])
PRIOR_SPREAD = np.array([0.7, 0.5, 0.5])
# noise of log loss against which that is weighed, until the runs have told theirs: it counts where they leave a
# question open, and less the better they fit
FIRST_NOISE = 0.001
LEAST_NOISE, MOST_NOISE = 1e-5, 0.02
RESAMPLES = 300
NUM_PARAMETERS = 5


class LossLaw(Section):
    """The constants of the law; losses in nats a token."""

    irreducible: NonNegativeFloat
    parameters_factor: NonNegativeFloat
    parameters_exponent: PositiveFloat
    tokens_factor: NonNegativeFloat
    tokens_exponent: PositiveFloat

    def loss(self, parameters: float, tokens: float) -> float:
        """Loss of a model of so many parameters after so many tokens, none of them seen twice."""
        return (
            self.irreducible
            + self.parameters_factor * parameters**-self.parameters_exponent
            + self.tokens_factor * tokens**-self.tokens_exponent
        )

    def best_parameters(self, flops: float) -> float:
        """Parameters that make the best of a budget of 6 · N · D operations (2203.15556, equation 4)."""
        alpha, beta = self.parameters_exponent, self.tokens_exponent
        balance = (alpha * self.parameters_factor / (beta * self.tokens_factor)) ** (1 / (alpha + beta))
        return balance * (flops / 6) ** (beta / (alpha + beta))

    def best_tokens(self, parameters: float) -> float:
        """Tokens with which a model of so many parameters is the best for its operations: the same frontier."""
        alpha, beta = self.parameters_exponent, self.tokens_exponent
        lacks = alpha * self.parameters_factor * parameters**-alpha
        return (beta * self.tokens_factor / lacks) ** (1 / beta)


class Interval(NamedTuple):
    """A predicted loss and the interval in which 9 of 10 such runs should end."""

    loss: float
    low: float
    high: float


class LossFit(Section):
    """A law and how sure it is.

    Args:
        law: The most likely one.
        resamples: As likely ones: logarithms of E, A and B, then alpha and beta.
        residuals: Of log loss, widened by what the fit's freedom has hidden.
    """

    law: LossLaw
    resamples: tuple[tuple[float, float, float, float, float], ...]
    residuals: tuple[float, ...]

    @property
    def noise(self) -> float:
        """Root mean square of the residuals: by what share a run misses the law."""
        return float(np.sqrt(np.mean(np.square(self.residuals))))

    def predict(self, parameters: float, tokens: float, level: float = 0.9) -> Interval:
        """The loss of a run that is still to be done, with an interval that holds it with this probability."""
        log_e_S, log_a_S, log_b_S, alpha_S, beta_S = np.array(self.resamples).T
        losses_S = (
            np.exp(log_e_S) + np.exp(log_a_S - alpha_S * np.log(parameters)) + np.exp(log_b_S - beta_S * np.log(tokens))
        )
        missed_SR = losses_S[:, None] * np.exp(np.array(self.residuals))
        low, high = np.quantile(missed_SR, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.law.loss(parameters, tokens), float(low), float(high))


def fit_loss_law(parameters_R: Array, tokens_R: Array, losses_R: Array, seed: int = 0) -> LossFit:
    """Fit the law to runs: Huber's loss on log losses, from several starts (2203.15556, appendix D.2).

    The interval comes from fits to losses that are drawn around the law: residuals with replacement, widened for the
    five parameters that have been fitted. The weak prior belief is drawn anew in each, so that it does not make the
    interval narrower than it should be.

    Args:
        parameters_R: Parameters of each run.
        tokens_R: Tokens of each run.
        losses_R: Held-out loss of each run.

    Raises:
        UsageError: There are too few runs, or too few different sizes or budgets.
    """
    sizes, budgets = len(np.unique(parameters_R)), len(np.unique(tokens_R))
    if len(losses_R) < MIN_RUNS or sizes < MIN_LEVELS or budgets < MIN_LEVELS:
        raise UsageError(
            f"runs: {len(losses_R)}, sizes: {sizes}, token budgets: {budgets}; that is too few for a fit",
            f"it takes {MIN_RUNS} runs, {MIN_LEVELS} sizes and {MIN_LEVELS} budgets at least",
        )
    logs = np.log(parameters_R), np.log(tokens_R), np.log(losses_R)
    _, _, residuals_R = _fit(_Problem(*logs, FIRST_NOISE))
    noise = float(np.clip(np.sqrt(np.mean(residuals_R**2)), LEAST_NOISE, MOST_NOISE))
    problem = _Problem(*logs, noise)
    best_P, fitted_R, residuals_R = _fit(problem)

    generator = np.random.default_rng(seed)
    drawn_SR = np.tile(problem.targets_R, (RESAMPLES, 1))
    freedom = max(1, len(losses_R) - NUM_PARAMETERS)
    # the spread of so few residuals is itself uncertain, as in Student's distribution
    spread_S1 = np.sqrt(freedom / generator.chisquare(freedom, (RESAMPLES, 1)))
    drawn_SR[:, : len(losses_R)] = fitted_R + spread_S1 * generator.choice(residuals_R, (RESAMPLES, len(losses_R)))
    drawn_SR[:, len(losses_R) :] += noise * generator.standard_normal((RESAMPLES, len(PRIOR_MEAN)))
    resamples = minimize(problem.residuals, np.tile(best_P, (RESAMPLES, 1)), drawn_SR, problem.delta_R).parameters_SP
    [best, *likely] = problem.constants(np.vstack([best_P, resamples])).tolist()
    e, a, b = np.exp(best[:3])
    law = LossLaw(
        irreducible=e, parameters_factor=a, parameters_exponent=best[3], tokens_factor=b, tokens_exponent=best[4]
    )
    return LossFit(law=law, resamples=tuple(map(tuple, likely)), residuals=tuple(residuals_R.tolist()))


def _fit(problem: _Problem) -> tuple[Array, Array, Array]:
    """The best of the descents from all starts: parameters P, fitted log losses R, and residuals R, widened."""
    starts_SP = problem.starts()
    found = minimize(problem.residuals, starts_SP, np.tile(problem.targets_R, (len(starts_SP), 1)), problem.delta_R)
    best_P = found.parameters_SP[found.cost_S.argmin()]
    runs = len(problem.log_losses_R)
    fitted_R = problem.residuals(best_P[None])[0][0, :runs]
    widening = np.sqrt(runs / max(1, runs - NUM_PARAMETERS))
    return best_P, fitted_R, (problem.log_losses_R - fitted_R) * widening


class _Problem:
    """The law as least squares; its five parameters P are the logarithms of E, of the two losses at the middle of the
    runs (which hardly depend on the exponents, as A and B do), of alpha and of beta."""

    def __init__(self, log_parameters_R: Array, log_tokens_R: Array, log_losses_R: Array, noise: float) -> None:
        self.middle = log_parameters_R.mean(), log_tokens_R.mean()
        self.log_parameters_R = log_parameters_R - self.middle[0]
        self.log_tokens_R = log_tokens_R - self.middle[1]
        self.log_losses_R = log_losses_R
        self.least = log_losses_R.min()
        self.prior_scale = noise / PRIOR_SPREAD
        prior = (PRIOR_MEAN + np.array([self.least, 0.0, 0.0])) * self.prior_scale
        self.targets_R = np.concatenate([log_losses_R, prior])
        # the prior is no measurement: it has no outliers
        self.delta_R = np.concatenate([np.full(len(log_losses_R), HUBER_DELTA), np.full(len(prior), np.inf)])

    def starts(self) -> Array:
        """A grid around what is plausible."""
        share, exponent = np.log([0.1, 0.3]), np.log([0.2, 0.5])
        axes = (np.log([0.2, 0.5, 0.8]) + self.least, share + self.least, share + self.least, exponent, exponent)
        return np.stack(np.meshgrid(*axes), -1).reshape(-1, NUM_PARAMETERS)

    def residuals(self, parameters_SP: Array) -> tuple[Array, Array]:
        """Log losses and the prior's three numbers, and their derivatives."""
        e_S1, a_S1, b_S1, log_alpha_S1, log_beta_S1 = np.split(parameters_SP, NUM_PARAMETERS, axis=1)
        from_size_SR = -np.exp(log_alpha_S1) * self.log_parameters_R
        from_tokens_SR = -np.exp(log_beta_S1) * self.log_tokens_R
        terms_3SR = np.stack(np.broadcast_arrays(e_S1, a_S1 + from_size_SR, b_S1 + from_tokens_SR))
        values_SR = np.logaddexp.reduce(terms_3SR)
        share_3SR = np.exp(terms_3SR - values_SR)
        slopes_SRP = np.stack([*share_3SR, share_3SR[1] * from_size_SR, share_3SR[2] * from_tokens_SR], -1)
        prior_columns = [0, 3, 4]
        prior_S3 = parameters_SP[:, prior_columns] * self.prior_scale
        prior_slopes_3P = np.eye(NUM_PARAMETERS)[prior_columns] * self.prior_scale[:, None]
        prior_slopes_S3P = np.broadcast_to(prior_slopes_3P, (len(parameters_SP), *prior_slopes_3P.shape))
        return np.hstack([values_SR, prior_S3]), np.concatenate([slopes_SRP, prior_slopes_S3P], 1)

    def constants(self, parameters_SP: Array) -> Array:
        """Logarithms of E, A and B, then alpha and beta: S P."""
        e_S, a_S, b_S, log_alpha_S, log_beta_S = parameters_SP.T
        alpha_S, beta_S = np.exp(log_alpha_S), np.exp(log_beta_S)
        return np.stack([e_S, a_S + alpha_S * self.middle[0], b_S + beta_S * self.middle[1], alpha_S, beta_S], -1)
