"""The backend on a GPU: CuPy's arrays, convolutions by cuDNN where it is installed.

Without nvidia-cudnn-frontend, and for shapes that cuDNN has no engine for, convolutions are columns
and cuBLAS (`ColumnBackend`, which tests run with NumPy); so is what is no convolution
(`ReferenceBackend`). **The part that needs a device has not run on one.** Must not know: ranks.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.local.base import Array, Pads, Pair, Shape
from sparsednn.dense.local.columns import ColumnBackend
from sparsednn.dense.local.cudnn import CudnnConvolutions
from sparsednn.dense.local.reference import check_convolution
from sparsednn.dense.local.windows import check_output, output_size
from sparsednn.errors import MissingDependencyError

__all__ = ["CupyBackend"]


class CupyBackend(ColumnBackend):
    """`LocalBackend` on the current GPU.

    Parameters
    ----------
    threads
        Not used.
    xp, cudnn
        Array module and module of cuDNN's frontend; by default the installed ones. Tests give
        others.

    Raises
    ------
    MissingDependencyError
        There is no driver or no device.
    """

    name = "cupy"

    def __init__(self, threads: int = 1, xp: Any = None, cudnn: Any = None) -> None:
        if xp is None:
            xp = import_module("cupy")
            _require_device(xp)
            if cudnn is None and find_spec("cudnn") is not None:
                cudnn = import_module("cudnn")
        super().__init__(threads, xp)
        self._cudnn: CudnnConvolutions | None = None
        if cudnn is not None:
            self._cudnn = CudnnConvolutions(cudnn, self.empty, self._stream)

    def convolution(
        self,
        x: Array,
        kernel: Array,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """See `LocalBackend.convolution`."""
        check_convolution(x.shape, kernel.shape, groups)
        size = output_size(x.shape, kernel.shape[2:], stride, pads, dilation)
        shape = (len(x), len(kernel), *size)
        y = self._by_cudnn("forward", x, kernel, shape, (stride, pads, dilation))
        if y is not None:
            return y
        return super().convolution(
            x, kernel, stride=stride, pads=pads, dilation=dilation, groups=groups
        )

    def convolution_input_gradient(
        self,
        dy: Array,
        kernel: Array,
        x_shape: Shape,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """See `LocalBackend.convolution_input_gradient`."""
        check_convolution(x_shape, kernel.shape, groups)
        taps = kernel.shape[2:]
        check_output(dy.shape, x_shape, len(kernel), taps, stride, pads, dilation)
        dx = self._by_cudnn("input", dy, kernel, tuple(x_shape), (stride, pads, dilation))
        if dx is not None:
            return dx
        return super().convolution_input_gradient(
            dy, kernel, x_shape, stride=stride, pads=pads, dilation=dilation, groups=groups
        )

    def convolution_kernel_gradient(
        self,
        x: Array,
        dy: Array,
        kernel_shape: Shape,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """See `LocalBackend.convolution_kernel_gradient`."""
        check_convolution(x.shape, kernel_shape, groups)
        check_output(dy.shape, x.shape, kernel_shape[0], kernel_shape[2:], stride, pads, dilation)
        dkernel = self._by_cudnn("kernel", x, dy, tuple(kernel_shape), (stride, pads, dilation))
        if dkernel is not None:
            return dkernel
        return super().convolution_kernel_gradient(
            x, dy, kernel_shape, stride=stride, pads=pads, dilation=dilation, groups=groups
        )

    def to_host(self, a: Array) -> NDArray[Any]:
        """See `LocalBackend.to_host`; waits for the device."""
        return np.asarray(a) if self.xp is np else self.xp.asnumpy(a)

    def _by_cudnn(
        self,
        operation: str,
        first: Array,
        second: Array,
        shape: tuple[int, ...],
        window: tuple[Pair, Pads, Pair],
    ) -> Array | None:
        """Result of cuDNN, or None where something is empty or there is no engine."""
        if self._cudnn is None or not first.size or not second.size or 0 in shape:
            return None
        xp = self.xp
        return self._cudnn.run(
            operation, xp.ascontiguousarray(first), xp.ascontiguousarray(second), shape, *window
        )

    def _stream(self) -> int:
        """Address of the stream that CuPy queues on now."""
        return 0 if self.xp is np else int(self.xp.cuda.get_current_stream().ptr)


def _require_device(cupy: Any) -> None:
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises its own kind, which only an imported CuPy has
        message = f"backend 'cupy' needs a GPU and its driver: {error}"
        raise MissingDependencyError(message) from error
    if not devices:
        raise MissingDependencyError("backend 'cupy' needs a GPU: found none")
