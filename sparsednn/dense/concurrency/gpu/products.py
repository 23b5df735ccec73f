"""Matrix products on the current stream, into memory that is there already.

CuPy refuses cuBLAS while a stream is captured, and lets all streams share one handle, and with it
one workspace. So `CublasProducts` calls the library itself, which CuPy has loaded: a handle with a
workspace of its own for each stream. With that, cuBLAS neither allocates within a capture nor
depends on what other streams do: the same product gives the same bits. Sums of float32 are those of
float32 (no TF32).

Must not know: convolutions, schedules.
"""

from __future__ import annotations

import ctypes
from importlib import import_module
from typing import Any, Final, Protocol

from sparsednn.errors import MissingDependencyError, ShapeError, SparseDNNError
from sparsednn.gpu.cuda import INSTALL, line_of

__all__ = ["WORKSPACE", "CublasProducts", "Products"]

WORKSPACE: Final = 32 << 20
"""Bytes of each stream's workspace: what cuBLAS itself takes on Hopper."""

_NORMAL, _TRANSPOSED = 0, 1  # cublasOperation_t
_LARGEST: Final = (1 << 31) - 1


class Products(Protocol):
    """Products of batches of matrices."""

    def run(self, a: Any, b: Any, out: Any, *, accumulate: bool = False) -> None:
        """Queue ``out = a · b``, or ``out += a · b``, on the current stream.

        Parameters
        ----------
        a, b, out
            ``(batch, m, k)``, ``(batch, k, n)`` and ``(batch, m, n)`` of one dtype; `a` or `b` may
            lack the batch: the same one for all. Of each matrix of `a` and `b` rows or columns are
            side by side; of `out`, rows.
        """

    def check(self) -> None:
        """Raise an error if there can be no products."""

    def close(self) -> None:
        """Let go what is kept for streams; a second time does nothing."""


class CublasProducts:
    """By cuBLAS.

    Parameters
    ----------
    xp
        CuPy.
    library
        cuBLAS as `ctypes` has it; None: the one that CuPy uses. Tests give another.

    Raises
    ------
    MissingDependencyError
        If it is not there.
    """

    def __init__(self, xp: Any, library: Any = None) -> None:
        self._xp = xp
        self._library = _find_library() if library is None else library
        #: By stream: handle and workspace.
        self._handles: dict[int, tuple[Any, Any]] = {}
        self._scalars: dict[tuple[str, float], Any] = {}

    def check(self) -> None:
        """See `Products.check`: a handle is made."""
        self._handle()

    def close(self) -> None:
        """See `Products.close`."""
        while self._handles:
            _, (handle, _) = self._handles.popitem()
            self._call("cublasDestroy_v2", ctypes.c_void_p(handle))

    def run(self, a: Any, b: Any, out: Any, *, accumulate: bool = False) -> None:
        """See `Products.run`."""
        (batch, m, n), dtype = out.shape, str(out.dtype)
        k = a.shape[-1]
        if a.shape[-2] != m or b.shape[-2:] != (k, n) or not str(a.dtype) == str(b.dtype) == dtype:
            raise ShapeError(f"product: {a.shape} · {b.shape} is not {out.shape} {dtype}")
        if not out.size:
            return
        # cuBLAS counts column by column: what it sees are the transposes, so outᵀ = bᵀ · aᵀ.
        how_a, lead_a, step_a = _lying(a)
        how_b, lead_b, step_b = _lying(b)
        how_out, lead_out, step_out = _lying(out)
        if how_out != _NORMAL or max(m, n, k, batch, lead_a, lead_b, lead_out) > _LARGEST:
            raise ShapeError(f"product: cuBLAS cannot write {out.shape} with strides {out.strides}")
        name = {"float32": "cublasSgemmStridedBatched", "float64": "cublasDgemmStridedBatched"}
        size, step, address = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p
        self._call(
            name[dtype], address(self._handle()), size(how_b), size(how_a),
            size(n), size(m), size(k), self._scalar(dtype, 1.0),
            address(b.data.ptr), size(lead_b), step(step_b),
            address(a.data.ptr), size(lead_a), step(step_a), self._scalar(dtype, float(accumulate)),
            address(out.data.ptr), size(lead_out), step(step_out), size(batch),
        )  # fmt: skip

    def _scalar(self, dtype: str, value: float) -> Any:
        """Where a number of the host is that a call reads before it returns."""
        key = dtype, value
        if key not in self._scalars:
            kind = ctypes.c_float if dtype == "float32" else ctypes.c_double
            self._scalars[key] = kind(value)
        return ctypes.byref(self._scalars[key])

    def _handle(self) -> Any:
        """The current stream's, made at its first product; a capture comes after one pass."""
        stream = int(self._xp.cuda.get_current_stream().ptr)
        if stream not in self._handles:
            handle = ctypes.c_void_p()
            self._call("cublasCreate_v2", ctypes.byref(handle))
            workspace = self._xp.empty((WORKSPACE,), "uint8")
            # The stream first: setting it gives the handle cuBLAS's own workspace again.
            self._call("cublasSetStream_v2", handle, ctypes.c_void_p(stream))
            self._call(
                "cublasSetWorkspace_v2", handle, ctypes.c_void_p(workspace.data.ptr),
                ctypes.c_size_t(WORKSPACE),
            )  # fmt: skip
            self._handles[stream] = handle.value, workspace
        return self._handles[stream][0]

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise SparseDNNError(f"cuBLAS: {name} failed with status {status}")


def _lying(matrix: Any) -> tuple[int, int, int]:
    """How cuBLAS sees the transpose of each matrix: as it is or not, leading dimension, step."""
    *batch, rows, columns = (stride // matrix.itemsize for stride in matrix.strides)
    height, width = matrix.shape[-2:]
    step = batch[0] if batch and matrix.shape[0] > 1 else 0
    if columns == 1 or width == 1:
        return _NORMAL, max(rows if height > 1 else width, width, 1), step
    if rows == 1 or height == 1:
        return _TRANSPOSED, max(columns, height, 1), step
    raise ShapeError(
        f"product: neither rows nor columns of {matrix.shape} with strides {matrix.strides} are "
        "side by side"
    )


def _find_library() -> Any:
    try:
        pathfinder = import_module("cuda.pathfinder")  # CuPy's own way to find it
        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)
    except Exception as error:  # the finder raises its own kinds
        raise MissingDependencyError(
            f"cuBLAS cannot be loaded ({line_of(error)[:200]}): {INSTALL}"
        ) from error
