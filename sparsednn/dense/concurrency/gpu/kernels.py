"""`CupyKernels`: what a GPU can do with each task, images in the order NCHW.

A convolution has cuDNN's plans as ways (where nvidia-cudnn-frontend is installed), and columns with
cuBLAS, of all images or of fewer at a time: quick ones want workspace. Everything else has one way,
kernels of CuPy with ``out``. A call queues its work on the current stream (``with stream:``), so
lanes are streams, and all that it writes lies in the arena: tensors as they are told, workspace in
the task's own part. Nothing is allocated but in the first pass on a stream (handles), so that a
CUDA graph can hold what a call queues. Channels of a larger tensor are read and written where they
lie; nothing is copied for that.

A task has one part: its kernels fill many multiprocessors by themselves.

**It has not run on a device.** Must not know: schedules, events.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.gpu.plans import CudnnPlans
from sparsednn.dense.concurrency.gpu.products import CublasProducts, Products
from sparsednn.dense.concurrency.gpu.steps import Step, Steps, Tools
from sparsednn.dense.concurrency.gpu.ways import Ways, scratch_bytes
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.tasks import IMAGE, LOSS, Task, TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.local.base import Array
from sparsednn.errors import DeviceMemoryError, InputError, MissingDependencyError, UsageError
from sparsednn.gpu.cuda import line_of, load_cupy
from sparsednn.gpu.usable import find_count

__all__ = ["CupyKernels"]

_DTYPES: Final = {1: "uint8", 2: "uint16", 4: "float32", 8: "float64"}


class CupyKernels:
    """`Kernels` of the current GPU.

    Parameters
    ----------
    graph
        The network.
    parameters
        All its arrays, by full name, on the host; copied.
    lanes
        Streams that a schedule may use.
    itemsize
        Bytes of an element of activations and parameters: 4 or 8.
    xp, cudnn, products
        Array module, module of cuDNN's frontend, and matrix products; by default the installed
        ones. Tests and dry runs give others (`twin.TwinCupy` and `twin.TwinProducts`).
    most_plans
        Plans of cuDNN that are looked at for a convolution, in the order of its heuristics.

    Attributes
    ----------
    parameters, gradients
        Arrays of the device, by full name; gradients of trained ones.
    plans
        cuDNN's, or None.

    Raises
    ------
    MissingDependencyError
        There is no CuPy, driver or device, or no cuBLAS, or a frontend without cuDNN.
    InputError
        A parameter is missing, or has another shape.
    """

    def __init__(
        self,
        graph: OperationGraph,
        parameters: Mapping[str, NDArray[Any]],
        lanes: int = 2,
        *,
        itemsize: int = 4,
        xp: Any = None,
        cudnn: Any = None,
        products: Products | None = None,
        most_plans: int = 8,
    ) -> None:
        if lanes < 1 or itemsize not in (4, 8):
            raise UsageError(f"found {lanes} lanes and elements of {itemsize} bytes")
        if xp is None:
            xp = _usable_cupy()
            cudnn = _usable_cudnn() if cudnn is None else cudnn
        self.xp, self.graph, self.lanes = xp, graph, lanes
        self._dtype = _DTYPES[itemsize]
        products = CublasProducts(xp) if products is None else products
        products.check()
        self._tools = Tools(xp, products, {})
        self._streams: list[Any] = []
        self.plans = None if cudnn is None else CudnnPlans(cudnn, xp, most_plans)
        self.device = _identity(xp, cudnn)
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        for name, parameter in graph.parameters.items():
            values = parameters.get(name)
            if values is None or prod(values.shape) != parameter.words:
                found = "nothing" if values is None else f"shape {values.shape}"
                raise InputError(f"parameter '{name}': found {found}, expected {parameter.shape}")
            values = np.ascontiguousarray(values.reshape(parameter.shape), self._dtype)
            self.parameters[name] = xp.asarray(values)
            if parameter.trained:
                self.gradients[name] = xp.zeros(parameter.shape, self._dtype)
        self._ways = Ways(
            graph, Steps(self._tools), self.plans, self.parameters, self.gradients, self._dtype
        )

    # -- memory ----------------------------------------------------------------------------------

    def arena(self, size: int) -> Array:
        """See `Kernels.arena`.

        Raises
        ------
        DeviceMemoryError
            If there is not so much.
        """
        try:
            return self.xp.empty((size,), "uint8")
        except MemoryError as error:
            raise DeviceMemoryError(
                f"{self.device}: {size:,} bytes are wanted in one piece: {line_of(error)}", size
            ) from error

    def view(self, tasks: TaskGraph, tensor: str, arena: Array, offset: int) -> Array:
        """See `Kernels.view`: ``(images, channels, height, width)``, channels of a larger one."""
        name, channel = tasks.root(tensor)
        root, found = tasks.tensors[name], tasks.tensors[tensor]
        whole = arena[offset : offset + root.bytes].view(_DTYPES[root.itemsize])
        whole = whole.reshape(root.shape)
        return whole[:, channel : channel + found.shape[1]] if found is not root else whole

    def stream(self, number: int) -> Any:
        """Return one of the streams that work is put on; always the same for a number.

        Libraries keep handles, and cuBLAS 32 MiB, for each stream that they have seen.
        """
        while len(self._streams) <= number:
            self._streams.append(self.xp.cuda.Stream(non_blocking=True))
        return self._streams[number]

    def close(self) -> None:
        """Let the libraries' handles go; a second time does nothing. Nothing may be under way."""
        self._tools.products.close()
        if self.plans is not None:
            self.plans.close()

    def parameters_changed(self) -> None:
        """See `Kernels.parameters_changed`: kernels that batch normalisation is folded into."""
        self._ways.renew()

    # -- ways ------------------------------------------------------------------------------------

    def algorithms(self, tasks: TaskGraph, task: Task) -> tuple[Algorithm, ...]:
        """See `Kernels.algorithms`: cuDNN's plans first, then columns."""
        if task.action in (IMAGE, LOSS):
            return (Algorithm("none"),)
        return tuple(
            Algorithm(way.name, workspace=way.workspace) for way in self._ways.of(tasks, task)
        )

    def bind(
        self,
        tasks: TaskGraph,
        task: Task,
        algorithm: Algorithm,
        part: int,
        tensors: Mapping[str, Array],
        workspace: Array,
    ) -> Step:
        """See `Kernels.bind`: the call queues its work on the current stream.

        Raises
        ------
        UsageError
            If there is no such way.
        """
        if task.action in (IMAGE, LOSS):
            return _nothing
        found = [way for way in self._ways.of(tasks, task) if way.name == algorithm.name]
        if not found or part or algorithm.parts != 1:
            raise UsageError(
                f"task {task.name}: there is no way '{algorithm.name}' on {self.device}"
            )
        (way,), at, scratch = found, 0, []
        for one in way.scratch:
            shape, dtype = one
            size = prod(shape) * np.dtype(dtype).itemsize
            scratch.append(workspace[at : at + size].view(dtype).reshape(shape))
            at += scratch_bytes(one)
        steps = way.make(tensors, scratch)

        def call() -> None:
            for step in steps:
                step()

        return call


