"""Memory of each rank for one convolution: closed forms, as `distributed` holds it.

With the sizes of `volume.Sizes` (X, K and Y of a rank's c-layer; X_i, K_i and Y_i what is its own;
E is the extended tile of its own channels), and I and J the widest panels of input and kernel, in
words:

==========  ====================================================================================
parameters  (K_i + b) · (2 + slots) in training: values, gradient, the optimizer's; without, once
buffers     halo: what is sent and received. `STREAM` with more than one rank in a row or in a
            column: 2 (I + J); they stay between passes
kept        E, if halos make a new array of it; `GATHER`: X instead, where others have parts of it,
            and so K
forward     Y; `STREAM`: 2 Y, while panels are added up; with c-layers 3 Y, while it is packed for
            the reduce-scatter; `GATHER`: 2 X and 2 K, while they are unpacked
backward    Y, gathered; gradients E + 2 (I + J) (`STREAM`), E + K (`REPLICATE`), or X + K and the
            packed K, K_i and 2 X (`GATHER`)
==========  ====================================================================================

Exact but for panels of unequal width, where the widest neighbours are taken, and for arrays of one
number per filter. A library's workspace (im2col's columns, oneDNN's) and MPI's own buffers are not
in it.

Must not know: networks, how grids are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.distribution import Distribution
from sparsednn.dense.grids import GATHER, STREAM, C, G
from sparsednn.dense.layout import bounds
from sparsednn.dense.volume import Sizes, halo_words

__all__ = ["ProductMemory", "product_memory"]

_Words = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ProductMemory:
    """Words of each rank, ``(ranks,)`` int64 each, that one product takes.

    Attributes
    ----------
    parameters
        Values, gradient, the optimizer's arrays.
    buffers
        That stay as long as the product is planned.
    kept
        Between a forward and a backward pass; not the arrays that it was given.
    forward, backward
        The most that a pass has made, its result and what is kept included; the tiles that it was
        given (input, gradient of the output) not.
    """

    parameters: _Words
    buffers: _Words
    kept: _Words
    forward: _Words
    backward: _Words


def product_memory(
    distribution: Distribution,
    *,
    has_bias: bool = False,
    input_gradient: bool = True,
    training: bool = True,
    optimizer_slots: int = 0,
) -> ProductMemory:
    """Return the words of all ranks for one convolution.

    Parameters
    ----------
    distribution
        Who owns what.
    has_bias, input_gradient
        As for `distributed.DistributedConvolution`.
    training
        Whether there is a backward pass.
    optimizer_slots
        Arrays like the parameters that the optimizer has: momentum 1, Adam 2.
    """
    sizes, mode = Sizes(distribution), distribution.placement.mode
    none = np.zeros_like(sizes.input)
    bias = distribution.bias.sizes() * has_bias
    parameters = (distribution.kernel.sizes() + bias) * (2 + optimizer_slots if training else 1)
    sent, received = halo_words(distribution.input, distribution.extended, sizes.grid)
    moved = not distribution.input.same_as(distribution.extended)
    tile = distribution.extended.sizes()
    halo = tile * moved
    wide = _WideOutput(distribution, sizes)
    summed = sizes.output if sizes.layers > 1 else none
    back = tile if input_gradient else none
    # The last phase of a backward pass: what was kept is gone, the halo's gradients are added up.
    home = summed + back + distribution.input.sizes() * (moved and input_gradient)
    buffers = (sent + received) * moved
    if mode == STREAM:
        panels = _Panels(distribution, sizes)
        # Without the gradient of the input a backward pass brings no kernel, but has room for it.
        needed = sizes.row > 1 or sizes.column > 1 or (training and not input_gradient)
        buffers = buffers + panels.buffers * needed
        kept = halo
        forward = kept + np.maximum(panels.forward, wide.scatter)
        backward = kept + summed + bias + back + panels.backward(input_gradient)
    elif mode == GATHER:
        kept_input = sizes.input if sizes.row > 1 else halo
        kept_kernel = sizes.kernel if sizes.column > 1 else none
        kept = kept_input + kept_kernel
        forward = np.maximum.reduce(
            [
                halo + 2 * sizes.input * (sizes.row > 1),
                kept_input + 2 * kept_kernel,
                kept + np.maximum(sizes.output, wide.scatter),
            ]
        )
        gradients = sizes.kernel + sizes.input * input_gradient
        backward = kept + summed + bias + gradients + _gathered_back(
            distribution, sizes, input_gradient
        )  # fmt: skip
    else:
        kept = halo
        forward = kept + sizes.output
        backward = kept + bias + back + sizes.kernel
    backward = np.maximum.reduce([backward, home, kept + 2 * summed])
    if not training:
        return ProductMemory(parameters, buffers, none, forward, none)
    return ProductMemory(parameters, buffers, kept, forward, backward)


class _WideOutput:
    """The output of a c-layer while it is packed and summed over the layers."""

    def __init__(self, distribution: Distribution, sizes: Sizes) -> None:
        # Its filters' parts lie after each other already where there is one image and one group.
        copies = 2 + (_blocks(distribution) > 1)
        self.scatter = np.maximum(copies * sizes.output, 2 * sizes.output + sizes.own_output)
        if sizes.layers == 1:
            self.scatter = sizes.output


def _blocks(distribution: Distribution) -> _Words:
    """Images × groups of a rank's share: 1 where parts of channels are contiguous."""
    groups = _cut(distribution.shape.groups, distribution.grid[G])[_place(distribution, G)]
    return np.asarray(distribution.output.lengths(0) * groups, np.int64)


