"""`googlenet`: C. Szegedy et al., "Going deeper with convolutions", CVPR 2015.

As torchvision has it, names included: batch normalisation behind each convolution, no auxiliary
heads (they only help in training), no dropout, 3×3 taps where the paper has 5×5, and pools whose
last window need not be full. Its pretrained weights expect images in another scale
(``transform_input``): that is the data's affair, not the network's.
"""

from __future__ import annotations

from typing import Final

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks.builder import Builder, is_small
from sparsednn.dense.operations import Concatenate, Shape

__all__ = ["googlenet"]

_EPSILON: Final = 1e-3

# Filters of the branches: 1×1; 1×1 and 3×3; 1×1 and 3×3; 1×1 behind a pool (Table 1 of the paper).
_INCEPTIONS: Final = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(image: Shape, classes: int) -> OperationGraph:
    """Nine inception modules of four branches.

    For small images one 3×3 convolution of 192 filters, ``conv1``, is in the place of everything in
    front of the first module.
    """
    net = Builder("googlenet", image)
    if is_small(image):
        _convolution(net, "conv1", 192, 3)
    else:
        _convolution(net, "conv1", 64, 7, stride=2)
        net.max_pool("maxpool1", 3, 2, ceil_mode=True)
        _convolution(net, "conv2", 64, 1)
        _convolution(net, "conv3", 192, 3)
        net.max_pool("maxpool2", 3, 2, ceil_mode=True)
    for name, filters in _INCEPTIONS.items():
        if name == "inception4a":
            net.max_pool("maxpool3", 3, 2, ceil_mode=True)
        if name == "inception5a":
            net.max_pool("maxpool4", 2, 2, ceil_mode=True)
        _inception(net, name, filters)
    net.global_average("avgpool")
    net.fully_connected("fc", classes)
    return net.finish()


def _convolution(net: Builder, name: str, filters: int, taps: int, stride: int = 1) -> str:
    net.convolution(f"{name}.conv", filters, taps, stride, taps // 2, bias=False)
    net.batch_norm(f"{name}.bn", _EPSILON)
    return net.relu(f"{name}.relu")


def _inception(net: Builder, name: str, filters: tuple[int, ...]) -> None:
    before = net.at
    ends = [_convolution(net, f"{name}.branch1", filters[0], 1)]
    for branch, few, many in ((2, *filters[1:3]), (3, *filters[3:5])):
        net.at = before
        _convolution(net, f"{name}.branch{branch}.0", few, 1)
        ends.append(_convolution(net, f"{name}.branch{branch}.1", many, 3))
    net.at = before
    net.max_pool(f"{name}.branch4.0", 3, 1, padding=1, ceil_mode=True)
    ends.append(_convolution(net, f"{name}.branch4.1", filters[5], 1))
    net.add(Concatenate(f"{name}.concatenate"), *ends)
