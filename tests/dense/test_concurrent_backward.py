"""Tasks of the way back on the CPU: each way and each number of parts, against `DenseModel`."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsednn.comm import Alone
from sparsednn.dense.concurrency.cpu.backward import backward_algorithms, bind_backward
from sparsednn.dense.concurrency.tasks import Task, TaskGraph, gradient_of
from sparsednn.dense.flow import products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, make_placement
from sparsednn.dense.local.choose import make_backend
from sparsednn.dense.local.reference import ReferenceBackend
from sparsednn.dense.model import DenseModel
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Operation,
    Relu,
)
from tiny_network import random_batch, tiny_network

try:
    import torch
except ImportError:
    HAS_TORCH = False
else:
    HAS_TORCH = bool(torch.backends.mkldnn.is_available())

Array = Any


class Pass:
    """A network's arrays in front of the way back, and what `DenseModel` makes of it."""

    def __init__(
        self,
        graph: OperationGraph,
        images: int,
        *,
        dtype: Any = np.float64,
        lanes: int = 3,
        fuse: bool = True,
        wide: int = 0,
        seed: int = 0,
    ) -> None:
        self.tasks = TaskGraph(
            graph, images, training=True, itemsize=np.dtype(dtype).itemsize, fuse=fuse
        )
        self.source = np.random.default_rng(seed)
        x, labels = random_batch(graph, images, seed)
        placements = {each: make_placement(Grid(), "data") for each in products(graph)}
        model = DenseModel(
            Alone(), graph, placements, make_backend("im2col"), dtype=dtype, seed=seed
        )
        store = model.parameters
        noise = self.source.uniform(0, 0.1, store.theta.size)
        store.theta += noise.astype(dtype)  # scales and shifts are not all ones and zeros
        self.parameters = {
            name: np.ascontiguousarray(each) for name, each in store.gathered(store.theta).items()
        }
        batch = model.batch(images)
        _, gradient = batch.score(batch.forward(x.astype(dtype), training=True), labels)
        batch.backward(gradient)
        self.wanted = store.gathered(store.gradient)
        model.free()
        self.tensors = self._views(wide, dtype)
        self._forward(x.astype(dtype))
        self.tensors[gradient_of(graph.output)][:, 0, 0] = gradient
        self.kernels = SimpleNamespace(
            parameters=self.parameters,
            gradients={name: np.full_like(each, np.nan) for name, each in self.parameters.items()},
            dtype=dtype,
            lanes=lanes,
            has_torch=HAS_TORCH,
        )

    def _views(self, wide: int, dtype: Any) -> dict[str, Array]:
        """All tensors; with `wide` each is some channels of a wider one."""
        found: dict[str, Array] = {}
        for tensor in self.tasks.tensors.values():
            if len(tensor.shape) == 2:
                found[tensor.name] = np.full(tensor.shape, np.nan)
        for root in self.tasks.roots:
            if len(root.shape) == 4:
                b, c, h, w = root.shape
                kind = dtype if root.itemsize == np.dtype(dtype).itemsize else np.uint8
                if root.name.endswith(":where"):
                    kind = np.dtype(f"u{root.itemsize}")
                space = np.full((b, h, w, c + 2 * wide), np.nan if kind == dtype else 255, kind)
                found[root.name] = space[..., wide : wide + c]
        for tensor in self.tasks.tensors.values():
            if tensor.base is not None:
                root, first = self.tasks.root(tensor.name)
                found[tensor.name] = found[root][..., first : first + tensor.shape[1]]
        return found

    def _forward(self, x: Array) -> None:
        """Fill what a pass forward leaves, by the readable backend."""
        local, graph = ReferenceBackend(), self.tasks.graph
        outputs: dict[str, Array] = {}
        for operation in graph:
            name = operation.name
            inputs = [outputs[each] for each in graph.predecessors(name)]
            outputs[name] = self._output(local, operation, inputs, x)
            if name in self.tasks.tensors:
                self.tensors[name][...] = outputs[name].transpose(0, 2, 3, 1)

    def _output(self, local: Any, operation: Operation, inputs: list[Array], x: Array) -> Array:
        name = operation.name
        if isinstance(operation, Input):
            return x
        if isinstance(operation, (Convolution, FullyConnected)):
            shape = operation.geometry(*inputs[0].shape[:1], inputs[0].shape[1:])
            y = local.convolution(
                inputs[0], self.parameters[f"{name}.weight"], stride=shape.stride,
                pads=shape.padding * 2, dilation=shape.dilation, groups=shape.groups,
            )  # fmt: skip
            bias = self.parameters.get(f"{name}.bias")
            return y if bias is None else y + bias[:, None, None]
        if isinstance(operation, Relu):
            return local.relu(inputs[0])
        if isinstance(operation, BatchNorm):
            (values,) = inputs
            many = values.size // values.shape[1]
            mean = local.channel_sums(values) / many
            inverse = 1 / np.sqrt(local.channel_squares(values, mean) / many + operation.epsilon)
            self.tensors[f"{name}:statistics"][...] = mean, inverse
            gamma, beta = (self.parameters[f"{name}.{each}"] for each in ("weight", "bias"))
            return local.normalize(values, mean, inverse, gamma, beta)
        if isinstance(operation, Add):
            return sum(inputs[1:], inputs[0])
        if isinstance(operation, Concatenate):
            return np.concatenate(inputs, axis=1)
        assert isinstance(operation, (MaxPool, AveragePool))
        image = inputs[0].shape[1:]
        how = {"taps": operation.taps, "stride": operation.stride, "pads": operation.pads(image)}
        if isinstance(operation, AveragePool):
            return local.average_pool(inputs[0], **how, count=operation.divisors(image))
        y, where = local.max_pool(inputs[0], **how)
        self.tensors[f"{name}:where"][...] = where.transpose(0, 2, 3, 1)
        return y

    def back(self) -> Iterator[Task]:
        return (task for task in self.tasks if task.backward)

    def results(self, task: Task) -> list[Array]:
        """The arrays that a task fills."""
        names = [f"{task.operations[0]}.{each}" for each in ("weight", "bias")]
        gradients = self.kernels.gradients
        has = task.action == "kernel gradient" or task.action == "backward"
        return [
            *(self.tensors[each] for each in task.writes),
            *(gradients[each] for each in names if has and each in gradients),
        ]

    def run(self, task: Task, algorithm: Any) -> None:
        """Do all parts of a task, in any order, on workspaces of any contents."""
        for each in self.results(task):
            each[...] = np.nan
        for part in self.source.permutation(algorithm.parts):
            size = algorithm.workspace
            space = np.full(size + 64, 255, np.uint8)
            space = space[-space.ctypes.data % 64 :][:size]
            bind_backward(
                self.kernels, self.tasks, task, algorithm, int(part), self.tensors, space
            )()

    def check(self, task: Task, found: list[Array], wanted: list[Array]) -> None:
        tight = self.kernels.dtype == np.float64
        for one, other in zip(found, wanted, strict=True):
            scale = max(1e-3 if tight else 0.1, float(np.abs(other).max()))
            np.testing.assert_allclose(
                one, other, rtol=1e-11 if tight else 1e-4, atol=(1e-11 if tight else 2e-5) * scale,
                err_msg=task.name,
            )  # fmt: skip

    def check_all(self) -> set[tuple[str, int]]:
        """Do all tasks in all ways; the same bits twice, the same numbers as `DenseModel`."""
        seen = set()
        for task in self.back():
            algorithms = backward_algorithms(self.kernels, self.tasks, task)
            assert len({(each.name, each.parts) for each in algorithms}) == len(algorithms)
            first: list[Array] = []
            for algorithm in algorithms:
                seen.add((algorithm.name, algorithm.parts))
                self.run(task, algorithm)
                found = [each.copy() for each in self.results(task)]
                first = first or found
                self.check(task, found, first)
            last = algorithms[self.source.integers(len(algorithms))]
            bits = []
            for _ in range(2):
                self.run(task, last)
                bits.append([each.tobytes() for each in self.results(task)])
            assert bits[0] == bits[1]
        for name, gradient in self.kernels.gradients.items():
            task = next(
                each for each in self.back() if each.operations[0] == name.rpartition(".")[0]
            )
            self.check(task, [gradient], [self.wanted[name]])
        return seen


