"""The networks' names, and the sizes that are usual for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks.alexnet import alexnet
from sparsednn.dense.networks.builder import is_small
from sparsednn.dense.networks.googlenet import googlenet
from sparsednn.dense.networks.inception_v3 import inception_v3
from sparsednn.dense.networks.lenet import lenet5, smallcnn
from sparsednn.dense.networks.pathnet import pathnet
from sparsednn.dense.networks.resnet import resnet18, resnet20, resnet50
from sparsednn.dense.networks.vgg import vgg16
from sparsednn.dense.operations import Shape, shape_text
from sparsednn.errors import ShapeError, UnknownNameError

__all__ = ["NETWORKS", "Entry", "make_network"]

_MNIST: Final[Shape] = (1, 28, 28)
_CIFAR: Final[Shape] = (3, 32, 32)
_IMAGENET: Final[Shape] = (3, 224, 224)
_INCEPTION: Final[Shape] = (3, 299, 299)


class Entry(NamedTuple):
    """What makes a network of a shape of images and a number of classes, and its usual sizes."""

    make: Callable[[Shape, int], OperationGraph]
    image: Shape
    classes: int


NETWORKS: Final[dict[str, Entry]] = {
    "smallcnn": Entry(smallcnn, _MNIST, 10),
    "lenet5": Entry(lenet5, _MNIST, 10),
    "alexnet": Entry(alexnet, _IMAGENET, 1000),
    "vgg16": Entry(vgg16, _IMAGENET, 1000),
    "resnet18": Entry(resnet18, _IMAGENET, 1000),
    "resnet20": Entry(resnet20, _CIFAR, 10),
    "resnet50": Entry(resnet50, _IMAGENET, 1000),
    "googlenet": Entry(googlenet, _IMAGENET, 1000),
    "inception_v3": Entry(inception_v3, _INCEPTION, 1000),
    "pathnet": Entry(pathnet, _CIFAR, 10),
}
"""All networks by name."""


def make_network(
    name: str, image: Shape | None = None, classes: int | None = None
) -> OperationGraph:
    """Make a network by name.

    Parameters
    ----------
    name
        One of `NETWORKS`.
    image
        Channels, height, width; None for those usual for this network.
    classes
        Number of logits; None for those usual for this network, but 10 for images that are small
        (`SMALL`) where it usually has ImageNet's.

    Raises
    ------
    UnknownNameError
        If there is no such network.
    ShapeError
        If images are too small, or a size is not positive.
    """
    entry = NETWORKS.get(name)
    if entry is None:
        raise UnknownNameError(f"network '{name}' is unknown: known are {', '.join(NETWORKS)}")
    image = entry.image if image is None else image
    if classes is None:
        classes = min(entry.classes, 10) if len(image) == 3 and is_small(image) else entry.classes
    if len(image) != 3 or min(*image, classes) < 1:
        raise ShapeError(
            f"network {name}: images are channels×height×width and classes a number, all positive: "
            f"found {shape_text(image)} and {classes}"
        )
    try:
        return entry.make(image, classes)
    except ShapeError as error:
        # Sizes are positive and all channels fit by construction: there is no other reason.
        raise ShapeError(
            f"images of {shape_text(image)} are too small for {name}: {error}"
        ) from error
