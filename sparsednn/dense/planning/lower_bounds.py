"""Words that ranks must at least move for a convolution, whatever the algorithm: the theory.

The loop nest has V points (image, filter, channel, row, column, tap) that are not padding. A rank
that does the points of a set S touches x elements of the input, k of the kernel and y of the
output: its projections. For a matrix product |S| ≤ √(x k y) (Loomis and Whitney, 1949). In a
convolution an element of the input stands in up to U places of the im2col matrix, so that the
set's projection on that has at most U x elements, and

    |S| ≤ √(U x k y),  U = Π over both axes of min(⌈taps · gcd(stride, dilation)/stride⌉, outputs)

(taps that are alike modulo the stride meet at one input). With stride 1, U is the number of taps;
of a fully connected layer it is 1. Groups only lessen the points: Σ √(x_g k_g y_g) ≤ √(x k y).
Demmel and Dinh (arXiv 1802.06905) have sharper bounds for small kernels; this one holds for all.

**Independent of memory** (`words_at_least`). One of P ranks does at least V/P points, so x k y ≥
(V/P)² / U; and as an element of the input stands in at most U · filters / groups points, it
touches x ≥ V / (P U filters / groups) of the input, and likewise of the others. The least x + k +
y under these four has a closed form (`_least_sum`), for matrix products that of Al Daas, Ballard,
Grigori, Kumar and Rouse (SPAA 2022): 3 (mnk/P)^(2/3) where all sizes count, 2 (mnk²/P)^(1/2) +
mn/P where two do, (mn + mk)/P + nk where one does (m ≥ n ≥ k). What of these the rank has at rest
need not move: each tensor is there once, so it is about 1/P of it (`owned`).

A training step is three such products: the output, the gradient of the kernel, that of the input.
If a rank does the same points of all three (all algorithms here do), it touches x, k, y and their
gradients x', k', y' with x k y, x k' y' and x' k y' ≥ (V/P)²/U. Each tensor is shared out evenly
among the products that touch it (x/2 + k/2 + y, and so on), and each product's weighted sum is as
small as it can be alone: the bound is the sum of these.

**With M words of memory** (`words_with_memory`; after Irony, Toledo and Tiskin, 2004). Cut what a
rank does into phases of T words sent and received. In a phase inputs and outputs together are no
more than 2 M + T: what it read was there or came, what it made is there at the end or was sent. So
a phase does at most √U ((2M + T)/3)^(3/2) points, of a training step √U (2/9) (2M + T)^(3/2)
(Cauchy and Schwarz over the three products). All phases but the last are full; with T = 4M

    words ≥ √2 V / (P √(U M)) - 4 M,     training: (3/2) √6 V / (P √(U M)) - 4 M

For C += A B, where outputs are read first, the constant is 2 (Smith et al., arXiv 1702.02017).

Counted are inputs that come to a rank and outputs that leave it. Over all ranks these are no more
than what all send, so if all do as much, the busiest sender sends no less.

Outside of it: kernels that lie on every rank from the start (`data`, `spatial`) have more copies
than one and may send less; what moves between layers.

Must not know: grids, algorithms.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod, sqrt

from sparsednn.dense.convolution import ConvolutionShape

__all__ = ["loop_points", "lower_bound", "words_at_least", "words_with_memory"]


def loop_points(shape: ConvolutionShape) -> int:
    """Return V: multiplications of a convolution that are not with padding."""
    per_image = shape.filters * (shape.channels // shape.groups)
    return shape.images * per_image * _pairs(shape, 0) * _pairs(shape, 1)


def _pairs(shape: ConvolutionShape, axis: int) -> int:
    """Along an axis: how often an output meets an input, over all taps."""
    size = (shape.height, shape.width)[axis]
    outputs = (shape.output_height, shape.output_width)[axis]
    window = shape.window(axis)
    pairs = 0
    for tap in range(window.taps):
        # The outputs o with 0 ≤ stride · o + at < size.
        at = tap * window.dilation - window.before
        first = max(0, -(at // window.stride))
        last = min(outputs - 1, (size - 1 - at) // window.stride)
        pairs += max(0, last - first + 1)
    return pairs


def _reuse(shape: ConvolutionShape) -> int:
    """U: in how many places of the im2col matrix an element of the input may stand."""
    found = 1
    for axis, outputs in ((0, shape.output_height), (1, shape.output_width)):
        window = shape.window(axis)
        step = window.stride // gcd(window.stride, window.dilation)
        found *= min(-(-window.taps // step), outputs)
    return found


def _least_sum(weights: Sequence[float], floors: Sequence[float], product: float) -> float:
    """The least Σ wᵢ zᵢ with Π zᵢ ≥ product and zᵢ ≥ floorᵢ.

    Without floors all terms would be equal; where that is below the largest floor, this one is at
    its floor, and the others are what is left to be solved.
    """
    terms = sorted(weight * floor for weight, floor in zip(weights, floors, strict=True))
    left, total = product * prod(weights), 0.0
    while terms:
        largest = terms[-1]
        equal = left ** (1 / len(terms)) if left > 0 else 0.0
        if equal >= largest:
            return total + len(terms) * equal
        total += terms.pop()
        left /= largest
    return total


def words_at_least(
    shape: ConvolutionShape,
    ranks: int,
    *,
    training: bool = False,
    input_gradient: bool = True,
    owned: float | None = None,
) -> float:
    """Return the memory-independent bound on what the busiest rank sends and receives, in words.

    Parameters
    ----------
    shape, ranks
        What is done by how many.
    training
        The whole step; otherwise the forward pass.
    input_gradient
        Whether a step has the gradient of the input.
    owned
        Words of input, kernel and output together that a rank has at rest at most; default: its
        share 1/P of them. (Of the gradients as many.)
    """
    points = loop_points(shape) / ranks
    if not points:
        return 0.0
    reuse = _reuse(shape)
    sizes = prod(shape.input_shape), prod(shape.kernel_shape), prod(shape.output_shape)
    owned = sum(sizes) / ranks if owned is None else owned
    per_group = shape.filters // shape.groups, shape.channels // shape.groups
    outputs = shape.images * shape.output_height * shape.output_width
    floors = (
        points / (reuse * per_group[0]),
        points / outputs,
        points / (per_group[1] * prod(shape.taps)),
    )
    product = points * points / reuse
    if not training:
        return max(0.0, _least_sum((1, 1, 1), floors, product) - owned)
    # Which products touch which of input, kernel and output (or their gradients), and how many
    # products share it. Output; gradient of the kernel: x, k', y'; of the input: x', k, y'.
    if input_gradient:
        total = sum(
            _least_sum(weights, floors, product)
            for weights in ((0.5, 0.5, 1), (0.5, 1, 0.5), (1, 0.5, 0.5))
        )
        return max(0.0, total - 2 * owned)
    total = _least_sum((0.5, 1, 1), floors, product) + _least_sum((0.5, 1, 1), floors, product)
    # There is no gradient of the input to have at rest; that less is owned is left out.
    return max(0.0, total - 2 * owned)


def words_with_memory(
    shape: ConvolutionShape,
    ranks: int,
    memory: float,
    *,
    training: bool = False,
    input_gradient: bool = True,
) -> float:
    """Return the memory-dependent bound on what the busiest rank sends and receives, in words.

    Parameters
    ----------
    shape, ranks, training, input_gradient
        As for `words_at_least`.
    memory
        Words of a rank.
    """
    constant = sqrt(2.0)
    if training and input_gradient:
        constant = 1.5 * sqrt(6.0)
    elif training:  # two products; in a phase they do no more together than one could alone
        constant = 2 * sqrt(2.0)
    points = loop_points(shape) / ranks
    return max(0.0, constant * points / sqrt(_reuse(shape) * memory) - 4 * memory)


def lower_bound(
    shape: ConvolutionShape,
    ranks: int,
    *,
    memory: float | None = None,
    training: bool = False,
    input_gradient: bool = True,
) -> float:
    """Return the larger of the two bounds; without `memory` (words) the first."""
    how = {"training": training, "input_gradient": input_gradient}
    bound = words_at_least(shape, ranks, **how)
    if memory is None:
        return bound
    return max(bound, words_with_memory(shape, ranks, memory, **how))