def _nothing() -> None:
    return


def _usable_cupy() -> Any:
    """CuPy, if there is a device for it."""
    find_count()
    return load_cupy()


def _usable_cudnn() -> Any:
    """cuDNN's frontend where it is installed, otherwise None: then there are columns."""
    if find_spec("cudnn") is None:
        return None
    try:
        cudnn = import_module("cudnn")
        cudnn.backend_version()
    except Exception as error:  # whatever the frontend raises without the library
        raise MissingDependencyError(
            f"nvidia-cudnn-frontend is installed, but cannot use cuDNN ({line_of(error)}): "
            "pip install nvidia-cudnn-cu13, or uninstall the frontend"
        ) from error
    return cudnn


def _identity(xp: Any, cudnn: Any) -> str:
    """Device and libraries, as far as they tell."""
    name = getattr(xp, "__name__", "twin")
    try:
        properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.runtime.getDevice())
        device = properties["name"].decode(errors="replace")
    except AttributeError:
        device = "NumPy twin"
    except Exception as error:  # CuPy raises its own kind
        raise MissingDependencyError(f"the GPU does not answer: {line_of(error)}") from error
    found = [device, f"{name} {getattr(xp, '__version__', '')}".strip()]
    if cudnn is not None:
        found.append(f"cuDNN {cudnn.backend_version()}")
    return ", ".join(found)
