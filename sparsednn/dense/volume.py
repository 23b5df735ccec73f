"""Words that each rank sends for one convolution, and the memory that it takes: closed forms.

With the sizes of a rank's share, per rank (`distribution` says who owns what; all sizes are exact,
uneven ones included):

    X = images·channels·rows·columns of the extended input of its c-layer; X_j row member j's part
    K = filters·channels·taps of the kernel of its c-layer; K_t the part of column member t
    Y = images·filters·rows·columns of its block of the output; Y_q the part of member q along c

and i its own place in each of these (P_k in a row, P_bhw in a column, P_c along c; ``i + 1`` is
cyclic):

================  ==============================  ==================  ====================
words sent        ``STREAM``: 2D, 2.5D            ``GATHER``: 3D      ``REPLICATE``
================  ==============================  ==================  ====================
forward, halo     what others need of its input   the same            the same
forward, input    X - X_{i+1} if P_k > 1          X_i (P_k - 1)       0
forward, kernel   K - K_{i+1} if P_bhw > 1        K_i (P_bhw - 1)     0
forward, output   Y - Y_i                         the same            0 (P_c = 1)
backward, output  Y_i (P_c - 1)                   the same            0
backward, input   X - X_{i+1} if P_k > 1, and     X - X_i             0
                  X - X_i
backward, kernel  K - K_{i+1} if P_bhw > 1, and   K - K_i             ⌈2(K + b)(P - 1)/P⌉
                  K - K_i
backward, bias    ⌈2b(P_bhw - 1)/P_bhw⌉           the same            with the kernel
backward, halo    what it needs of others         the same            the same
================  ==============================  ==================  ====================

b is the number of its filters at rest. A pipelined broadcast sends a panel on from every rank but
the last of the chain, a reduction from every rank but the root: see `comm.communicator`. Without
the gradient of the input (the first layer of a network) its reduction and the halo's way back are
not sent, and with `STREAM` no kernel is brought in the backward pass.

Summed over ranks, a pass of STREAM moves P_k - 1 times the (extended) input and P_bhw - 1 times the
kernel, and P_c - 1 times the output: the volume of 2.5D matrix products.

Must not know: communicators, arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.distribution import Distribution
from sparsednn.dense.grids import GATHER, REPLICATE, B, C, G, H, K, W
from sparsednn.dense.layout import Layout

__all__ = ["Sizes", "Volume", "convolution_volume", "halo_words"]

_Words = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Volume:
    """Words that each rank sends in a forward and in a backward pass, by the communicator's verb.

    Attributes
    ----------
    forward, backward
        Verb → ``(ranks,)`` int64; verbs as `comm.traffic` counts them. Verbs that never send are
        not there.
    """

    forward: dict[str, _Words]
    backward: dict[str, _Words]

    def total(self, *, training: bool = True) -> _Words:
        """Return ``(ranks,)``: words of a forward pass, and of a backward pass with `training`."""
        counted = list(self.forward.values()) + (list(self.backward.values()) if training else [])
        return np.asarray(np.sum(counted, axis=0, dtype=np.int64))


def convolution_volume(
    distribution: Distribution, *, has_bias: bool = False, input_gradient: bool = True
) -> Volume:
    """Return the words of all ranks, by the formulas above.

    Parameters
    ----------
    distribution
        Who owns what.
    has_bias, input_gradient
        As for `distributed.DistributedConvolution`.
    """
    sizes = Sizes(distribution)
    halo, halo_back = halo_words(distribution.input, distribution.extended, sizes.grid)
    forward, backward = {"halo": halo}, {}
    if input_gradient:
        backward["halo-back"] = halo_back
    mode = distribution.placement.mode
    filters = distribution.bias.sizes() * has_bias
    if mode == REPLICATE:
        backward["gradient"] = _allreduce(sizes.kernel + filters, sizes.column)
        return Volume(forward, backward)
    if has_bias:
        backward["bias"] = _allreduce(filters, sizes.column)
    forward["reduce_scatter"] = sizes.output - sizes.own_output
    backward["allgather"] = sizes.own_output * (sizes.layers - 1)
    if mode == GATHER:
        forward["allgather"] = sizes.own_input * (sizes.row - 1) + sizes.own_kernel * (
            sizes.column - 1
        )
        backward["reduce_scatter"] = sizes.kernel - sizes.own_kernel
        if input_gradient:
            backward["reduce_scatter"] = backward["reduce_scatter"] + sizes.input - sizes.own_input
        return Volume(forward, backward)
    input_panels = (sizes.input - sizes.next_input) * (sizes.row > 1)
    kernel_panels = (sizes.kernel - sizes.next_kernel) * (sizes.column > 1)
    forward["broadcast"] = input_panels + kernel_panels
    backward["broadcast"] = input_panels + kernel_panels * input_gradient
    backward["reduce"] = sizes.kernel - sizes.own_kernel
    if input_gradient:
        backward["reduce"] = backward["reduce"] + sizes.input - sizes.own_input
    return Volume(forward, backward)


def halo_words(
    owned: Layout, extended: Layout, grid: tuple[int, ...], over: tuple[int, ...] = (H, W)
) -> tuple[_Words, _Words]:
    """Return what each rank sends of a halo, forward and backward.

    Forward: what the ranks with other rows or columns need of what it owns; backward, what it needs
    of theirs. `over` says which of the grid axes h and w divide rows and columns; blocks are
    products.
    """
    shared = owned.lengths(0) * owned.lengths(1)
    places = np.unravel_index(np.arange(owned.ranks), grid)
    sent, kept, needed = np.ones_like(shared), np.ones_like(shared), np.ones_like(shared)
    for axis, along in ((2, H), (3, W)):
        mine, theirs = owned.intervals[axis][:, 0], extended.intervals[axis][:, 0]
        if along not in over:  # all of them have all of it
            for product in (sent, kept, needed):
                product *= owned.lengths(axis)
            continue
        # One rank for each part along this axis: the first with that coordinate.
        firsts = [int(np.flatnonzero(places[along] == part)[0]) for part in range(grid[along])]
        low = np.maximum(mine[:, None, 0], theirs[None, firsts, 0])
        high = np.minimum(mine[:, None, 1], theirs[None, firsts, 1])
        sent *= np.maximum(high - low, 0).sum(axis=1)
        own = np.minimum(mine[:, 1], theirs[:, 1]) - np.maximum(mine[:, 0], theirs[:, 0])
        kept *= np.maximum(own, 0)
        needed *= extended.lengths(axis)
    return shared * (sent - kept), shared * (needed - kept)


def _allreduce(words: _Words, ranks: int) -> _Words:
    return -(-2 * words * (ranks - 1) // ranks)


class Sizes:
    """Words of what each rank computes with and of its own parts of that; ranks along the axes.

    Attributes
    ----------
    row, column, layers
        Ranks that share the input, the kernel, and the sums of an output.
    input, kernel, output
        ``(ranks,)``: X, K and Y above.
    own_input, own_kernel, own_output, next_input, next_kernel
        ``(ranks,)``: X_i, K_i and Y_i; X_{i+1} and K_{i+1}.
    """

    def __init__(self, distribution: Distribution) -> None:
        shape, grid = distribution.shape, distribution.grid
        self.grid = grid
        self.row, self.column, self.layers = grid[K], grid[B] * grid[H] * grid[W], grid[C]
        places = np.unravel_index(np.arange(distribution.input.ranks), grid)
        channels, filters = shape.channels // shape.groups, shape.filters // shape.groups
        taps = shape.taps[0] * shape.taps[1]
        extended, output = distribution.extended, distribution.output

        def part(size: int, parts: int, index: _Words) -> _Words:
            return np.asarray(size * (index + 1) // parts - size * index // parts)

        groups = part(shape.groups, grid[G], places[G])
        per_channel = extended.lengths(0) * groups * extended.lengths(2) * extended.lengths(3)
        layer = part(channels, grid[C], places[C])
        self.input = per_channel * layer

        def of_input(member: _Words) -> _Words:
            return per_channel * part(channels, grid[C] * grid[K], places[C] * grid[K] + member)

        self.own_input = of_input(places[K])
        self.next_input = of_input((places[K] + 1) % grid[K])
        per_channel_of_kernel = groups * part(filters, grid[K], places[K]) * taps
        self.kernel = per_channel_of_kernel * layer
        member = (places[B] * grid[H] + places[H]) * grid[W] + places[W]

        def of_kernel(member: _Words) -> _Words:
            index = places[C] * self.column + member
            return per_channel_of_kernel * part(channels, grid[C] * self.column, index)

        self.own_kernel = of_kernel(member)
        self.next_kernel = of_kernel((member + 1) % self.column)
        per_filter = output.lengths(0) * groups * output.lengths(2) * output.lengths(3)
        self.output = per_filter * part(filters, grid[K], places[K])
        self.own_output = per_filter * part(
            filters, grid[K] * grid[C], places[K] * grid[C] + places[C]
        )