def _around(operation: Operation, image: tuple[int, int, int], channels: int) -> OperationGraph:
    """A network with an operation between two products, so that all its gradients are wanted."""
    graph = OperationGraph("one")
    x = graph.add(Input("image", image))
    x = graph.add(Convolution("stem", channels, (1, 1)), x)
    x = graph.add(operation, x)
    graph.add(FullyConnected("fc", 3), x)
    return graph.finish()


_SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
_DTYPES = st.sampled_from([np.float64, np.float32])
_SMALL = st.integers(1, 3)


@_SETTINGS
@given(st.data(), _DTYPES)
def test_every_way_of_convolutions(data: Any, dtype: Any) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 3]))
    taps, stride, dilation = (data.draw(st.tuples(_SMALL, _SMALL)) for _ in range(3))
    pads = data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    size = [
        data.draw(st.integers(max(1, dil * (tap - 1) + 1 - 2 * pad), 7))
        for tap, dil, pad in zip(taps, dilation, pads, strict=True)
    ]
    operation = Convolution(
        "one", groups * data.draw(st.sampled_from([1, 4, 20])), taps, stride, pads, dilation,
        groups, bias=data.draw(st.booleans()),
    )  # fmt: skip
    channels = groups * data.draw(st.sampled_from([1, 3, 16, 40]))
    graph = _around(operation, (2, size[0], size[1]), channels)
    lanes, wide = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 2))
    Pass(graph, data.draw(_SMALL), dtype=dtype, lanes=lanes, wide=wide).check_all()


