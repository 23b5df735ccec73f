"""`alexnet`: A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks",
arXiv 1404.5997, 2014, without dropout.

Names and sizes are torchvision's for 224×224. What its adaptive pool does to other sizes is left
out: the first fully connected layer covers the image that there is.
"""

from __future__ import annotations

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks.builder import Builder, is_small
from sparsednn.dense.operations import Shape

__all__ = ["alexnet"]


def alexnet(image: Shape, classes: int) -> OperationGraph:
    """Five convolutions and three fully connected layers.

    For small images the first two convolutions are 3×3, the first with stride 2, and pools are 2×2,
    as people have it for CIFAR; images must be at least 15×15.
    """
    small = is_small(image)
    pool = 2 if small else 3
    net = Builder("alexnet", image)
    if small:
        net.convolution("features.0", 64, 3, stride=2, padding=1)
    else:
        net.convolution("features.0", 64, 11, stride=4, padding=2)
    net.relu("features.1")
    net.max_pool("features.2", pool, 2)
    net.convolution("features.3", 192, 3 if small else 5, padding=1 if small else 2)
    net.relu("features.4")
    net.max_pool("features.5", pool, 2)
    for at, filters in ((6, 384), (8, 256), (10, 256)):
        net.convolution(f"features.{at}", filters, 3, padding=1)
        net.relu(f"features.{at + 1}")
    net.max_pool("features.12", pool, 2)
    for at in (1, 4):
        net.fully_connected(f"classifier.{at}", 4096)
        net.relu(f"classifier.{at + 1}")
    net.fully_connected("classifier.6", classes)
    return net.finish()