def _gathered_back(distribution: Distribution, sizes: Sizes, input_gradient: bool) -> _Words:
    """`GATHER`: the most that the two reduce-scatters have besides the gradients."""
    after = np.zeros_like(sizes.kernel)
    most = after
    if sizes.column > 1:
        filters = _filters(distribution)
        most = np.maximum((1 + (filters > 1)) * sizes.kernel, sizes.kernel + sizes.own_kernel)
        after = sizes.kernel + sizes.own_kernel
    if input_gradient and sizes.row > 1:
        copies = 1 + (_blocks(distribution) > 1)
        most = np.maximum.reduce(
            [
                most,
                after + copies * sizes.input,
                after - sizes.kernel * (sizes.column > 1) + sizes.input + sizes.own_input,
            ]
        )
    return most


def _filters(distribution: Distribution) -> _Words:
    return distribution.kernel.lengths(0)


def _cut(size: int, parts: int) -> _Words:
    return np.diff(bounds(size, parts)).astype(np.int64)


def _place(distribution: Distribution, axis: int) -> NDArray[np.intp]:
    grid = distribution.grid
    return np.unravel_index(np.arange(distribution.input.ranks), grid)[axis]


class _Panels:
    """`STREAM`: panels of channels; their widths depend on the place along c only."""

    def __init__(self, distribution: Distribution, sizes: Sizes) -> None:
        shape = distribution.shape
        channels = shape.channels // shape.groups
        layers = sizes.grid[C]
        inputs = bounds(channels, layers * sizes.row)
        kernels = bounds(channels, layers * sizes.column)
        widths = []
        for layer in range(layers):
            mine = inputs[layer * sizes.row : (layer + 1) * sizes.row + 1]
            theirs = kernels[layer * sizes.column : (layer + 1) * sizes.column + 1]
            widths.append([b - a for a, b in pairwise(sorted({*mine, *theirs}))])
        where = _place(distribution, C)
        self._one, self._two, self._three = (
            np.array([_widest(each, n) for each in widths], np.int64)[where] for n in (1, 2, 3)
        )
        self._number = np.array([len(each) for each in widths], np.int64)[where]
        layer_width = np.maximum(self._total(widths)[where], 1)
        self._input = sizes.input // layer_width
        self._kernel = sizes.kernel // layer_width
        self._output = sizes.output
        # A rank alone in its row (column) takes panels from its own arrays; these are copies unless
        # they are contiguous there.
        alone = sizes.row == 1
        self._copies_input = alone * (self._number > 1) * (_blocks(distribution) > 1)
        alone = sizes.column == 1
        self._copies_kernel = alone * (self._number > 1) * (_filters(distribution) > 1)

    @staticmethod
    def _total(widths: list[list[int]]) -> _Words:
        return np.array([sum(each) for each in widths], np.int64)

    @property
    def buffers(self) -> _Words:
        """Room for two panels of both kinds."""
        return 2 * self._one * (self._input + self._kernel)

    def _copies(self, width: _Words, *, kernel: bool = True) -> _Words:
        words: _Words = self._input * self._copies_input
        if kernel:
            words = words + self._kernel * self._copies_kernel
        found: _Words = width * words
        return found

    @property
    def forward(self) -> _Words:
        """Copies of panels, the sum, and from the second panel on what is added to it."""
        bringing = np.clip(self._number - 2, 0, 1) * self._output + self._copies(self._three)
        parts = np.clip(self._number, 1, 2) * self._output
        return np.asarray(np.maximum(bringing, parts + self._copies(self._two)), np.int64)

    def backward(self, input_gradient: bool) -> _Words:
        """Copies of panels, gradients of this one and of the one whose sums are under way."""
        gradients = self._kernel + self._input * input_gradient
        computing = self._copies(self._two, kernel=input_gradient) + self._two * gradients
        bringing = self._copies(self._three, kernel=input_gradient) + self._one * gradients
        return np.asarray(np.maximum(computing, bringing), np.int64)


def _widest(widths: list[int], neighbours: int) -> int:
    """The most channels that so many neighbouring panels have together."""
    if len(widths) <= neighbours:
        return sum(widths)
    return max(sum(widths[i : i + neighbours]) for i in range(len(widths) - neighbours + 1))
