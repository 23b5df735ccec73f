"""cuSPARSE's product through CuPy: what benchmarks hold our kernels against, not the engine's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import MissingDependencyError
from sparsednn.gpu.cuda import load_cupy

__all__ = ["cusparse_dense", "cusparse_matrix", "cusparse_product"]


def cusparse_matrix(matrix: Any) -> Any:
    """Copy a SciPy CSR matrix ``(m, k)`` to the current device; float32, indices sorted.

    Raises
    ------
    MissingDependencyError
        If CuPy, or its cuSPARSE, is not there.
    """
    load_cupy()
    try:
        sparse = import_module("cupyx.scipy.sparse")
    except ImportError as error:
        raise MissingDependencyError(
            f"CuPy finds no cuSPARSE ({error}): pip install 'sparsednn[gpu]'"
        ) from error
    copy = sparse.csr_matrix(matrix.astype(np.float32))
    copy.sum_duplicates()  # now, and not within the first product
    return copy


def cusparse_dense(dense: NDArray[np.float32]) -> Any:
    """Copy a dense matrix ``(k, n)`` to the current device in the order that cuSPARSE wants.

    That is column by column (Fortran's order): any other would be copied again in each product.
    """
    return load_cupy().asarray(np.asfortranarray(dense, np.float32), order="F")


def cusparse_product(matrix: Any, dense: Any) -> Any:
    """``matrix @ dense`` by cuSPARSE (SpMM): ``(m, n)`` on the device, in Fortran's order.

    Parameters
    ----------
    matrix, dense
        Of `cusparse_matrix` and `cusparse_dense`; or what SciPy and NumPy have, copied first.
    """
    cupy = load_cupy()
    if not isinstance(dense, cupy.ndarray):
        dense = cusparse_dense(dense)
    if not hasattr(matrix, "_matmul_dispatch"):
        matrix = cusparse_matrix(matrix)
    return matrix @ dense
