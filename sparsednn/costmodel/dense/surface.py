"""`Surface`: seconds over a space of shapes: a sum of terms, and what measured neighbours add.

::

    t(s) = Σ_j c_j a_j(s) · exp(m + Σ_i w_i k(|s - s_i|)),       c_j >= 0
    k(d) = (1 + √3 d) e^(-√3 d)

The sum says how time grows with work, also far from everything measured: with coefficients that
are not negative it is monotonic, and no larger operation is free. What it cannot say (which of a
library's kernels a shape gets) is interpolated, for products, between the logarithms of
``measured / sum`` at the measured shapes s_i, by kriging: a Gaussian process with the Matérn 3/2
kernel (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapters 2 and 4).
Far from all of them the correction fades to the constant m. Must not know: what the terms and
coordinates mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.dense.features import (
    KINDS,
    PLANE,
    PRODUCT,
    PRODUCTS,
    Rows,
    coordinates_of,
    terms_of,
)
from sparsednn.errors import UsageError

__all__ = ["Surface", "fit_surface"]

#: Standard deviations of log time: what neighbours share, what a measurement has of its own.
_SHARED: Final = 0.4
_OWN: Final = 0.2
#: Corrections beyond this factor are somebody's bad moment.
_MOST: Final = 4.0
_HUBER: Final = 2.0
_REWEIGHTINGS: Final = 10

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Surface:
    """Seconds of one kind of operation.

    Attributes
    ----------
    kind
        One of `features.KINDS`.
    coefficients
        ``(terms,)``: c, seconds.
    mean
        m.
    points, weights
        ``(measured, columns)`` rows as in `features`, and ``(measured,)``: s and w.
    """

    kind: str
    coefficients: _Floats
    mean: float
    points: Rows
    weights: _Floats

    def seconds(self, rows: Rows) -> _Floats:
        """Return ``(operations,)`` seconds."""
        return np.asarray(self.parts(rows).sum(axis=1))

    def parts(self, rows: Rows) -> _Floats:
        """Return ``(operations, terms)`` seconds, whose sums over terms are the times."""
        plain = terms_of(self.kind, rows) * self.coefficients
        return np.asarray(plain * np.exp(self.correction(rows))[:, None])

    def correction(self, rows: Rows) -> _Floats:
        """Return ``(operations,)``: logarithms of what the sums are multiplied with."""
        if not len(self.points):
            return np.full(len(rows), self.mean)
        likeness = _likeness(
            coordinates_of(self.kind, rows), coordinates_of(self.kind, self.points)
        )
        bound = np.log(_MOST)
        return np.asarray(self.mean + np.clip(likeness @ self.weights, -bound, bound))

    def as_table(self) -> dict[str, Any]:
        """Return what `from_table` takes: numbers and lists."""
        return {
            "coefficients": [float(f"{one:.5g}") for one in self.coefficients],
            "mean": round(self.mean, 5),
            "points": [[round(float(one)) for one in row] for row in self.points],
            "weights": [round(float(one), 4) for one in self.weights],
        }

    @classmethod
    def from_table(cls, kind: str, table: Any) -> Surface:
        """Read what `as_table` gave.

        Raises
        ------
        UsageError
            Naming what is missing or nonsense.
        """
        if kind not in KINDS:
            raise UsageError(f"{kind}: no such kind of operation")
        if not isinstance(table, Mapping):
            raise UsageError(f"{kind}: a table is needed")
        found = {}
        for key in ("coefficients", "mean", "points", "weights"):
            try:
                found[key] = np.asarray(table[key], np.float64)
            except (KeyError, ValueError, TypeError):
                raise UsageError(f"{kind}: {key}: numbers are needed") from None
            if not np.isfinite(found[key]).all():
                raise UsageError(f"{kind}: {key}: finite numbers are needed")
        columns = _columns(kind)
        points = found["points"] if found["points"].size else np.empty((0, columns))
        terms = terms_of(kind, np.ones((1, columns))).shape[1]
        if points.shape[1:] != (columns,) or found["weights"].shape != (len(points),):
            raise UsageError(f"{kind}: points: {columns} numbers and a weight for each")
        if found["coefficients"].shape != (terms,) or (found["coefficients"] < 0).any():
            raise UsageError(f"{kind}: coefficients: {terms} numbers from 0 are needed")
        if found["mean"].shape != ():
            raise UsageError(f"{kind}: mean: a number is needed")
        return cls(kind, found["coefficients"], float(found["mean"]), points, found["weights"])


def fit_surface(kind: str, rows: Rows, seconds: _Floats) -> Surface:
    """Fit a surface to measured operations.

    Coefficients: least squares of relative errors, not negative, errors that are far outside the
    usual ones counting less (Huber, Robust Estimation of a Location Parameter, 1964).

    Parameters
    ----------
    kind
        Of all of them.
    rows
        ``(measured, columns)``, see `features`.
    seconds
        ``(measured,)``, positive.
    """
    from scipy.linalg import cho_factor, cho_solve

    terms = terms_of(kind, rows)
    coefficients, left = _coefficients(terms, seconds)
    mean = float(np.median(left))
    if kind not in PRODUCTS:  # simple loops: neighbours know no more than the sum
        return Surface(kind, coefficients, mean, rows[:0], np.empty(0))
    places = coordinates_of(kind, rows)
    covariance = _SHARED**2 * _likeness(places, places)
    covariance[np.diag_indices_from(covariance)] += _OWN**2
    solved = cho_solve(cho_factor(covariance), left - mean)
    return Surface(kind, coefficients, mean, rows, _SHARED**2 * solved)


def _coefficients(terms: _Floats, seconds: _Floats) -> tuple[_Floats, _Floats]:
    """Coefficients of the terms, and logarithms of measured seconds over their sum."""
    from scipy.optimize import nnls

    relative = terms / seconds[:, None]
    scale = relative.max(axis=0)
    scale[scale == 0] = 1.0
    relative = relative / scale
    weights = np.ones(len(seconds))
    for _ in range(_REWEIGHTINGS):
        root = np.sqrt(weights)
        found, _ = nnls(relative * root[:, None], root)
        size = np.abs(relative @ found - 1)
        usual = _HUBER * max(float(np.median(size)), 1e-6)
        weights = np.minimum(1.0, usual / np.maximum(size, 1e-300))
    coefficients = found / scale
    left = np.log(seconds / np.maximum(terms @ coefficients, 1e-12))
    return coefficients, np.clip(left, -np.log(_MOST), np.log(_MOST))


def _columns(kind: str) -> int:
    return len(PRODUCT) if kind in PRODUCTS else len(PLANE)


def _likeness(one: _Floats, other: _Floats) -> _Floats:
    """k of all distances, ``(len(one), len(other))``."""
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    far = np.sqrt(3 * np.maximum(squares, 0.0))
    return np.asarray((1 + far) * np.exp(-far))
