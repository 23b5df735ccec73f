"""Loss and all gradients of whole networks against PyTorch's autograd, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsednn.comm import Alone
from sparsednn.dense.flow import products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, make_placement
from sparsednn.dense.local.choose import make_backend
from sparsednn.dense.model import DenseModel
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import (
    Add,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Relu,
)
from sparsednn.dense.state_dict import to_torch
from tiny_network import random_batch, tiny_network
from torch_graphs import run

torch = pytest.importorskip("torch")

_WAYS = ("data", "2d", "3d")
_QUICK = (("im2col", "data"), ("torch", "2d"))


def _graph(name: str) -> OperationGraph:
    if name == "tiny":
        return tiny_network()
    if name == "shared":
        return _shared()
    return make_network(name, image={"resnet20": (3, 16, 16)}.get(name), classes=10)


def _shared() -> OperationGraph:
    """Nothing is trained in front of the first products; a gradient is two operations' at once."""
    graph = OperationGraph("shared")
    graph.add(Input("image", (3, 9, 8)))
    graph.add(MaxPool("pool", (2, 2), (2, 2)), "image")
    graph.add(Relu("positive"), "pool")
    graph.add(Convolution("other", 4, (3, 3), padding=(1, 1)), "positive")
    branches = []
    for branch in ("a", "b"):
        graph.add(Convolution(branch, 2, (3, 3), padding=(1, 1)), "positive")
        branches.append(graph.add(Relu(f"{branch}_relu"), branch))
    # Parts of one image's gradient are contiguous: no copies, and the sum's gradient is other's.
    graph.add(Concatenate("both"), *branches)
    graph.add(Add("sum"), "other", "both")
    graph.add(FullyConnected("fc", 5), "sum")
    return graph.finish()


_CASES = [
    *(("tiny", backend, way) for backend in ("reference", "im2col", "torch") for way in _WAYS),
    *(("shared", backend, "2d") for backend in ("reference", "im2col", "torch")),
    *((name, *case) for name in ("smallcnn", "lenet5", "resnet20") for case in _QUICK),
]


@pytest.mark.parametrize(("name", "backend", "algorithm"), _CASES)
def test_training_pass(name: str, backend: str, algorithm: str) -> None:
    graph = _graph(name)
    x, labels = random_batch(graph, 1 if name == "shared" else 4, 7)
    placements = {each: make_placement(Grid(), algorithm) for each in products(graph)}
    model = DenseModel(Alone(), graph, placements, make_backend(backend), dtype=np.float64, seed=1)
    store = model.parameters
    state = _torch_state(graph, store)
    batch = model.batch(len(x))
    logits = batch.forward(x, training=True)
    score, gradient = batch.score(logits, labels)
    batch.backward(gradient / len(x))
    wanted = run(graph, state, torch.from_numpy(x), training=True)
    loss = torch.nn.functional.cross_entropy(wanted, torch.from_numpy(labels))
    loss.backward()
    np.testing.assert_allclose(logits, wanted.detach().numpy(), rtol=1e-9, atol=1e-11)
    assert score.loss / len(x) == pytest.approx(float(loss.detach()), rel=1e-11)
    assert score.correct == int((wanted.argmax(1).numpy() == labels).sum())
    gradients = to_torch(graph, _complete(graph, store.gathered(store.gradient)))
    buffers = store.gathered(store.buffers, trained=False) or {}
    for key, tensor in state.items():
        if tensor.requires_grad:
            found, right = gradients[key], tensor.grad.numpy()
        else:
            found, right = buffers[key], tensor.numpy()
        scale = max(1e-3, float(np.abs(right).max()))
        np.testing.assert_allclose(found, right, rtol=1e-8, atol=1e-10 * scale, err_msg=key)
    model.free()


def _torch_state(graph: OperationGraph, store: Any) -> dict[str, Any]:
    arrays = {
        **(store.gathered(store.theta) or {}),
        **(store.gathered(store.buffers, trained=False) or {}),
    }
    state = {
        key: torch.from_numpy(np.array(array)) for key, array in to_torch(graph, arrays).items()
    }
    for key, tensor in state.items():
        if graph.parameter(key).trained:
            tensor.requires_grad_()
    return state


def _complete(graph: OperationGraph, arrays: Any) -> dict[str, Any]:
    """With something for those that are not trained: a state dict has all."""
    return {name: arrays.get(name, np.zeros(each.shape)) for name, each in graph.parameters.items()}


def test_a_step_towards_less_loss_in_float32() -> None:
    """float32 takes the same way: some steps of plain SGD, against PyTorch's."""
    graph = make_network("smallcnn")
    x, labels = random_batch(graph, 16, 3)
    x = x.astype(np.float32)
    placements = {each: make_placement(Grid(), "data") for each in products(graph)}
    model = DenseModel(Alone(), graph, placements, make_backend("im2col"), seed=2)
    store = model.parameters
    state = _torch_state(graph, store)
    optimizer = torch.optim.SGD(state.values(), lr=0.05)
    batch = model.batch(len(x))
    losses: list[tuple[float, float]] = []
    for _ in range(5):
        score, gradient = batch.score(batch.forward(x, training=True), labels)
        batch.backward(gradient / len(x))
        store.theta -= np.float32(0.05) * store.gradient
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(
            run(graph, state, torch.from_numpy(x)), torch.from_numpy(labels)
        )
        loss.backward()
        optimizer.step()
        losses.append((score.loss / len(x), float(loss.detach())))
    ours, theirs = zip(*losses, strict=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < ours[0]
