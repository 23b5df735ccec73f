"""Calibration: measures this machine, and makes a `Platform` of what it finds.

`calibrate` runs all of it; a module for each thing that is measured, `timing` for how, `fit` for
formulas and what they leave over. On ranks `rank_program` measures what `ranks` asks for. Importing
this package loads neither numba nor MPI.
"""

from __future__ import annotations

from sparsednn.costmodel.calibration.calibrate import calibrate

__all__ = ["calibrate"]