@_SETTINGS
@given(st.data(), _DTYPES)
def test_every_way_of_pools(data: Any, dtype: Any) -> None:
    taps, stride = (data.draw(st.tuples(_SMALL, _SMALL)) for _ in range(2))
    pads = tuple(data.draw(st.integers(0, tap // 2)) for tap in taps)
    size = [data.draw(st.integers(tap, 7)) for tap in taps]
    last = data.draw(st.booleans())
    operation: Operation
    if data.draw(st.booleans()):
        operation = MaxPool("one", taps, stride, pads, ceil_mode=last)
    else:
        operation = AveragePool("one", taps, stride, pads, count_include_pad=last)
    graph = _around(operation, (2, size[0], size[1]), data.draw(st.sampled_from([1, 5, 33])))
    lanes, wide = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 2))
    Pass(graph, data.draw(_SMALL), dtype=dtype, lanes=lanes, wide=wide).check_all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("operation", [Relu("one"), BatchNorm("one"), FullyConnected("one", 9)])
@pytest.mark.parametrize("wide", [0, 1])
def test_every_way_of_others(operation: Operation, dtype: Any, wide: int) -> None:
    graph = _around(operation, (3, 4, 5), 37)
    seen = Pass(graph, 3, dtype=dtype, lanes=6, wide=wide).check_all()
    assert {parts for _, parts in seen} >= {1, 2, 4, 6}


def _inception() -> OperationGraph:
    graph = OperationGraph("inception")
    graph.add(Input("image", (3, 9, 7)))
    x = graph.add(Relu("stem_relu"), graph.add(Convolution("stem", 12, (3, 3)), "image"))
    for module in ("a", "b"):
        ends = []
        for branch, taps in (("one", 1), ("three", 3), ("five", 5)):
            end = graph.add(Convolution(f"{module}_{branch}_few", 4, (1, 1)), x)
            end = graph.add(Relu(f"{module}_{branch}_relu"), end)
            pads = (taps // 2, taps // 2)
            end = graph.add(Convolution(f"{module}_{branch}", 6, (taps, taps), padding=pads), end)
            ends.append(end)
        pool = graph.add(MaxPool(f"{module}_pool", (3, 3), padding=(1, 1)), x)
        ends.append(graph.add(Relu(f"{module}_pool_relu"), pool))
        x = graph.add(Concatenate(f"{module}_concatenate"), *ends, x)
    graph.add(Add("twice"), x, x)
    graph.add(AveragePool("mean", (7, 5)), "twice")
    graph.add(FullyConnected("fc", 5), "mean")
    return graph.finish()


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", ["lenet5", "resnet20", "tiny", "inception"])
def test_whole_networks(name: str, fuse: bool) -> None:
    if name == "tiny":
        graph = tiny_network()
    elif name == "inception":
        graph = _inception()
    else:
        graph = make_network(name, image={"resnet20": (3, 8, 8)}.get(name), classes=10)
    Pass(graph, 2, fuse=fuse).check_all()
