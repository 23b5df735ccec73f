"""`LateCupy`: the twin of CuPy whose streams run as late, or in as odd an order, as they may.

On the twin all work is done when it is queued, which hides a missing wait. Here each stream is a
queue. Work is done when the host waits, or, with a seed, also at random moments: mostly of the
stream that is preferred for a while, so that others fall far behind; a graph runs its pieces in
such an order, too (after Burckhardt et al., ASPLOS 2010). Beside it, a cuDNN whose plans scribble
over their workspace, and look later whether somebody else has.
"""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

import numpy as np

from fake_cudnn import ConvolutionCalls
from sparsednn.dense.concurrency.gpu.twin import TwinCupy
from sparsednn.dense.local.reference import ReferenceBackend

REFERENCE = ReferenceBackend()


class _Moment:
    def __init__(self, queue: deque[Any]) -> None:
        self.queue, self.reached = queue, False


class LateCupy(TwinCupy):
    """See the module.

    Parameters
    ----------
    seed
        Of what is done when; None: all as late as possible.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._queues: dict[int, deque[Any]] = {}
        self._likes: dict[int, float] = {}
        self._random = None if seed is None else np.random.default_rng(seed)
        #: How often something is done while the host goes on queueing.
        self._eager = 0.0 if seed is None else (0.0, 0.3, 0.7)[seed % 3]
        super().__init__()
        self.late = self.launches = 0

    def _queue_of(self, stream: Any) -> deque[Any]:
        return self._queues.setdefault(stream.ptr, deque())

    def _later(self, work: Any, stream: Any) -> None:
        self._queue_of(stream).append(work)
        self.late += 1
        while self._random is not None and self._random.random() < self._eager:
            full = [ptr for ptr, queue in self._queues.items() if queue]
            if not full:
                break
            _step(self._queues[self._preferred(full)])

    def _preferred(self, lanes: list[int]) -> int:
        """Which stream goes on: by preferences that change now and then."""
        assert self._random is not None
        if self._random.random() < 0.01:
            self._likes.clear()
        if self._random.random() < 0.05:
            return lanes[int(self._random.integers(len(lanes)))]
        for lane in lanes:
            self._likes.setdefault(lane, float(self._random.random()))
        return max(lanes, key=lambda lane: self._likes[lane])

    def run(self, work: Any, stream: Any) -> None:
        self._later(work, stream)

    def mark(self, event: Any, stream: Any) -> None:
        self._later(lambda: TwinCupy.mark(self, event, stream), stream)
        event.moment = _Moment(self._queue_of(stream))
        self._later(event.moment, stream)

    def wait(self, event: Any, stream: Any) -> None:
        if event.moment is not None:  # one that was never recorded is not waited for
            self._later(event.moment, stream)

    def order_of(self, graph: Any) -> list[int]:
        """Some order that waits allow: of what may run, any; without a seed, the newest first."""
        self.launches += 1
        self._likes.clear()
        left = [set(waits) for waits in graph.waits]
        after: list[list[int]] = [[] for _ in left]
        for piece, waits in enumerate(left):
            for one in waits:
                after[one].append(piece)
        ready = [piece for piece, waits in enumerate(left) if not waits]
        order = []
        while ready:
            at = len(ready) - 1
            if self._random is not None:
                lanes = [graph.lanes[one] for one in ready]
                at = lanes.index(self._preferred(lanes))
            piece = ready.pop(at)
            order.append(piece)
            for other in after[piece]:
                left[other].discard(piece)
                if not left[other]:
                    ready.append(other)
        assert len(order) == len(left)
        return order

    def synchronize(self, stream: Any = None) -> None:
        """With a seed, others' work may be done meanwhile."""

        def full() -> list[int]:
            return [ptr for ptr, queue in self._queues.items() if queue]

        while self._queue_of(stream) if stream is not None else full():
            ptr = stream.ptr if stream is not None else full()[-1]
            _step(self._queues[ptr if self._random is None else self._preferred(full())])


def _step(queue: deque[Any]) -> None:
    """Do the first thing of a queue; other queues first, if it waits for them."""
    what = queue.popleft()
    if isinstance(what, _Moment):
        if what.queue is queue:
            what.reached = True
        while not what.reached:
            _step(what.queue)
    else:
        what()


# -- cuDNN ---------------------------------------------------------------------------------------


class NotSupportedError(Exception):
    pass


class FakeTensor:
    def __init__(self, dim: Any = None, stride: Any = None) -> None:
        self.dim, self.stride, self.is_output = dim, stride, False

    def set_output(self, value: bool) -> FakeTensor:
        self.is_output = value
        return self

    def set_data_type(self, value: str) -> FakeTensor:
        return self

    def set_dim(self, value: Any) -> FakeTensor:
        self.dim = value
        return self

    def set_stride(self, value: Any) -> FakeTensor:
        self.stride = value
        return self


class FakeHandle:
    stream = 0


#: Name, workspace, and what building raises: the second is what the notes have left out.
PLANS = (
    ("eng0", 0, None),
    ("eng1", 64, RuntimeError("Deselecting execution plan at position 1")),
    ("eng2_k1=3", 200, None),
    ("eng3", 8, NotSupportedError("no")),
    ("eng2_k1=3", 200, None),
)


