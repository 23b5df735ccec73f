"""A convolution on ranks, forward and backward: mirrored on `sparsednn.dense.distributed`.

Step by step as there. With W the product's local time (`local`), and the names of the grid's
groups: the *row* shares the input X, the *column* the kernel K, the *layers* the output's sums Y ::

    replicate   halo + W;                         backward W + start allreduce(K + b)
    gather      halo + allgather(X, row) + allgather(K, column) + W(c-layer)
                  + reduce_scatter(Y, layers);    backward the same with sums for gathers
    stream      for each panel: broadcast(X_p), broadcast(K_p) beside W of the panel before;
                backward: broadcasts as before, reductions beside W of the next panel

Copies into and out of messages are `Transfers.packing`. Must not know: the network around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.dense.local import LocalCosts, Seconds
from sparsednn.costmodel.dense.timeline import Timeline
from sparsednn.costmodel.dense.transfers import Transfers
from sparsednn.costmodel.dense.work import BACKWARD, FIRST, FORWARD, ProductShares
from sparsednn.dense.distribution import share_of
from sparsednn.dense.flow import Step
from sparsednn.dense.grids import GATHER, REPLICATE, STREAM

__all__ = ["ProductTimes"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ProductTimes:
    """One product; puts its passes on a timeline.

    Attributes
    ----------
    step
        Of the flow; has a distribution.
    local, transfers
        What ranks compute, what they send.
    touched
        ``(ranks,)`` bytes that the whole step goes through.
    """

    step: Step
    local: LocalCosts
    transfers: Transfers
    touched: _Floats

    @cached_property
    def shares(self) -> ProductShares:
        """What ranks compute."""
        assert self.step.distribution is not None
        return ProductShares.of(self.step.distribution)

    @property
    def mode(self) -> str:
        """One of `dense.grids`' modes."""
        return self.shares.distribution.placement.mode

    @property
    def bias(self) -> bool:
        """Whether there is a number for each filter."""
        return bool(getattr(self.step.operation, "bias", False))

    @cached_property
    def panels(self) -> list[int]:
        """Channels of each panel, of the rank whose c-layer has most."""
        distribution = self.shares.distribution
        rank = int(self.shares.channels.argmax())
        place = np.unravel_index(rank, distribution.grid)
        pieces = share_of(distribution, tuple(int(one) for one in place)).pieces()
        return [last - first for first, last, _, _ in pieces]

    def forward(self, timeline: Timeline) -> None:
        """The forward pass."""
        shares = self.shares
        self._halo(timeline, back=False)
        if self.mode == STREAM:
            self._stream(timeline, FORWARD)
        else:
            if self.mode == GATHER:
                self._whole(timeline, "allgather", shares.source, shares.row)
                self._whole(timeline, "allgather", shares.kernel, shares.column)
            self._compute(timeline, FORWARD)
        self._whole(timeline, "reduce_scatter", shares.result, shares.layers)

    def backward(self, timeline: Timeline) -> None:
        """The backward pass; sums of gradients are under way behind it."""
        shares = self.shares
        gradient = self.step.input_gradient
        replicated = self.mode == REPLICATE
        filters = shares.distribution.bias.sizes() * self.bias
        if self.bias and not replicated:
            self._start(timeline, "allreduce", filters, shares.column)
        self._whole(timeline, "allgather", shares.result, shares.layers)
        if self.mode == STREAM:
            self._stream(timeline, BACKWARD if gradient else FIRST)
        else:
            self._compute(timeline, BACKWARD if gradient else FIRST)
            if not replicated:
                self._whole(timeline, "reduce_scatter", shares.kernel, shares.column)
                if gradient:
                    self._whole(timeline, "reduce_scatter", shares.source, shares.row)
        if replicated:
            self._start(timeline, "allreduce", shares.kernel + filters, shares.column)
        if gradient:
            self._halo(timeline, back=True)

    # -- local -----------------------------------------------------------------------------------

    def _seconds(self, which: str, channels: int | None = None) -> Seconds:
        rows = self.shares.rows(self.touched, channels)
        return self.local.seconds(f"{self.shares.sort}_{which}", rows)

    def _compute(self, timeline: Timeline, which: str, channels: int | None = None) -> None:
        timeline.compute(self._seconds(which, channels).by_bound())
        if self.shares.uneven.any() and self.local.backend == "torch":
            # Padding that differs between sides is added by hand, and cut away behind.
            copies = 2 if which == BACKWARD else 1
            height, width = self.shares.extended
            words = self.shares.source * copies * self.shares.uneven
            rows = words / np.maximum(width, 1)
            timeline.compute({"memory bandwidth": self.transfers.packing(2.0 * words, rows)})

    # -- messages --------------------------------------------------------------------------------

    def _halo(self, timeline: Timeline, *, back: bool) -> None:
        distribution = self.shares.distribution
        self.transfers.move(timeline, distribution.input, distribution.extended, back=back)

    def _bytes(self, words: NDArray[np.int64] | _Floats) -> float:
        return float(words.max(initial=0)) * self.transfers.itemsize

    def _whole(
        self, timeline: Timeline, verb: str, words: NDArray[np.int64], group: tuple[int, int]
    ) -> None:
        """Gather parts, or sum and scatter them; with the copy into or out of one buffer."""
        if group[0] == 1:
            return
        timeline.together(self.transfers.collective(verb, group, self._bytes(words)))
        copied = self.transfers.packing(words.astype(np.float64))
        timeline.compute({"memory bandwidth": copied})

    def _start(
        self, timeline: Timeline, verb: str, words: NDArray[np.int64], group: tuple[int, int]
    ) -> None:
        if group[0] > 1:
            timeline.start(
                self.transfers.collective(verb, group, self._bytes(words), started=True)
            )

    # -- panels ----------------------------------------------------------------------------------

    def _stream(self, timeline: Timeline, which: str) -> None:
        shares, panels = self.shares, self.panels
        every = max(1, sum(panels))
        with_kernel = which != FIRST
        forward = which == FORWARD
        running: float = 0.0

        def parts(share: float) -> list[tuple[NDArray[np.float64], tuple[int, int]]]:
            return [(shares.source * share, shares.row), (shares.kernel * share, shares.column)]

        for number, channels in enumerate(panels):
            share = channels / every
            # Broadcasts of this panel went on beside the one before: what is left is waited for.
            for position, (words, group) in enumerate(parts(share)):
                if position == 0 or with_kernel:
                    if group[0] > 1:
                        timeline.start(
                            self.transfers.collective(
                                "broadcast", group, self._bytes(words), started=True
                            )
                        )
                    timeline.compute({"memory bandwidth": self.transfers.packing(words)})
            running = share
            if number == 0 or not forward:
                timeline.finish()
            if number and forward:
                timeline.finish()
                self._add(timeline, shares.result.astype(np.float64))
            self._compute(timeline, which, channels)
            if forward:
                continue
            for position, (words, group) in enumerate(parts(running)):
                if group[0] > 1 and (position == 1 or which == BACKWARD):
                    timeline.start(
                        self.transfers.collective(
                            "reduce", group, self._bytes(words), started=True
                        )
                    )
        timeline.finish()

    def _add(self, timeline: Timeline, words: _Floats) -> None:
        """Add a panel's part to the output."""
        timeline.compute({"memory bandwidth": self.transfers.packing(1.5 * words)})
