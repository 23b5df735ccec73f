"""`inception_v3`: C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, "Rethinking the
Inception architecture for computer vision", CVPR 2016.

As torchvision has it, names included: without the auxiliary head (it only helps in training) and
without dropout; average pools in the modules count the padding. Its pretrained weights expect
images in another scale (``transform_input``): that is the data's affair, not the network's.
"""

from __future__ import annotations

from typing import Final

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks.builder import Builder, is_small
from sparsednn.dense.operations import AveragePool, Concatenate, Convolution, Shape

__all__ = ["inception_v3"]

_EPSILON: Final = 1e-3

_Pair = tuple[int, int]
_SQUARE: Final[_Pair] = (3, 3)
_ROW: Final[_Pair] = (1, 7)
_COLUMN: Final[_Pair] = (7, 1)


def inception_v3(image: Shape, classes: int) -> OperationGraph:
    """Eleven modules: three of grids of 35×35, four of 17×17, two of 8×8, and two that reduce.

    For small images nothing in front of the first module makes them smaller: no strides, no pools,
    and padding everywhere; all kernels have the same shapes.
    """
    net = Builder("inception_v3", image)
    small = is_small(image)
    rim = 1 if small else 0
    _convolution(net, "Conv2d_1a_3x3", 32, _SQUARE, stride=1 if small else 2, padding=rim)
    _convolution(net, "Conv2d_2a_3x3", 32, _SQUARE, padding=rim)
    _convolution(net, "Conv2d_2b_3x3", 64, _SQUARE, padding=1)
    if not small:
        net.max_pool("maxpool1", 3, 2)
    _convolution(net, "Conv2d_3b_1x1", 80)
    _convolution(net, "Conv2d_4a_3x3", 192, _SQUARE, padding=rim)
    if not small:
        net.max_pool("maxpool2", 3, 2)
    for name, filters in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        _module_a(net, name, filters)
    _module_b(net, "Mixed_6a")
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        _module_c(net, name, width)
    _module_d(net, "Mixed_7a")
    for name in ("Mixed_7b", "Mixed_7c"):
        _module_e(net, name)
    net.global_average("avgpool")
    net.fully_connected("fc", classes)
    return net.finish()


def _convolution(
    net: Builder,
    name: str,
    filters: int,
    taps: _Pair = (1, 1),
    *,
    stride: int = 1,
    padding: int | None = None,
) -> str:
    """Add a convolution with its batch normalisation and ReLU; padding None keeps the size."""
    pads = (taps[0] // 2, taps[1] // 2) if padding is None else (padding, padding)
    net.add(Convolution(f"{name}.conv", filters, taps, (stride, stride), pads, bias=False))
    net.batch_norm(f"{name}.bn", _EPSILON)
    return net.relu(f"{name}.relu")


def _chain(net: Builder, before: str, name: str, *steps: tuple[int, _Pair]) -> str:
    """Add convolutions `name`_1, `name`_2, … behind `before`: filters and taps of each."""
    net.at = before
    for number, (filters, taps) in enumerate(steps, start=1):
        _convolution(net, f"{name}_{number}", filters, taps)
    return net.at


def _pooled(net: Builder, before: str, name: str, filters: int) -> str:
    """Add the branch of a mean over each value's neighbourhood, and a 1×1 convolution."""
    net.at = before
    net.add(AveragePool(f"{name}.avgpool", _SQUARE, padding=(1, 1), count_include_pad=True))
    return _convolution(net, f"{name}.branch_pool", filters)


def _reduced(net: Builder, before: str, name: str) -> str:
    net.at = before
    return net.max_pool(f"{name}.maxpool", 3, 2)


def _module_a(net: Builder, name: str, filters: int) -> None:
    """Add 1×1; 5×5; two 3×3; a pool (Figure 5 of the paper)."""
    before = net.at
    ends = (
        _convolution(net, f"{name}.branch1x1", 64),
        _chain(net, before, f"{name}.branch5x5", (48, (1, 1)), (64, (5, 5))),
        _chain(
            net, before, f"{name}.branch3x3dbl", (64, (1, 1)), (96, _SQUARE), (96, _SQUARE)
        ),
        _pooled(net, before, name, filters),
    )  # fmt: skip
    net.add(Concatenate(f"{name}.concatenate"), *ends)


def _module_b(net: Builder, name: str) -> None:
    """Add what halves the grid: 3×3; two 3×3; a pool (Figure 10)."""
    before = net.at
    square = _convolution(net, f"{name}.branch3x3", 384, _SQUARE, stride=2, padding=0)
    _chain(net, before, f"{name}.branch3x3dbl", (64, (1, 1)), (96, _SQUARE))
    double = _convolution(net, f"{name}.branch3x3dbl_3", 96, _SQUARE, stride=2, padding=0)
    net.add(Concatenate(f"{name}.concatenate"), square, double, _reduced(net, before, name))


def _module_c(net: Builder, name: str, width: int) -> None:
    """Add 1×1; 7×7 and two 7×7, each as a row and a column; a pool (Figure 6)."""
    before = net.at
    ends = (
        _convolution(net, f"{name}.branch1x1", 192),
        _chain(
            net, before, f"{name}.branch7x7", (width, (1, 1)), (width, _ROW), (192, _COLUMN)
        ),
        _chain(
            net, before, f"{name}.branch7x7dbl", (width, (1, 1)), (width, _COLUMN), (width, _ROW),
            (width, _COLUMN), (192, _ROW),
        ),
        _pooled(net, before, name, 192),
    )  # fmt: skip
    net.add(Concatenate(f"{name}.concatenate"), *ends)


def _module_d(net: Builder, name: str) -> None:
    """Add what halves the grid again: 3×3; 7×7 and 3×3; a pool."""
    before = net.at
    _chain(net, before, f"{name}.branch3x3", (192, (1, 1)))
    square = _convolution(net, f"{name}.branch3x3_2", 320, _SQUARE, stride=2, padding=0)
    _chain(net, before, f"{name}.branch7x7x3", (192, (1, 1)), (192, _ROW), (192, _COLUMN))
    seven = _convolution(net, f"{name}.branch7x7x3_4", 192, _SQUARE, stride=2, padding=0)
    net.add(Concatenate(f"{name}.concatenate"), square, seven, _reduced(net, before, name))


def _module_e(net: Builder, name: str) -> None:
    """Add 1×1; 3×3 and two 3×3, the last one side by side as row and column; a pool (Figure 7)."""
    before = net.at
    ends = [_convolution(net, f"{name}.branch1x1", 320)]
    for branch, fork, steps in (
        ("branch3x3", "2", [(384, (1, 1))]),
        ("branch3x3dbl", "3", [(448, (1, 1)), (384, _SQUARE)]),
    ):
        trunk = _chain(net, before, f"{name}.{branch}", *steps)
        sides = []
        for side, taps in (("a", (1, 3)), ("b", (3, 1))):
            net.at = trunk
            sides.append(_convolution(net, f"{name}.{branch}_{fork}{side}", 384, taps))
        ends.append(net.add(Concatenate(f"{name}.{branch}"), *sides))
    ends.append(_pooled(net, before, name, 192))
    net.add(Concatenate(f"{name}.concatenate"), *ends)
