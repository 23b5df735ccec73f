"""A small network with everything in it: branches, groups, poolings, batch norm, odd sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import legal_placements
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Relu,
)


def tiny_network() -> OperationGraph:
    graph = OperationGraph("tiny")
    x = graph.add(Input("image", (3, 11, 9)))
    x = graph.add(Convolution("conv1", 6, (3, 3), padding=(1, 1), bias=False), x)
    x = graph.add(BatchNorm("bn1"), x)
    trunk = graph.add(Relu("relu1"), x)
    a = graph.add(Convolution("a", 4, (1, 1)), trunk)
    a = graph.add(Relu("a_relu"), a)
    b = graph.add(Convolution("b", 6, (3, 3), padding=(1, 1), groups=2), trunk)
    b = graph.add(BatchNorm("b_bn"), b)
    c = graph.add(MaxPool("c", (3, 3), padding=(1, 1)), trunk)
    shortcut = graph.add(Add("sum"), b, trunk)
    shortcut = graph.add(Relu("sum_relu"), shortcut)
    x = graph.add(Concatenate("concat"), a, shortcut, c)
    x = graph.add(MaxPool("pool", (3, 3), stride=(2, 2), ceil_mode=True), x)
    x = graph.add(Convolution("conv2", 8, (3, 2), stride=(2, 1), padding=(1, 0)), x)
    x = graph.add(Relu("relu2"), x)
    x = graph.add(
        AveragePool("average", (2, 2), stride=(1, 2), padding=(1, 1), count_include_pad=False), x
    )
    x = graph.add(FullyConnected("fc1", 7), x)
    x = graph.add(Relu("fc_relu"), x)
    graph.add(FullyConnected("fc2", 5), x)
    return graph.finish()


def random_placements(graph: OperationGraph, images: int, ranks: int, source: Any) -> dict:
    """A legal placement for every product, each with an algorithm and a grid of its own."""
    from sparsednn.dense.flow import products

    placements = {}
    for name in products(graph):
        shape = graph.operation(name).geometry(images, graph.input_shapes(name)[0])
        every = legal_placements(shape, ranks)
        placements[name] = every[int(source.integers(len(every)))]
    return placements


def random_batch(graph: OperationGraph, images: int, seed: int) -> tuple[Any, Any]:
    source = np.random.default_rng(seed)
    x = source.standard_normal((images, *graph.image))
    return x, source.integers(graph.classes, size=images)
