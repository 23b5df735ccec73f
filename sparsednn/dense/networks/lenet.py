"""`smallcnn` and `lenet5`: networks of two convolutions.

LeNet-5: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
recognition", Proc. IEEE 86, 1998; in its modern form: max-pooling and ReLU, every filter of the
second convolution sees all channels, and the last layer gives logits.
"""

from __future__ import annotations

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks.builder import Builder
from sparsednn.dense.operations import Shape

__all__ = ["lenet5", "smallcnn"]


def smallcnn(image: Shape, classes: int) -> OperationGraph:
    """Two 3×3 convolutions of 4 and 8 filters, a pool, and 128 neurons."""
    net = Builder("smallcnn", image)
    for number, filters in ((1, 4), (2, 8)):
        net.convolution(f"conv{number}", filters, 3, padding=1)
        net.relu(f"relu{number}")
    net.max_pool("pool", 2, 2)
    net.fully_connected("fc1", 128)
    net.relu("relu3")
    net.fully_connected("fc2", classes)
    return net.finish()


def lenet5(image: Shape, classes: int) -> OperationGraph:
    """LeNet-5; what LeCun's 32×32 images have more than smaller ones is padding.

    The first convolution pads by 2 where images are smaller than 32×32 (MNIST's 28×28), the second
    one only where they are smaller than 12×12, of which nothing would be left.
    """
    small = min(image[1:])
    net = Builder("lenet5", image)
    for number, filters, pads in ((1, 6, small < 32), (2, 16, small < 12)):
        net.convolution(f"conv{number}", filters, 5, padding=2 if pads else 0)
        net.relu(f"relu{number}")
        net.max_pool(f"pool{number}", 2, 2)
    for number, filters in ((1, 120), (2, 84)):
        net.fully_connected(f"fc{number}", filters)
        net.relu(f"relu{number + 2}")
    net.fully_connected("fc3", classes)
    return net.finish()
