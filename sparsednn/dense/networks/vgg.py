"""`vgg16`: K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image
recognition", ICLR 2015, configuration D, without dropout.

Names and sizes are torchvision's for 224×224. What its adaptive pool does to other sizes is left
out: the first fully connected layer covers the image that there is.
"""

from __future__ import annotations

from typing import Final

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks.builder import Builder, is_small
from sparsednn.dense.operations import Shape

__all__ = ["vgg16"]

_BLOCKS: Final = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16(image: Shape, classes: int) -> OperationGraph:
    """Thirteen convolutions in five blocks, each with a pool behind it.

    For small images the fully connected layers have 512 neurons rather than 4096, and the names of
    chengyangfu's pytorch-vgg-cifar10; images must be at least 32×32.
    """
    net = Builder("vgg16", image)
    at = 0
    for filters, convolutions in _BLOCKS:
        for _ in range(convolutions):
            net.convolution(f"features.{at}", filters, 3, padding=1)
            net.relu(f"features.{at + 1}")
            at += 2
        net.max_pool(f"features.{at}", 2, 2)
        at += 1
    # Dropouts have numbers in PyTorch, too: in front of each layer, or behind the ReLUs.
    first, second, width = (1, 4, 512) if is_small(image) else (0, 3, 4096)
    for number in (first, second):
        net.fully_connected(f"classifier.{number}", width)
        net.relu(f"classifier.{number + 1}")
    net.fully_connected("classifier.6", classes)
    return net.finish()
