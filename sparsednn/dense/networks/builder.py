"""What the networks are written with: a chain that knows where it ends.

Must not know: any network.
"""

from __future__ import annotations

from typing import Final

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import (
    AveragePool,
    BatchNorm,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Operation,
    Relu,
    Shape,
)

__all__ = ["SMALL", "Builder", "is_small"]

SMALL: Final = 64
"""Images with fewer rows or columns get the networks' form for small images."""


def is_small(image: Shape) -> bool:
    """Whether images are those of CIFAR rather than those of ImageNet."""
    return min(image[1:]) < SMALL


class Builder:
    """Adds operations one behind the other; `at` is the one that the next reads.

    Parameters
    ----------
    name
        Of the network.
    image
        Channels, height, width.
    """

    def __init__(self, name: str, image: Shape) -> None:
        self.graph = OperationGraph(name)
        self.at = self.graph.add(Input("image", image))

    def add(self, operation: Operation, *inputs: str) -> str:
        """Add an operation behind `inputs`, or behind the last one."""
        self.at = self.graph.add(operation, *(inputs or (self.at,)))
        return self.at

    def convolution(
        self, name: str, filters: int, taps: int, stride: int = 1, padding: int = 0,
        *, bias: bool = True,
    ) -> str:  # fmt: skip
        """Add a convolution that is the same in both directions."""
        return self.add(
            Convolution(
                name, filters, (taps, taps), (stride, stride), (padding, padding), bias=bias
            )
        )

    def batch_norm(self, name: str, epsilon: float = 1e-5) -> str:
        """Add a batch normalisation."""
        return self.add(BatchNorm(name, epsilon))

    def relu(self, name: str) -> str:
        """Add a ReLU."""
        return self.add(Relu(name))

    def max_pool(
        self, name: str, taps: int, stride: int, padding: int = 0, *, ceil_mode: bool = False
    ) -> str:
        """Add a max-pooling that is the same in both directions."""
        return self.add(
            MaxPool(name, (taps, taps), (stride, stride), (padding, padding), ceil_mode)
        )

    def global_average(self, name: str) -> str:
        """Add the mean of each channel."""
        taps = self.graph.shape(self.at)[1:]
        return self.add(AveragePool(name, taps, taps))

    def fully_connected(self, name: str, filters: int) -> str:
        """Add a fully connected layer."""
        return self.add(FullyConnected(name, filters))

    def finish(self) -> OperationGraph:
        """Return the network."""
        return self.graph.finish()