class PlanGraph(ConvolutionCalls):
    """Takes the calls that ``cudnn.pygraph`` does, in the order that it wants."""

    def __init__(self, module: LateCudnn, dtype: str) -> None:
        self.module, self.dtype, self.calls = module, dtype, ["pygraph"]
        self.built: set[int] = set()

    def tensor(self, *, name: str, dim: Any, stride: Any, data_type: str) -> FakeTensor:
        assert data_type == self.dtype
        return FakeTensor(dim, stride)

    def _operation(self, kind: str, first: Any, second: Any, window: Any) -> FakeTensor:
        self.kind, self.operands, self.window = kind, [first, second, FakeTensor()], window
        return self.operands[2]

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        assert self.calls[-1] == "create_execution_plans"
        assert "NONDETERMINISTIC" in notes
        self.calls.append("deselect")

    def check_support(self) -> None:
        if self.module.refuses:
            raise NotSupportedError("no engine")
        assert self.calls == [
            "pygraph", "validate", "build_operation_graph", "create_execution_plans", "deselect"
        ]  # fmt: skip

    def get_execution_plan_count(self) -> int:
        return len(PLANS)

    def build_plan_at_index(self, index: int) -> None:
        if PLANS[index][2] is not None:
            raise PLANS[index][2]
        self.built.add(index)

    def get_plan_name_at_index(self, index: int) -> str:
        return PLANS[index][0]

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        assert index in self.built
        return PLANS[index][1]

    def execute_plan_at_index(
        self, tensors: Any, workspace: int, index: int, handle: FakeHandle
    ) -> None:
        assert index in self.built
        twin, stream = self.module.twin, self.module.twin.streams[handle.stream]
        assert stream is twin.current[-1]
        assert self.operands[2].is_output
        dtype = {"FLOAT": np.float32, "DOUBLE": np.float64}[self.dtype]
        first, second, result = (
            array_at(tensors[operand], operand.dim, operand.stride, dtype)
            for operand in self.operands
        )
        size = PLANS[index][1]
        self.module.number += 1
        mark = np.full(size, self.module.number % 251, np.uint8)
        space = array_at(workspace, (size,), (1,), np.uint8) if size else np.empty(0, np.uint8)

        def scribble() -> None:
            space[:] = mark

        def compute() -> None:
            assert np.array_equal(space, mark), "somebody has written into a plan's workspace"
            result[...] = self._result(first, second, result.shape)
            self.module.executed.add((self.kind, index))

        twin.queue(scribble, stream)
        twin.queue(compute, stream)

    def _result(self, first: Any, second: Any, shape: Any) -> Any:
        window = {
            "stride": tuple(self.window["stride"]),
            "dilation": tuple(self.window["dilation"]),
            "pads": (*self.window["pre_padding"], *self.window["post_padding"]),
        }
        first, second = np.ascontiguousarray(first), np.ascontiguousarray(second)
        if self.kind == "forward":
            groups = first.shape[1] // second.shape[1]
            return REFERENCE.convolution(first, second, groups=groups, **window)
        if self.kind == "input":
            groups = shape[1] // second.shape[1]
            return REFERENCE.convolution_input_gradient(
                first, second, shape, groups=groups, **window
            )
        groups = first.shape[1] // shape[1]
        return REFERENCE.convolution_kernel_gradient(first, second, shape, groups=groups, **window)


def array_at(address: int, shape: Any, strides: Any, dtype: Any) -> Any:
    """The array at an address; strides in elements."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    itemsize = np.dtype(dtype).itemsize
    buffer = (ctypes.c_uint8 * (span * itemsize)).from_address(address)
    flat = np.frombuffer(buffer, dtype)
    return np.lib.stride_tricks.as_strided(flat, shape, [one * itemsize for one in strides])


class LateCudnn:
    """The names of nvidia-cudnn-frontend that we use."""

    class data_type:  # noqa: N801 - the module's own name
        FLOAT, DOUBLE = "FLOAT", "DOUBLE"

    class heur_mode:  # noqa: N801 - the module's own name
        A, FALLBACK = "A", "FALLBACK"

    class numerical_note:  # noqa: N801 - the module's own name
        NONDETERMINISTIC, TENSOR_CORE = "NONDETERMINISTIC", "TENSOR_CORE"
        DOWN_CONVERT_INPUTS = "DOWN_CONVERT_INPUTS"
        REDUCED_PRECISION_REDUCTION = "REDUCED_PRECISION_REDUCTION"

    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815 - the module's own name

    def __init__(self, twin: TwinCupy, *, refuses: bool = False) -> None:
        self.twin, self.refuses, self.number = twin, refuses, 0
        self.handles = 0
        self.executed: set[tuple[str, int]] = set()

    def backend_version(self) -> int:
        return 91000

    def create_handle(self) -> FakeHandle:
        assert all(stream.capture is None for stream in self.twin.streams)
        self.handles += 1
        return FakeHandle()

    def destroy_handle(self, handle: FakeHandle) -> None:
        self.handles -= 1

    def set_stream(self, *, handle: FakeHandle, stream: int) -> None:
        handle.stream = stream

    def pygraph(self, *, name: str, handle: FakeHandle, **types: str) -> PlanGraph:
        (dtype,) = set(types.values())
        return PlanGraph(self, dtype)
