"""Random CNNs that a calibration trains: the times of their operations say what operations cost.

They are made of what CNNs are made of, but are never a network that predictions are held against:

==============  ====================================================================================
images          1 to 128 (logarithmic) of 1 to 16 channels and 4 to 64 rows and columns; one in six
                is no square
stages          1 to 5, each a convolution (half of them), a residual block, two branches that are
                concatenated, or a pooling
convolutions    filters 4 to 512: a third 4, 6, 8, 12 or 16, most others multiples of eight; taps
                3×3 (half), 1×1, 5×5, on few channels 7×7, 11×11; stride 1 or 2; with padding or
                none; with batch normalisation or a bias
pooling         2×2 by 2, 3×3 by 2, 3×3 by 1; at the end of some the whole image
fully conn.     none to two of 16 to 1024 (logarithmic), then logits of 2 to 200 classes
==============  ====================================================================================

A network is drawn for an amount of work (flops of a forward pass) that is logarithmically uniform,
so small steps and large ones are alike: what an operation costs also depends on how much else a
step leaves in the caches. Must not know: how a network is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Relu,
)
from sparsednn.errors import SparseDNNError

__all__ = ["draw_network", "work_of"]

_FEW: Final = (4, 6, 8, 12, 16)
_CHANNELS: Final = (1, 1, 2, 3, 3, 4, 6, 8, 12, 16)
#: Channels up to which kernels have more than 5×5 taps.
_WIDE_TAPS: Final = 64
#: Flops of a forward pass, between which the amount of work is drawn, and how far off it may be.
_FLOPS: Final = (3e5, 1.2e9)
_OFF: Final = 2.0
_MOST_PARAMETERS: Final = 6_000_000
_MOST_ACTIVATIONS: Final = 24_000_000


def _logarithmic(random: np.random.Generator, low: float, high: float) -> int:
    return round(float(np.exp(random.uniform(np.log(low), np.log(high)))))


def _filters(random: np.random.Generator) -> int:
    kind = random.random()
    if kind < 1 / 3:
        return int(random.choice(_FEW))
    many = _logarithmic(random, 8, 512)
    return many if kind > 0.85 else max(8, round(many / 8) * 8)


class _Drawer:
    """A network that grows at its end."""

    def __init__(self, random: np.random.Generator) -> None:
        self.random = random
        rows = _logarithmic(random, 4, 64)
        columns = rows if random.random() < 5 / 6 else _logarithmic(random, 4, 64)
        self.graph = OperationGraph("random")
        image = (int(random.choice(_CHANNELS)), rows, columns)
        self.at = self.graph.add(Input("image", image))
        self._number = 0

    def name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}{self._number}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.graph.shape(self.at)

    def convolution(
        self, source: str, filters: int, taps: int, stride: int = 1, *, same: bool, norm: bool
    ) -> str:
        padding = taps // 2 if same else 0
        at = self.graph.add(
            Convolution(
                self.name("conv"), filters, (taps, taps), stride=(stride, stride),
                padding=(padding, padding), bias=not norm,
            ),
            source,
        )  # fmt: skip
        return self.graph.add(BatchNorm(self.name("norm")), at) if norm else at

    def relu(self, source: str) -> str:
        return self.graph.add(Relu(self.name("relu")), source)

    def plain(self) -> None:
        """A convolution, mostly with a ReLU, sometimes with a pooling behind it."""
        random, least = self.random, min(self.shape[1:])
        taps = int(random.choice([1, 3, 5, 7, 11], p=[0.17, 0.55, 0.15, 0.09, 0.04]))
        if taps > 5 and self.shape[0] > _WIDE_TAPS:
            taps = 3
        same = bool(random.random() < 0.7) or taps > least
        stride = 2 if random.random() < 0.2 and least > 3 else 1
        norm = bool(random.random() < 0.4)
        self.at = self.convolution(self.at, _filters(random), taps, stride, same=same, norm=norm)
        if random.random() < 0.85:
            self.at = self.relu(self.at)
        if random.random() < 0.4:
            self.pooling()

    def residual(self) -> None:
        """Two convolutions and what went in; a 1×1 convolution where sizes differ."""
        random, start = self.random, self.at
        filters = self.shape[0] if random.random() < 0.6 else _filters(random)
        stride = 2 if random.random() < 0.3 and min(self.shape[1:]) > 3 else 1
        norm = bool(random.random() < 0.7)
        x = self.relu(self.convolution(start, filters, 3, stride, same=True, norm=norm))
        x = self.convolution(x, filters, 3, same=True, norm=norm)
        if self.graph.shape(x) != self.graph.shape(start):
            start = self.convolution(start, filters, 1, stride, same=True, norm=norm)
        self.at = self.relu(self.graph.add(Add(self.name("add")), x, start))

    def branches(self) -> None:
        """Two convolutions side by side, concatenated."""
        random, start = self.random, self.at
        found = [
            self.relu(self.convolution(start, _filters(random), taps, same=True, norm=norm))
            for taps, norm in ((1, False), (3, bool(random.random() < 0.5)))
        ]
        self.at = self.graph.add(Concatenate(self.name("both")), *found)

    def pooling(self) -> None:
        least = min(self.shape[1:])
        if least < 4:
            return
        kind = self.random.random()
        taps, stride, padding = (2, 2, 0) if kind < 0.6 else (3, 2 if kind < 0.85 else 1, 1)
        pool = MaxPool(
            self.name("pool"), (taps, taps), stride=(stride, stride), padding=(padding, padding)
        )
        self.at = self.graph.add(pool, self.at)

    def end(self) -> OperationGraph:
        random = self.random
        if random.random() < 0.3 and min(self.shape[1:]) > 1:
            shape = self.shape[1:]
            self.at = self.graph.add(AveragePool(self.name("mean"), shape, stride=shape), self.at)
        for _ in range(int(random.integers(0, 3))):
            full = FullyConnected(self.name("fc"), _logarithmic(random, 16, 1024))
            self.at = self.relu(self.graph.add(full, self.at))
        self.at = self.graph.add(
            FullyConnected(self.name("fc"), _logarithmic(random, 2, 200)), self.at
        )
        return self.graph.finish()


def work_of(graph: OperationGraph, images: int) -> tuple[float, float, float]:
    """Return flops of a forward pass, numbers in all activations, and parameters."""
    flops, activations, parameters = 0.0, 0.0, 0.0
    for operation in graph:
        sources = graph.input_shapes(operation.name)
        flops += operation.forward_flops(images, *sources)
        activations += operation.output_words(images, *sources)
        parameters += sum(one.words for one in graph.parameters_of(operation.name))
    return flops, activations, parameters


def draw_network(random: np.random.Generator) -> tuple[OperationGraph, int]:
    """Return the next random network, and how many images a step of it has."""
    wanted = float(_logarithmic(random, *_FLOPS))
    while True:
        images = _logarithmic(random, 1, 128)
        drawer = _Drawer(random)
        stages: list[Callable[[], None]] = [
            drawer.plain, drawer.plain, drawer.plain, drawer.residual, drawer.branches,
            drawer.pooling,
        ]  # fmt: skip
        try:
            for _ in range(int(random.integers(1, 6))):
                stages[int(random.integers(len(stages)))]()
            graph = drawer.end()
        except SparseDNNError:  # a window larger than what was left of the image
            continue
        flops, activations, parameters = work_of(graph, images)
        near = wanted / _OFF < flops < wanted * _OFF
        if near and parameters < _MOST_PARAMETERS and activations < _MOST_ACTIVATIONS:
            return graph, images
