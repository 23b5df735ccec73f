"""Compile, or load from the cache on disk, what a training runs, before its clock is started."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.comm.alone import Alone
from sparsednn.dense.flow import products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, make_placement
from sparsednn.dense.model import DenseModel
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Relu,
)

if TYPE_CHECKING:
    from sparsednn.dense.local.base import LocalBackend
    from sparsednn.training.optimizers import Optimizer

__all__ = ["warm_up"]


def warm_up(local: LocalBackend, dtype: Any, optimizer: Optimizer | None = None) -> None:
    """Do a step of a tiny network that has every kind of operation, in this process alone.

    Parameters
    ----------
    local, dtype
        What will compute, and with what.
    optimizer
        None: a forward pass only.
    """
    graph = OperationGraph("warm-up")
    image = graph.add(Input("image", (2, 6, 6)))
    x = graph.add(Convolution("conv", 2, (3, 3), padding=(1, 1)), image)
    x = graph.add(BatchNorm("norm"), x)
    x = graph.add(Add("sum"), x, image)
    x = graph.add(Relu("relu"), x)
    x = graph.add(MaxPool("max", (2, 2), stride=(2, 2)), x)
    x = graph.add(AveragePool("average", (2, 2), stride=(1, 1)), x)
    graph.add(FullyConnected("fc", 2), x)
    graph.finish()
    alone = {name: make_placement(Grid(), "data") for name in products(graph)}
    model = DenseModel(Alone(), graph, alone, local, dtype=dtype)
    batch, store = model.batch(2), model.parameters
    images = np.linspace(-1, 1, 144, dtype=dtype).reshape(2, 2, 6, 6)
    logits = batch.forward(images, training=optimizer is not None)
    if optimizer is not None:
        _, gradient = batch.score(logits, np.array([0, 1]))
        batch.backward(gradient)
        slots = {name: local.zeros(store.theta.shape, dtype) for name in optimizer.slots}
        optimizer.update(store.theta, store.gradient, slots, rate=1e-3, step=1)
    model.free()
