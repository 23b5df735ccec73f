"""Fit coefficients of cost formulas to measured times, and say how well they fit.

Times of a curve span four decades, so it is relative errors that are made small, not seconds: of a
formula that is linear in its coefficients, ``t(i) = sum_j c_j a_ij``, those are found that minimise
``sum_i w_i (t(i) / measured(i) - 1)^2`` with ``c_j >= 0``. The weights come from Huber's rule
(P. J. Huber, Robust Estimation of a Location Parameter, 1964): points far outside the usual error
count less, so one bad moment of the machine does not bend the line. Must not know: what is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.errors import UsageError

__all__ = ["Fit", "Residuals", "fit_linear", "fit_positive", "residuals_of"]

#: Errors beyond so many times the median one count less, the further the less.
_HUBER = 2.0
_REWEIGHTINGS = 10


@dataclass(frozen=True, slots=True)
class Residuals:
    """Relative errors ``|formula / measured - 1|`` of a formula: median, worst, and of how many."""

    median: float
    worst: float
    points: int

    def as_table(self, model: str) -> dict[str, Any]:
        """Return a table for a platform file."""
        return {
            "model": model, "median": self.median, "worst": self.worst, "points": self.points,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients, not negative, in the order of the formula's terms, and what they leave over."""

    coefficients: NDArray[np.float64]
    residuals: Residuals


def residuals_of(formula: ArrayLike, measured: ArrayLike) -> Residuals:
    """Compare a formula's seconds with measured ones.

    Parameters
    ----------
    formula, measured
        The same shape, seconds; measured ones positive.

    Raises
    ------
    UsageError
        If there is no point, or a measured time is not positive.
    """
    expected, seconds = np.asarray(formula, np.float64), np.asarray(measured, np.float64)
    if seconds.size == 0 or not np.all(np.isfinite(seconds) & (seconds > 0)):
        raise UsageError("a fit needs measured times, each of them positive")
    errors = np.abs(expected / seconds - 1)
    return Residuals(float(np.median(errors)), float(errors.max()), int(seconds.size))


def fit_linear(
    terms: Sequence[ArrayLike], measured: ArrayLike, *, of: ArrayLike | None = None
) -> Fit:
    """Fit ``seconds = sum of coefficient × term``; no coefficient gets negative.

    Parameters
    ----------
    terms
        For each coefficient an array ``(points,)``, or a number for all points: 1 for a constant,
        bytes for a coefficient in seconds per byte.
    measured
        ``(points,)`` seconds, positive.
    of
        ``(points,)`` seconds that errors are relative to, where something else than `measured`: the
        whole of which it is a part.

    Raises
    ------
    UsageError
        If there are fewer points than terms, or a time is not positive.
    """
    from scipy.optimize import nnls

    seconds = np.asarray(measured, np.float64)
    matrix = np.stack([np.broadcast_to(np.asarray(t, np.float64), seconds.shape) for t in terms], 1)
    if seconds.size < len(terms):
        raise UsageError(f"a fit of {len(terms)} figures to {seconds.size} points")
    residuals_of(seconds, seconds)  # all positive
    whole = seconds if of is None else np.asarray(of, np.float64)
    relative = matrix / whole[:, None]
    wanted = seconds / whole
    # Columns of like size, or nnls takes a small one (a second per byte) for nothing.
    scale = np.abs(relative).max(axis=0)
    scale[scale == 0] = 1.0
    relative /= scale
    weights = np.ones(seconds.size)
    for _ in range(_REWEIGHTINGS):
        root = np.sqrt(weights)
        found, _ = nnls(relative * root[:, None], wanted * root)
        weights = _huber(relative @ found - wanted)
    coefficients = found / scale
    return Fit(coefficients, residuals_of(matrix @ coefficients, seconds))


def fit_positive(
    formula: Callable[[NDArray[np.float64]], ArrayLike],
    begin: Sequence[float],
    measured: ArrayLike,
) -> Fit:
    """Fit a formula that is not linear, such as the cheapest of several algorithms.

    Logarithms of the coefficients are varied from those to begin with, so that all stay positive,
    and logarithms of times are compared: an error by a factor of two counts alike in both
    directions.

    Parameters
    ----------
    formula
        Takes the coefficients, returns ``(points,)`` seconds.
    begin
        Coefficients of about the right size, positive.
    measured
        ``(points,)`` seconds, positive.
    """
    from scipy.optimize import least_squares

    seconds = np.asarray(measured, np.float64)
    residuals_of(seconds, seconds)

    def errors(logarithms: NDArray[np.float64]) -> NDArray[np.float64]:
        expected = np.asarray(formula(np.exp(logarithms)), np.float64)
        return np.log(np.maximum(expected, 1e-12)) - np.log(seconds)

    # The cheapest algorithm changes in jumps of the slope, so steps must not be tiny.
    found = least_squares(
        errors, np.log(np.asarray(begin, np.float64)), loss="soft_l1", f_scale=0.2, diff_step=1e-3
    )
    coefficients = np.exp(found.x)
    return Fit(coefficients, residuals_of(formula(coefficients), seconds))


def _huber(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of points by their errors."""
    size = np.abs(errors)
    usual = _HUBER * max(float(np.median(size)), 1e-6)
    return np.minimum(1.0, usual / np.maximum(size, 1e-300))
