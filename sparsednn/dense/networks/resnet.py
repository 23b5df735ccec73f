"""`resnet18`, `resnet50` and `resnet20`: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning
for image recognition", CVPR 2016.

Names are torchvision's. As there, the stride of a bottleneck is in its 3×3 convolution, and a
shortcut that changes shape is a 1×1 convolution with batch normalisation (option B of the paper),
also in `resnet20`, for which the paper has option A: those are the state dicts that people share
(chenyaofo's pytorch-cifar-models).
"""

from __future__ import annotations

from typing import Final

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks.builder import Builder, is_small
from sparsednn.dense.operations import Add, Shape

__all__ = ["resnet18", "resnet20", "resnet50"]

_EXPANSION: Final = 4


def resnet18(image: Shape, classes: int) -> OperationGraph:
    """Four stages of two basic blocks; small images as `resnet50`."""
    net = _stem("resnet18", image, 64, small=is_small(image))
    for stage in range(4):
        _stage(net, stage, 2, 64 << stage, bottleneck=False)
    return _head(net, classes)


def resnet50(image: Shape, classes: int) -> OperationGraph:
    """Four stages of 3, 4, 6 and 3 bottlenecks.

    For small images the first convolution is 3×3 with stride 1, and no pool follows it.
    """
    net = _stem("resnet50", image, 64, small=is_small(image))
    for stage, blocks in enumerate((3, 4, 6, 3)):
        _stage(net, stage, blocks, 64 << stage, bottleneck=True)
    return _head(net, classes)


def resnet20(image: Shape, classes: int) -> OperationGraph:
    """Three stages of three basic blocks with 16, 32 and 64 filters (section 4.2 of the paper)."""
    net = _stem("resnet20", image, 16, small=True)
    for stage in range(3):
        _stage(net, stage, 3, 16 << stage, bottleneck=False)
    return _head(net, classes)


def _stem(name: str, image: Shape, filters: int, *, small: bool) -> Builder:
    net = Builder(name, image)
    if small:
        net.convolution("conv1", filters, 3, padding=1, bias=False)
    else:
        net.convolution("conv1", filters, 7, stride=2, padding=3, bias=False)
    net.batch_norm("bn1")
    net.relu("relu")
    if not small:
        net.max_pool("maxpool", 3, 2, padding=1)
    return net


def _stage(net: Builder, stage: int, blocks: int, width: int, *, bottleneck: bool) -> None:
    for block in range(blocks):
        stride = 2 if stage and not block else 1
        _block(net, f"layer{stage + 1}.{block}", width, stride, bottleneck=bottleneck)


def _block(net: Builder, name: str, width: int, stride: int, *, bottleneck: bool) -> None:
    """Add a residual block: the last convolution's ReLU comes behind the sum."""
    before = net.at
    out = width * _EXPANSION if bottleneck else width
    # Filters, taps and stride of the convolutions.
    plan = (
        ((width, 1, 1), (width, 3, stride), (out, 1, 1))
        if bottleneck
        else ((width, 3, stride), (width, 3, 1))
    )
    for number, (filters, taps, step) in enumerate(plan, start=1):
        net.convolution(f"{name}.conv{number}", filters, taps, step, taps // 2, bias=False)
        net.batch_norm(f"{name}.bn{number}")
        if number < len(plan):
            net.relu(f"{name}.relu{number}")
    branch, shortcut = net.at, before
    if stride != 1 or net.graph.shape(before)[0] != out:
        net.at = before
        net.convolution(f"{name}.downsample.0", out, 1, stride, bias=False)
        shortcut = net.batch_norm(f"{name}.downsample.1")
    net.add(Add(f"{name}.add"), branch, shortcut)
    net.relu(f"{name}.relu{len(plan)}")


def _head(net: Builder, classes: int) -> OperationGraph:
    net.global_average("avgpool")
    net.fully_connected("fc", classes)
    return net.finish()
