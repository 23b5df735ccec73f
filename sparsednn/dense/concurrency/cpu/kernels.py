"""`CpuKernels`: the kernels of a processor, for threads that each have one core; channels last.

Activations are ``(images, height, width, channels)``; parameters stay the caller's, in the
network's layout, and what kernels make of them (packed kernels, scales) is kept as long as a bound
call wants it. Must not know: schedules, when a call is made.
"""

from __future__ import annotations

import platform
import weakref
from collections.abc import Callable, Hashable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from sparsednn.dense.concurrency.cpu.layout import aligned
from sparsednn.dense.concurrency.cpu.tails import Stage
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.tasks import FORWARD, IMAGE, LOSS
from sparsednn.dense.local.memory import keep_freed_memory
from sparsednn.dense.operations import Convolution, FullyConnected
from sparsednn.errors import InputError, UsageError
from sparsednn.machine import machine

if TYPE_CHECKING:
    from sparsednn.dense.concurrency.tasks import Task, TaskGraph

__all__ = ["CpuKernels"]

Array = NDArray[Any]

_NONE = (Algorithm("none"),)


class CpuKernels:
    """See `sparsednn.dense.concurrency.kernels.Kernels`.

    Parameters
    ----------
    lanes
        Threads; each calls `enter_lane` once before its first kernel.
    parameters
        All arrays of the network by full name, of its shapes and `dtype`. Running statistics are
        written in training.
    gradients
        Where those of trained parameters go, by full name; None without training.
    dtype
        float32 or float64.
    training
        Whether parameters change with every pass.
    torch
        Whether PyTorch's convolutions are among the algorithms; "auto": where it is installed.

    Attributes
    ----------
    device
        Processor and libraries.
    has_torch
        Whether PyTorch's convolutions are among the algorithms.
    packs
        Whether oneDNN's kernels are packed once.
    notes
        What of a library is not used, and why.

    Raises
    ------
    UsageError
        No such number of lanes, or dtype.
    MissingDependencyError
        PyTorch is asked for and not installed, or has no oneDNN.
    """

    def __init__(
        self,
        lanes: int,
        parameters: Mapping[str, Array],
        *,
        gradients: Mapping[str, Array] | None = None,
        dtype: DTypeLike = np.float32,
        training: bool = False,
        torch: bool | Literal["auto"] = "auto",
    ) -> None:
        if lanes < 1:
            raise UsageError(f"lanes: found {lanes}, expected 1 or more")
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise UsageError(f"dtype: found {self.dtype}, expected float32 or float64")
        self.lanes, self.training = lanes, training
        self.parameters, self.gradients = parameters, gradients or {}
        self.torch: Any = None
        self.packs = False
        self.notes: list[str] = []
        if torch is not False:
            self._find_torch(needed=torch is True)
        self.has_torch = self.torch is not None
        self._kept: dict[Hashable, tuple[weakref.ref[Any], Callable[[Any], None]]] = {}
        keep_freed_memory()
        threadpool_limits(1, user_api="blas")
        self.device = self._identity()

    def _find_torch(self, *, needed: bool) -> None:
        from sparsednn.dense.concurrency.cpu import onednn

        if not needed and not onednn.has_torch():
            return
        self.torch = onednn.load_torch()
        reason = onednn.why_not_packed(self.torch)
        if reason is not None:
            self.notes.append(f"kernels are not packed for oneDNN: {reason}")
        self.packs = reason is None and not self.training

    def _identity(self) -> str:
        # Of all that may be loaded, the one that NumPy multiplies with; its kernels' name matters:
        # a processor that it does not know, or OPENBLAS_CORETYPE, may halve its speed.
        blas = next(
            (
                f"{each['internal_api']} {each['version']} {each.get('architecture', '')}".strip()
                for each in threadpool_info()
                if each["user_api"] == "blas" and "numpy" in each["filepath"]
            ),
            "BLAS of NumPy",
        )
        libraries = [f"{name} {version(name)}" for name in ("numpy", "numba")]
        if self.torch is not None:
            libraries.append(f"torch {self.torch.__version__}")
        return "; ".join(
            [
                "cpu",
                machine().processor,
                platform.machine(),
                *libraries,
                blas,
                self.dtype.name,
            ]
        )

    def enter_lane(self) -> int:
        """Let libraries use the calling thread alone; returns what `leave_lane` wants.

        BLAS is kept to one thread in the whole process; PyTorch has a number for each thread.
        """
        if self.torch is None:
            return 1
        before = int(self.torch.get_num_threads())
        if before != 1:
            self.torch.set_num_threads(1)
        return before

    def leave_lane(self, before: int) -> None:
        """Give the calling thread back its libraries' threads."""
        if before != 1:
            self.torch.set_num_threads(before)

    # -- memory ----------------------------------------------------------------------------------

    def arena(self, size: int) -> NDArray[np.uint8]:
        """See `Kernels.arena`."""
        return aligned(size)

    def view(self, tasks: TaskGraph, tensor: str, arena: NDArray[np.uint8], offset: int) -> Array:
        """See `Kernels.view`: ``(images, height, width, channels)``, ``(2, channels)`` float64 of
        statistics, and the numbers of taps of ``:where``."""
        wanted = tasks.tensors[tensor]
        root, channel = tasks.root(tensor)
        whole = tasks.tensors[root]
        memory = arena[offset : offset + whole.bytes]
        if len(whole.shape) == 2:
            return memory.view(np.float64).reshape(whole.shape)
        images, channels, height, width = whole.shape
        kind = np.dtype(f"u{whole.itemsize}") if tensor.endswith(":where") else self.dtype
        if kind.itemsize != whole.itemsize:
            raise UsageError(
                f"tensor '{tensor}' has elements of {whole.itemsize} bytes, kernels are for "
                f"{self.dtype}"
            )
        view = memory.view(kind).reshape(images, height, width, channels)
        return view[..., channel : channel + wanted.shape[1]]

    # -- what is made of parameters --------------------------------------------------------------

    def kept(self, key: Hashable, make: Callable[[], Any], renew: Callable[[Any], None]) -> Any:
        """Return what has been made of parameters, the same for all who ask for `key`.

        It lives as long as somebody holds it.

        Parameters
        ----------
        make
            Gives the object.
        renew
            Fills it, now and whenever parameters have changed; must not hold it.
        """
        there = self._kept.get(key)
        found = None if there is None else there[0]()
        if found is None:
            found = make()
            renew(found)
            self._kept[key] = weakref.ref(found), renew
        return found

    def values(self, stage: Stage, channels: int, part: tuple[int, int]) -> Array:
        """Return mean, scale and shift ``(3, last - first)`` of some channels of a stage."""

        def renew(values: Array) -> None:
            whole = np.empty((3, channels), self.dtype)
            stage.fill(whole, self.parameters)
            values[...] = whole[:, slice(*part)]

        shape = 3, part[1] - part[0]
        found: Array = self.kept(
            (stage, channels, part), lambda: np.empty(shape, self.dtype), renew
        )
        return found

    def parameters_changed(self) -> None:
        """See `Kernels.parameters_changed`."""
        for key, (reference, renew) in list(self._kept.items()):
            found = reference()
            if found is None:
                del self._kept[key]
            else:
                renew(found)

    # -- tasks -----------------------------------------------------------------------------------

    def algorithms(self, tasks: TaskGraph, task: Task) -> tuple[Algorithm, ...]:
        """See `Kernels.algorithms`."""
        if task.action in (IMAGE, LOSS):
            return _NONE
        if task.action != FORWARD:
            from sparsednn.dense.concurrency.cpu.backward import backward_algorithms

            return tuple(backward_algorithms(self, tasks, task))
        if not isinstance(tasks.operation(task), (Convolution, FullyConnected)):
            from sparsednn.dense.concurrency.cpu.forward import loop_algorithms

            return tuple(loop_algorithms(tasks, task, self.lanes))
        from sparsednn.dense.concurrency.cpu.direct import direct_algorithms
        from sparsednn.dense.concurrency.cpu.products import Product, blas_algorithms

        product, itemsize = Product.of(tasks, task), self.dtype.itemsize
        found = direct_algorithms(product, self.lanes, itemsize)
        found += blas_algorithms(product, self.lanes, itemsize)
        if self.torch is not None:
            from sparsednn.dense.concurrency.cpu.onednn import onednn_algorithms

            found += onednn_algorithms(product, self.lanes, itemsize)
        return tuple(found)

    def bind(
        self,
        tasks: TaskGraph,
        task: Task,
        algorithm: Algorithm,
        part: int,
        tensors: Mapping[str, Array],
        workspace: Array,
    ) -> Callable[[], None]:
        """See `Kernels.bind`."""
        if task.action in (IMAGE, LOSS):
            return _nothing
        if task.action != FORWARD:
            from sparsednn.dense.concurrency.cpu.backward import bind_backward

            call: Callable[[], None] = bind_backward(
                self, tasks, task, algorithm, part, tensors, workspace
            )
            return call
        if algorithm.name == "loops":
            from sparsednn.dense.concurrency.cpu.forward import bind_loops

            return bind_loops(self, tasks, task, algorithm.parts, part, tensors)
        from sparsednn.dense.concurrency.cpu.products import Product, bind_blas

        product = Product.of(tasks, task)
        if algorithm.name == "direct":
            from sparsednn.dense.concurrency.cpu.direct import bind_direct

            return bind_direct(self, product, algorithm, part, tensors, workspace)
        if algorithm.name == "onednn" and self.torch is not None:
            from sparsednn.dense.concurrency.cpu.onednn import bind_onednn

            return bind_onednn(self, product, algorithm, part, tensors)
        if algorithm.name in ("product", "columns", "whole columns"):
            return bind_blas(self, product, algorithm, part, tensors, workspace)
        raise InputError(f"task '{task.name}': there is no algorithm '{algorithm.name}' here")


def _nothing() -> None:
    """Do nothing: who runs the network does it."""
