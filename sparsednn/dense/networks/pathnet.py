"""`pathnet`: after C. Fernando et al., "PathNet: evolution channels gradient descent in super
neural networks", 2017 (arXiv 1701.08734).

Layers of modules that know nothing of each other, whose outputs are summed in front of the next
layer: many small operations that can run at the same time, which is what networks like this one are
measured for. In the paper a path takes few of a layer's modules, and evolution chooses which;
modules that are not on it compute nothing and learn nothing. Here every module is on the path, so
that `modules` is both how many there are and how many are active; nothing evolves, and there is one
task, whose logits are the only layer that is not modular.
"""

from __future__ import annotations

from typing import Final

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks.builder import Builder
from sparsednn.dense.operations import Add, Shape
from sparsednn.errors import ShapeError

__all__ = ["pathnet"]

_FILTERS: Final = 32


def pathnet(image: Shape, classes: int, *, layers: int = 4, modules: int = 10) -> OperationGraph:
    """Make layers of modules, each a 3×3 convolution with ReLU; all layers but the first halve.

    Parameters
    ----------
    image, classes
        As for all networks.
    layers
        How many layers of modules there are.
    modules
        How many are active in each layer, at least two.

    Raises
    ------
    ShapeError
        If there are no layers, or fewer than two modules.
    """
    if layers < 1 or modules < 2:
        raise ShapeError(
            f"network pathnet: at least 1 layer of 2 modules, found {layers} of {modules}"
        )
    net = Builder("pathnet", image)
    for layer in range(1, layers + 1):
        before, ends = net.at, []
        for module in range(1, modules + 1):
            net.at = before
            name = f"layer{layer}.module{module}"
            net.convolution(f"{name}.conv", _FILTERS, 3, 1 if layer == 1 else 2, 1)
            ends.append(net.relu(f"{name}.relu"))
        net.add(Add(f"layer{layer}.sum"), *ends)
    net.fully_connected("fc", classes)
    return net.finish()
