"""What one rank computes on its own tiles: one interface, and a backend for each library.

`base` has the interface, `choose.make_backend` makes a backend by name. Importing this package
loads neither numba nor PyTorch nor CuPy.
"""

from __future__ import annotations

from sparsednn.dense.local.base import Array, LocalBackend, Pads, Pair
from sparsednn.dense.local.choose import BACKENDS, make_backend

__all__ = ["BACKENDS", "Array", "LocalBackend", "Pads", "Pair", "make_backend"]
