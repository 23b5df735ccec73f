"""Convolutions through nvidia-cudnn-frontend's graphs: one graph for each shape, built once.

Written from the interface of nvidia-cudnn-frontend 1.32 (``cudnn.pygraph``) and tested with a
module that records the calls and computes them with NumPy: **it has not run on a device**. Must not
know: where the arrays come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsednn.dense.local.base import Array, Pads, Pair

__all__ = ["CudnnConvolutions"]

#: Operation to (method of the graph, names of its inputs).
_OPERATIONS = {
    "forward": ("conv_fprop", ("image", "weight")),
    "input": ("conv_dgrad", ("loss", "filter")),
    "kernel": ("conv_wgrad", ("image", "loss")),
}


class CudnnConvolutions:
    """Build and run graphs of one convolution.

    Parameters
    ----------
    cudnn
        The module.
    empty
        ``empty(shape, dtype)``: memory on the device, for outputs and workspaces.
    stream
        Gives the address of the stream that work is queued on.

    Notes
    -----
    Engines that sum in an order that may change from run to run, or that round float32 input
    (TF32), are left out: the same input gives the same bits, as in all backends.
    """

    def __init__(
        self, cudnn: Any, empty: Callable[[tuple[int, ...], Any], Array], stream: Callable[[], int]
    ) -> None:
        self._cudnn = cudnn
        self._empty = empty
        self._stream = stream
        self._handle = cudnn.create_handle()
        self._graphs: dict[Any, Any] = {}

    def run(
        self,
        operation: str,
        first: Array,
        second: Array,
        shape: tuple[int, ...],
        stride: Pair,
        pads: Pads,
        dilation: Pair,
    ) -> Array | None:
        """Return the result, of `shape`, or None where cuDNN has no engine for it.

        Parameters
        ----------
        operation
            ``"forward"`` (x, kernel), ``"input"`` (dy, kernel) or ``"kernel"`` (x, dy).
        first, second
            C-contiguous, of one dtype, not empty. Groups follow from their channels.
        """
        key = (
            operation,
            first.shape,
            second.shape,
            shape,
            str(first.dtype),
            stride,
            pads,
            dilation,
        )
        if key not in self._graphs:
            self._graphs[key] = self._build(
                operation, (first, second), shape, (stride, pads, dilation)
            )
        built = self._graphs[key]
        if built is None:
            return None
        graph, inputs, output, workspace_bytes = built
        result = self._empty(shape, first.dtype)
        workspace = self._empty((max(1, workspace_bytes),), "uint8")
        self._cudnn.set_stream(handle=self._handle, stream=self._stream())
        graph.execute(
            {inputs[0]: first, inputs[1]: second, output: result}, workspace, handle=self._handle
        )
        return result

    def _build(
        self,
        operation: str,
        arrays: tuple[Array, Array],
        shape: tuple[int, ...],
        window: tuple[Pair, Pads, Pair],
    ) -> Any:
        cudnn = self._cudnn
        name = {"float32": "FLOAT", "float64": "DOUBLE"}[str(arrays[0].dtype)]
        dtype = getattr(cudnn.data_type, name)
        graph = cudnn.pygraph(
            name=f"sparsednn_{operation}",
            io_data_type=dtype,
            intermediate_data_type=dtype,
            compute_data_type=dtype,
            handle=self._handle,
        )
        method, names = _OPERATIONS[operation]
        inputs = [
            graph.tensor(name=name, dim=list(a.shape), stride=_strides(a.shape), data_type=dtype)
            for name, a in zip(names, arrays, strict=True)
        ]
        stride, (top, left, bottom, right), dilation = window
        output = getattr(graph, method)(
            **dict(zip(names, inputs, strict=True)),
            pre_padding=[top, left],
            post_padding=[bottom, right],
            stride=list(stride),
            dilation=list(dilation),
        )
        output.set_output(True).set_data_type(dtype).set_dim(list(shape))
        output.set_stride(_strides(shape))
        notes = cudnn.numerical_note
        try:
            graph.validate()
            graph.build_operation_graph()
            graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
            graph.deselect_numeric_notes(
                [
                    notes.NONDETERMINISTIC,
                    notes.TENSOR_CORE,
                    notes.DOWN_CONVERT_INPUTS,
                    notes.REDUCED_PRECISION_REDUCTION,
                ]
            )
            graph.check_support()
            graph.build_plans()
        except cudnn.cudnnGraphNotSupportedError:
            return None
        return graph, inputs, output, int(graph.get_workspace_size())


def _strides(shape: tuple[int, ...]) -> list[int]:
    """In elements, of a C-contiguous array."""
    _, c, h, w = shape
    return [c * h * w, h * w, w, 1]
