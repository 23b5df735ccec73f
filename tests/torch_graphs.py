"""Networks of ours run by PyTorch's own functions, one operation after the other: an oracle."""

from __future__ import annotations

from typing import Any

from sparsednn.dense.graph import OperationGraph
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


def run(graph: OperationGraph, state: dict[str, Any], x: Any, *, training: bool = False) -> Any:
    """Return the logits ``(images, classes)``; `state` holds tensors by full name.

    Fully connected weights are matrices. With `training`, running statistics are changed.
    """
    import torch

    F = torch.nn.functional
    outputs: dict[str, Any] = {}
    for operation in graph:
        name = operation.name
        given = [outputs[source] for source in graph.predecessors(name)]
        own = {key.rpartition(".")[2]: state[key] for key in graph_names(graph, name)}
        match operation:
            case Input():
                y = x
            case Convolution():
                y = F.conv2d(
                    *given, own["weight"], own.get("bias"), operation.stride, operation.padding,
                    operation.dilation, operation.groups,
                )  # fmt: skip
            case FullyConnected():
                y = F.linear(given[0].flatten(1), own["weight"], own.get("bias"))[..., None, None]
            case MaxPool():
                y = F.max_pool2d(
                    *given, operation.taps, operation.stride, operation.padding,
                    ceil_mode=operation.ceil_mode,
                )  # fmt: skip
            case AveragePool():
                y = F.avg_pool2d(
                    *given, operation.taps, operation.stride, operation.padding,
                    count_include_pad=operation.count_include_pad,
                )  # fmt: skip
            case Relu():
                y = F.relu(*given)
            case BatchNorm():
                y = F.batch_norm(
                    *given, own["running_mean"], own["running_var"], own["weight"], own["bias"],
                    training, operation.momentum, operation.epsilon,
                )  # fmt: skip
            case Add():
                y = sum(given[1:], given[0])
            case Concatenate():
                y = torch.cat(given, dim=1)
            case _:
                raise AssertionError(operation)
        assert tuple(y.shape[1:]) == graph.shape(name), name
        outputs[name] = y
    return outputs[graph.output].flatten(1)


def graph_names(graph: OperationGraph, name: str) -> list[str]:
    return [each.name for each in graph.parameters_of(name)]
