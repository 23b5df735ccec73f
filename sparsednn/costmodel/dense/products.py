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

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

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
#: Numbers of each rank, and ranks that share them with how far they are apart.
_Panel = tuple[NDArray[Any], tuple[int, int]]


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
    _known: dict[tuple[str, int | None], Seconds] = field(default_factory=dict)

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
        if self.bias and not replicated and shares.column[0] > 1:
            self._begin(timeline, "allreduce", filters, shares.column)
        self._whole(timeline, "allgather", shares.result, shares.layers)
        if self.mode == STREAM:
            self._stream(timeline, BACKWARD if gradient else FIRST)
        else:
            self._compute(timeline, BACKWARD if gradient else FIRST)
            if not replicated:
                self._whole(timeline, "reduce_scatter", shares.kernel, shares.column)
                if gradient:
                    self._whole(timeline, "reduce_scatter", shares.source, shares.row)
        if replicated and shares.column[0] > 1:
            self._begin(timeline, "allreduce", shares.kernel + filters, shares.column)
        if gradient:
            self._halo(timeline, back=True)

    # -- local -----------------------------------------------------------------------------------

    def _seconds(self, which: str, channels: int | None = None) -> Seconds:
        if (which, channels) not in self._known:
            rows = self.shares.rows(self.touched, channels)
            found = self.local.seconds(f"{self.shares.sort}_{which}", rows)
            self._known[which, channels] = found
        return self._known[which, channels]

    def _compute(self, timeline: Timeline, which: str, channels: int | None = None) -> None:
        timeline.compute(self._seconds(which, channels).by_bound())
        if self.shares.uneven.any() and self.local.backend == "torch":
            # Padding that differs between sides is added by hand, and cut away behind.
            copies = 2 if which == BACKWARD else 1
            width = self.shares.extended[1]
            words = self.shares.source * copies * self.shares.uneven
            rows = words / np.maximum(width, 1)
            timeline.compute({"memory bandwidth": self.transfers.packing(2.0 * words, rows)})

    # -- messages --------------------------------------------------------------------------------

    def _halo(self, timeline: Timeline, *, back: bool) -> None:
        distribution = self.shares.distribution
        self.transfers.move(timeline, distribution.input, distribution.extended, back=back)

    def _bytes(self, words: NDArray[Any]) -> float:
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

    # -- panels ----------------------------------------------------------------------------------

    def _stream(self, timeline: Timeline, which: str) -> None:
        panels = self.panels
        every = max(1, sum(panels))
        brought = self._bring(timeline, panels[0] / every, which) if panels else 0
        reduced = 0
        for number, channels in enumerate(panels):
            following = number + 1 < len(panels)
            coming = self._bring(timeline, panels[number + 1] / every, which) if following else 0
            timeline.finish(brought)
            self._compute(timeline, which, channels)
            if which == FORWARD:
                if number:  # the panel's part is added to the output
                    result = 1.5 * self.shares.result
                    timeline.compute({"memory bandwidth": self.transfers.packing(result)})
            else:
                timeline.finish(reduced)
                reduced = self._reduce(timeline, channels / every, which)
            brought = coming
        timeline.finish(reduced)

    def _panel(self, share: float, *, source: bool, kernel: bool) -> list[_Panel]:
        """A panel's numbers, and who shares them."""
        found = [(self.shares.source * share, self.shares.row)] * source
        return found + [(self.shares.kernel * share, self.shares.column)] * kernel

    def _bring(self, timeline: Timeline, share: float, which: str) -> int:
        """Start the broadcasts of a panel; the copies of its parts are made at once."""
        last = 0
        for words, group in self._panel(share, source=True, kernel=which != FIRST):
            timeline.compute({"memory bandwidth": self.transfers.packing(words)})
            if group[0] > 1:
                last = self._begin(timeline, "broadcast", words, group)
        return last

    def _reduce(self, timeline: Timeline, share: float, which: str) -> int:
        """Start the sums of a panel's gradients."""
        last = 0
        for words, group in self._panel(share, source=which == BACKWARD, kernel=True):
            timeline.compute({"memory bandwidth": self.transfers.packing(words)})
            if group[0] > 1:
                last = self._begin(timeline, "reduce", words, group)
        return last

    def _begin(
        self, timeline: Timeline, verb: str, words: NDArray[Any], group: tuple[int, int]
    ) -> int:
        nbytes = self._bytes(words)
        return timeline.start(self.transfers.collective(verb, group, nbytes, started=True))
