"""`SizeTable`: measured seconds over message sizes, and what lies between and beyond them.

Must not know: what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.errors import UsageError

__all__ = ["SizeTable"]


@dataclass(frozen=True, eq=False)
class SizeTable:
    """Seconds s_i at n_i bytes, ascending.

    Between two sizes log s is linear in log n; below the first, s is constant (latency); beyond
    the last, proportional to n (bandwidth). Times never fall as sizes grow: where noise made a
    larger message quicker, it counts as the smaller one's time.

    Attributes
    ----------
    nbytes, seconds
        ``(sizes,)`` float64.
    """

    nbytes: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @staticmethod
    def of(nbytes: Any, seconds: Any) -> SizeTable:
        """Check what a file says.

        Raises
        ------
        UsageError
            If these are not lists of equal length of positive numbers, sizes ascending.
        """
        sizes, times = _figures(nbytes, "bytes"), _figures(seconds, "seconds")
        if sizes.size != times.size:
            raise UsageError(f"bytes and seconds: {sizes.size} sizes, but {times.size} times")
        if (np.diff(sizes) <= 0).any():
            raise UsageError("bytes: ascending sizes are needed")
        return SizeTable(sizes, np.maximum.accumulate(times))

    def at(
        self, nbytes: ArrayLike, *, latency: float = 1.0, bandwidth: float = 1.0
    ) -> NDArray[np.float64]:
        """Return seconds at any sizes.

        Parameters
        ----------
        nbytes
            Any shape; from 0.
        latency, bandwidth
            Of a machine that is not the measured one: what the smallest message takes is multiplied
            by `latency`, the rest is divided by `bandwidth`.

        Returns
        -------
        NDArray
            float64, the shape of `nbytes`.
        """
        wanted = np.maximum(np.asarray(nbytes, np.float64), self.nbytes[0])
        found = np.exp(np.interp(np.log(wanted), np.log(self.nbytes), np.log(self.seconds)))
        found = np.asarray(found * np.maximum(1.0, wanted / self.nbytes[-1]))
        if latency == 1.0 and bandwidth == 1.0:
            return found
        least = self.seconds[0]
        return np.asarray(least * latency + (found - least) / bandwidth)


def _figures(values: Any, name: str) -> NDArray[np.float64]:
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or not len(values):
        raise UsageError(f"{name}: a list of numbers is needed, found {values!r}")
    try:
        figures = np.array(values, np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{name}: a list of numbers is needed") from None
    if figures.ndim != 1 or not (np.isfinite(figures).all() and (figures > 0).all()):
        raise UsageError(f"{name}: positive numbers are needed")
    return figures
