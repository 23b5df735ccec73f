"""Which ways there are to do a task on a GPU, and the steps of each.

A convolution has cuDNN's plans, where its frontend is installed, and columns with cuBLAS, of all
images or of fewer at a time; everything else has one way. Batch normalisation by running statistics
is folded into the product in front of it, once, and renewed when parameters change.

Must not know: streams, where memory lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.gpu.convolutions import product_ways
from sparsednn.dense.concurrency.gpu.plans import Convolved, CudnnPlans, Plan
from sparsednn.dense.concurrency.gpu.steps import Scratch, Step, Steps, flat
from sparsednn.dense.concurrency.tasks import (
    FORWARD,
    INPUT_GRADIENT,
    KERNEL_GRADIENT,
    SUM,
    Task,
    TaskGraph,
)
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.local.base import Array, Pads, Pair
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    MaxPool,
    Operation,
    Pool,
    Relu,
)

__all__ = ["Way", "Ways", "scratch_bytes"]

_ALIGNED: Final = 64
#: Bytes that cuDNN's engines may take operands to be aligned to: the frontend's default.
_CUDNN_ALIGNED: Final = 16
#: What a task is to cuDNN.
_OPERATIONS: Final = {FORWARD: "forward", INPUT_GRADIENT: "input", KERNEL_GRADIENT: "kernel"}

_Three = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
_Views = Mapping[str, Array]
_Make = Callable[[_Views, Sequence[Array]], list[Step]]


@dataclass(frozen=True, slots=True)
class Way:
    """A way to do a task: its name, what it wants, and how its steps are made."""

    name: str
    scratch: tuple[Scratch, ...]
    make: _Make

    @property
    def workspace(self) -> int:
        """Bytes."""
        return sum(scratch_bytes(one) for one in self.scratch)


class Ways:
    """Ways of the tasks of one network.

    Parameters
    ----------
    graph
        The network.
    steps
        Makes steps.
    plans
        cuDNN's; None: there are none.
    parameters, gradients
        Arrays of the device, by full name, which stay where they are.
    dtype
        Of activations and parameters.
    """

    def __init__(
        self,
        graph: OperationGraph,
        steps: Steps,
        plans: CudnnPlans | None,
        parameters: Mapping[str, Array],
        gradients: Mapping[str, Array],
        dtype: str,
    ) -> None:
        self.graph, self.plans = graph, plans
        self.xp, self._tools, self._steps = steps.xp, steps.tools, steps
        self.parameters, self.gradients, self._dtype = parameters, gradients, dtype
        #: What was made of parameters, where it lies, and how it is renewed.
        self._made: dict[Any, tuple[Array, Callable[[], NDArray[Any]]]] = {}

    def renew(self) -> None:
        """Make anew what was made of parameters, where it lies."""
        for array, renew in self._made.values():
            array.set(renew())

    def _derived(self, key: Any, renew: Callable[[], NDArray[Any]]) -> Array:
        """An array made of parameters, which stays where it is."""
        if key not in self._made:
            self._made[key] = self.xp.asarray(renew()), renew
        return self._made[key][0]

    def of(self, tasks: TaskGraph, task: Task) -> list[Way]:
        """Return all ways to do a task, the default first."""
        if task.action == SUM:
            return [Way("sum", (), lambda views, _: self._sum(task, views))]
        operation = tasks.operation(task)
        if isinstance(operation, Convolution | FullyConnected):
            return self._product_ways(tasks, task, operation)
        if task.action == FORWARD:
            return [self._forward_way(tasks, task, operation)]
        return [self._backward_way(tasks, task, operation)]

    def _sum(self, task: Task, views: _Views) -> list[Step]:
        return self._steps.sum([views[name] for name in task.reads], views[task.writes[0]])

    # -- products --------------------------------------------------------------------------------

    def _product_ways(
        self, tasks: TaskGraph, task: Task, operation: Convolution | FullyConnected
    ) -> list[Way]:
        source = self.graph.predecessors(operation.name)[0]
        shape = operation.geometry(tasks.images, self.graph.shape(source))
        kind = _OPERATIONS[task.action]
        ways = []
        for name, scratch, make in (
            *self._cudnn_ways(tasks, task, kind, shape),
            *(
                (way.name, way.scratch, way.make)
                for way in product_ways(self._steps, shape, kind, self._dtype)
            ),
        ):
            ways.append(self._product_way(task, operation, shape, name, scratch, make))
        return ways

    def _product_way(
        self, task: Task, operation: Operation, shape: ConvolutionShape, name: str,
        scratch: tuple[Scratch, ...], make: Callable[..., list[Step]],
    ) -> Way:  # fmt: skip
        """A way of the product itself, with what comes behind it."""
        bias = self.parameters.get(f"{operation.name}.bias")
        if task.action == FORWARD:

            def forward(views: _Views, extra: Sequence[Array]) -> list[Step]:
                y = views[task.writes[0]]
                kernel, shift, rest = self._kernel(task)
                found = make(views[task.reads[0]], kernel, y, extra)
                if shift is not None:
                    found.append(self._steps.ufunc("add", y, self._steps.per_channel(shift), y))
                return found + self._tail(rest, y)

            return Way(name, scratch, forward)
        if task.action == INPUT_GRADIENT:
            kernel = self.parameters[f"{operation.name}.weight"]
            return Way(
                name,
                scratch,
                lambda views, extra: make(
                    views[task.reads[0]], kernel, views[task.writes[0]], extra
                ),
            )

        def kernel_gradient(views: _Views, extra: Sequence[Array]) -> list[Step]:
            given, source = (views[each] for each in task.reads[:2])
            own = extra[: len(scratch)]
            found = make(source, given, self.gradients[f"{operation.name}.weight"], own)
            if bias is not None:
                sums = self.gradients[f"{operation.name}.bias"]
                found += self._steps.channel_sums(
                    flat(self._tools, given), extra[len(scratch)], sums
                )
            return found

        partial: tuple[Scratch, ...] = (
            () if bias is None else (((shape.images, shape.filters), self._dtype),)
        )
        return Way(name, (*scratch, *partial), kernel_gradient)

    def _cudnn_ways(
        self, tasks: TaskGraph, task: Task, kind: str, shape: ConvolutionShape
    ) -> list[tuple[str, tuple[Scratch, ...], Callable[..., list[Step]]]]:
        if self.plans is None:
            return []
        (top, left), kernel = shape.padding, shape.kernel_shape
        shapes: _Three
        strides: _Three
        lying = {name: _strides(tasks, name) for name in (*task.reads, *task.writes)}
        if any(_offset(tasks, name) % _CUDNN_ALIGNED for name in lying):
            return []
        dense = tuple(prod(kernel[axis + 1 :]) for axis in range(4))
        if kind == "forward":
            x, y = task.reads[0], task.writes[0]
            shapes = shape.input_shape, kernel, shape.output_shape
            strides = lying[x], dense, lying[y]
        elif kind == "input":
            shapes = shape.output_shape, kernel, shape.input_shape
            strides = lying[task.reads[0]], dense, lying[task.writes[0]]
        else:
            shapes = shape.input_shape, shape.output_shape, kernel
            strides = lying[task.reads[1]], lying[task.reads[0]], dense
        pads: Pads = (top, left, top, left)
        what = Convolved(kind, shapes, strides, self._dtype, shape.stride, pads, shape.dilation)
        return [
            (f"cudnn {plan.name}", (((plan.workspace,), "uint8"),) if plan.workspace else (),
             self._run_plan(what, plan))
            for plan in self.plans.of(what)
        ]  # fmt: skip

    def _run_plan(self, what: Convolved, plan: Plan) -> Callable[..., list[Step]]:
        plans = self.plans
        assert plans is not None  # it has this one

        def make(a: Array, b: Array, out: Array, scratch: Sequence[Array]) -> list[Step]:
            addresses = int(a.data.ptr), int(b.data.ptr), int(out.data.ptr)
            workspace = int(scratch[0].data.ptr) if plan.workspace else 0
            held = a, b, out, *scratch

            def step(_: Any = held) -> None:  # addresses alone would keep no memory
                plans.run(what, plan, addresses, workspace)

            return [step]

        return make

    def _kernel(self, task: Task) -> tuple[Array, Array | None, tuple[str, ...]]:
        """Kernel and shift of a product with the normalisation behind it, and what is left."""
        name, *rest = task.operations
        kernel, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        if not rest or not isinstance(self.graph.operation(rest[0]), BatchNorm):
            return kernel, bias, tuple(rest)
        norm = rest[0]

        def folded() -> NDArray[Any]:
            weights: NDArray[Any] = self.xp.asnumpy(kernel)
            scale = self._affine(norm)[0].reshape(-1, *[1] * (weights.ndim - 1))
            found: NDArray[Any] = (weights * scale).astype(self._dtype)
            return found

        def shift() -> NDArray[Any]:
            scale, moved = self._affine(norm)
            before = 0.0 if bias is None else self.xp.asnumpy(bias)
            found: NDArray[Any] = (before * scale + moved).astype(self._dtype)
            return found

        return (
            self._derived((name, norm, "kernel"), folded),
            self._derived((name, norm, "shift"), shift),
            tuple(rest[1:]),
        )

    # -- everything else -------------------------------------------------------------------------

    def _affine(self, norm: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Scale and shift of a batch normalisation by its running statistics, float64."""
        operation = self.graph.operation(norm)
        assert isinstance(operation, BatchNorm)
        gamma, beta, mean, variance = (
            self.xp.asnumpy(self.parameters[f"{norm}.{name}"]).astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / np.sqrt(variance + operation.epsilon)
        return scale, beta - mean * scale

    def _normalized(self, norm: str, x: Array, y: Array) -> list[Step]:
        """By the running statistics."""
        scale = self._derived((norm, "scale"), lambda: self._affine(norm)[0].astype(self._dtype))
        shift = self._derived((norm, "shift"), lambda: self._affine(norm)[1].astype(self._dtype))
        return self._steps.scaled(x, scale, shift, y)

    def _tail(self, names: Sequence[str], y: Array) -> list[Step]:
        """What is fused behind an operation, in place."""
        found: list[Step] = []
        for name in names:
            if isinstance(self.graph.operation(name), Relu):
                found.append(self._steps.relu(y))
            else:
                found += self._normalized(name, y, y)
        return found

    def _forward_way(self, tasks: TaskGraph, task: Task, operation: Operation) -> Way:
        steps, tensors = self._steps, tasks.tensors
        written, rest = task.writes[0], task.operations[1:]
        scratch: tuple[Scratch, ...] = ()
        make: Callable[[_Views, Sequence[Array]], list[Step]]
        if isinstance(operation, Pool):
            source = task.reads[0]
            window = _window(
                operation, self.graph.shape(self.graph.predecessors(operation.name)[0])
            )
            shapes = tensors[source].shape, tensors[written].shape
            if isinstance(operation, AveragePool):
                count = operation.divisors(self.graph.input_shapes(operation.name)[0])
                scratch = steps.average_pool_scratch(*shapes, window, self._dtype, gradient=False)

                def make(views: _Views, extra: Sequence[Array]) -> list[Step]:
                    return steps.average_pool(views[source], views[written], window, count, extra)
            else:
                kept = task.writes[1] if len(task.writes) > 1 else None
                scratch = steps.max_pool_scratch(*shapes, window[2], self._dtype, kept is not None)

                def make(views: _Views, extra: Sequence[Array]) -> list[Step]:
                    where = None if kept is None else views[kept]
                    return steps.max_pool(views[source], views[written], where, window, extra)
        elif isinstance(operation, BatchNorm) and tasks.training:
            norm, statistics = operation, task.writes[1]
            scratch = steps.normalize_scratch(tensors[written].shape, gradient=False)
            arrays = [
                self.parameters[f"{norm.name}.{name}"]
                for name in ("weight", "bias", "running_mean", "running_var")
            ]

            def make(views: _Views, extra: Sequence[Array]) -> list[Step]:
                return steps.normalize(
                    views[task.reads[0]], views[written], views[statistics], arrays,
                    (norm.epsilon, norm.momentum), extra,
                )  # fmt: skip
        else:

            def make(views: _Views, extra: Sequence[Array]) -> list[Step]:
                return self._elementwise(tasks, task, operation, views)

        return Way(
            operation.kind,
            scratch,
            lambda views, extra: make(views, extra) + self._tail(rest, views[written]),
        )

    def _elementwise(
        self, tasks: TaskGraph, task: Task, operation: Operation, views: _Views
    ) -> list[Step]:
        y, inputs = views[task.writes[0]], [views[name] for name in task.reads]
        if isinstance(operation, Relu):
            return [self._steps.ufunc("maximum", inputs[0], y.dtype.type(0), y)]
        if isinstance(operation, BatchNorm):
            return self._normalized(operation.name, inputs[0], y)
        if isinstance(operation, Add):
            return self._steps.sum(inputs, y)
        assert isinstance(operation, Concatenate)
        found, channel = [], 0
        for source in self.graph.predecessors(operation.name):
            width = self.graph.shape(source)[0]
            # Others write there themselves.
            if source in task.reads:
                found.append(self._steps.copy(y[:, channel : channel + width], views[source]))
            channel += width
        return found

    def _backward_way(self, tasks: TaskGraph, task: Task, operation: Operation) -> Way:
        steps, tensors, given = self._steps, tasks.tensors, task.reads[0]
        target = task.writes[0] if task.writes else None
        shape = tensors[given].shape
        if isinstance(operation, BatchNorm):
            name = operation.name
            gradients = [self.gradients[f"{name}.weight"], self.gradients[f"{name}.bias"]]
            gamma = self.parameters[f"{name}.weight"]
            _, source, statistics = task.reads
            return Way(
                operation.kind,
                steps.normalize_scratch(shape, gradient=True),
                lambda views, extra: steps.normalize_gradient(
                    views[given], views[source], None if target is None else views[target],
                    views[statistics], gamma, gradients, extra,
                ),
            )  # fmt: skip
        assert target is not None  # only parameters are wanted without one
        if isinstance(operation, Relu):
            output = task.reads[1]
            return Way(
                operation.kind,
                ((shape, "bool"),),
                lambda views, extra: steps.relu_gradient(
                    views[given], views[output], views[target], extra[0]
                ),
            )
        if isinstance(operation, Concatenate):
            return Way(operation.kind, (), lambda views, _: self._cut(task, operation, views))
        assert isinstance(operation, Pool)
        image = self.graph.input_shapes(operation.name)[0]
        window, shapes = _window(operation, image), (tensors[target].shape, shape)
        if isinstance(operation, MaxPool):
            where = task.reads[1]
            return Way(
                operation.kind,
                steps.max_pool_gradient_scratch(*shapes, window[2], self._dtype),
                lambda views, extra: steps.max_pool_gradient(
                    views[given], views[where], views[target], window, extra
                ),
            )
        assert isinstance(operation, AveragePool)
        count = operation.divisors(image)
        return Way(
            operation.kind,
            steps.average_pool_scratch(*shapes, window, self._dtype, gradient=True),
            lambda views, extra: steps.average_pool_gradient(
                views[given], views[target], window, count, extra
            ),
        )

    def _cut(self, task: Task, operation: Operation, views: _Views) -> list[Step]:
        """The gradients of a concatenation's inputs, where they are not cut by their place."""
        found, channel, wanted = [], 0, list(task.writes)
        dy = views[task.reads[0]]
        for source in self.graph.predecessors(operation.name):
            width = self.graph.shape(source)[0]
            if wanted and wanted[0].startswith(f"{source}:gradient"):
                part = dy[:, channel : channel + width]
                found.append(self._steps.copy(views[wanted.pop(0)], part))
            channel += width
        return found


def scratch_bytes(scratch: Scratch) -> int:
    """Bytes, up to where the next one may begin."""
    shape, dtype = scratch
    return -(-prod(shape) * np.dtype(dtype).itemsize // _ALIGNED) * _ALIGNED


def _strides(tasks: TaskGraph, tensor: str) -> tuple[int, int, int, int]:
    """In elements, as `CupyKernels.view` lies."""
    _, c, h, w = tasks.tensors[tasks.root(tensor)[0]].shape
    return c * h * w, h * w, w, 1


def _offset(tasks: TaskGraph, tensor: str) -> int:
    """Bytes from where a tensor's root begins to where it does."""
    name, channel = tasks.root(tensor)
    root = tasks.tensors[name]
    return channel * prod(root.shape[2:]) * root.itemsize


def _window(operation: Pool, image: tuple[int, int, int]) -> tuple[Pair, Pair, Pads]:
    """Taps, stride and pads."""
    return operation.taps, operation.stride, operation.pads(image)
