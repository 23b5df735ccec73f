"""Ways to train a CNN on many ranks, by name; for each the grids with the least predicted time.

============  ======================================================================================
``data``      images over all ranks; gradients of kernels are summed
``spatial``   images, rows and columns over all ranks
``model``     filters or channels over all ranks: kernels are divided, activations travel
``hybrid``    convolutions as ``data``, fully connected layers as ``model`` (Krizhevsky, One weird
              trick for parallelizing convolutional neural networks, arXiv 1404.5997): where the
              kernels are small, and where they are large
``2d``        SUMMA's panels on the best grid that is the same for all layers; P_c = 1
``2.5d``      the same with P_c > 1 where that is quicker
``3d``        all panels at once
``planned``   for each layer the algorithm and grid that send least (`dense.planning`)
============  ======================================================================================

The planner makes words few. Here the choice is by time: of all grids that are the same for all
layers, those that look best by ::

    Σ_layers  3·flops·i / (P·efficiency·peak) + words·itemsize / bandwidth

(i: how much more than an equal share the fullest rank has; words: means of `mean_words`) are
predicted in full, and the quickest is taken. Must not know: how a step is predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, prod
from typing import TYPE_CHECKING, Final

from sparsednn.costmodel.dense.step import predict_step
from sparsednn.costmodel.prediction import Prediction
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.flow import products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, Placement, make_placement
from sparsednn.dense.operations import Convolution, FullyConnected
from sparsednn.dense.planning.candidates import uniform_placements
from sparsednn.dense.planning.placement_costs import mean_words
from sparsednn.dense.planning.planner import plan_network
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["STRATEGIES", "predict_algorithms", "strategy_placements"]

STRATEGIES: Final = ("data", "spatial", "model", "hybrid", "2d", "2.5d", "3d", "planned")

#: Grids of a strategy that are predicted in full.
_LOOKS: Final = 6

Placements = dict[str, Placement]


def predict_algorithms(
    platform: Platform,
    graph: OperationGraph,
    images: int,
    ranks: int,
    *,
    strategies: Sequence[str] = STRATEGIES,
    backend: str = "auto",
    threads: int = 1,
    training: bool = True,
    optimizer_slots: int = 1,
    memory_per_rank: float | None = None,
) -> dict[str, Prediction]:
    """Predict a step of a network with several strategies.

    Parameters
    ----------
    platform, graph, images, ranks, backend, threads, training, optimizer_slots
        As for `predict_step`.
    strategies
        Of `STRATEGIES`.
    memory_per_rank
        Bytes that a rank may need; None: any.

    Returns
    -------
    dict
        Strategy → prediction of its quickest placement that fits the memory, with ``grids`` in its
        details: layer → algorithm and grid. Strategies of which none fits are not there.

    Raises
    ------
    UsageError
        If a strategy is unknown, or the platform has no room for so many ranks.
    """
    found: dict[str, Prediction] = {}
    for strategy in strategies:
        best: Prediction | None = None
        for placements in strategy_placements(
            strategy, platform, graph, images, ranks, training=training,
            optimizer_slots=optimizer_slots,
        ):  # fmt: skip
            one = predict_step(
                platform, graph, images, placements, ranks, backend=backend, threads=threads,
                training=training, optimizer_slots=optimizer_slots,
            )  # fmt: skip
            fits = memory_per_rank is None or one.memory_bytes <= memory_per_rank
            if fits and (best is None or one.seconds < best.seconds):
                grids = {name: str(placement) for name, placement in placements.items()}
                best = _with_details(one, grids=grids)
        if best is not None:
            found[strategy] = best
    return found


def strategy_placements(
    strategy: str,
    platform: Platform,
    graph: OperationGraph,
    images: int,
    ranks: int,
    *,
    training: bool = True,
    optimizer_slots: int = 1,
) -> list[Placements]:
    """Return the placements of a strategy that are worth predicting, all legal on so many ranks.

    Raises
    ------
    UsageError
        If there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"no strategy '{strategy}'; there are {', '.join(STRATEGIES)}")
    names = products(graph)
    if ranks == 1 or strategy == "data":
        return [dict.fromkeys(names, Placement(Grid(b=ranks), "data"))]
    if strategy == "planned":
        plan = plan_network(
            graph, images, ranks, training=training, optimizer_slots=optimizer_slots
        )
        return [dict(plan.placements)]
    whole = (Placement(Grid(k=ranks), "filter"), Placement(Grid(c=ranks), "channel"))
    if strategy == "model":
        return [dict.fromkeys(names, each) for each in whole]
    if strategy == "hybrid":
        data = Placement(Grid(b=ranks), "data")
        return [
            {
                name: each if isinstance(graph.operation(name), FullyConnected) else data
                for name in names
            }
            for each in whole
        ]
    uniform = list(uniform_placements(ranks, strategy))
    if strategy == "2.5d":  # P_c = 1 is one of them
        uniform += uniform_placements(ranks, "2d")
    shapes = _shapes(graph, images)
    uniform.sort(key=lambda each: _about(platform, shapes, each, training=training))
    return [dict.fromkeys(names, make_placement(*_pair(each))) for each in uniform[:_LOOKS]]


def _pair(placement: Placement) -> tuple[Grid, str]:
    return placement.grid, placement.algorithm


def _shapes(graph: OperationGraph, images: int) -> dict[ConvolutionShape, int]:
    """Shapes of all products, and how many there are of each."""
    found: dict[ConvolutionShape, int] = {}
    for name in products(graph):
        operation = graph.operation(name)
        assert isinstance(operation, Convolution | FullyConnected)
        shape = operation.geometry(images, graph.input_shapes(name)[0])
        found[shape] = found.get(shape, 0) + 1
    return found


def _about(
    platform: Platform,
    shapes: Mapping[ConvolutionShape, int],
    placement: Placement,
    *,
    training: bool,
) -> float:
    """Seconds, roughly: the formula at the top."""
    grid, ranks = placement.grid, placement.grid.ranks
    processor = platform.processor
    link = platform.within if ranks <= platform.node.ranks else platform.between or platform.within
    bandwidth = link.bandwidth
    if link is platform.between:
        bandwidth /= platform.ranks_on_node(ranks)
    seconds = 0.0
    for shape, number in shapes.items():
        flops = shape.flops * (3 if training else 1) * _imbalance(shape, grid) / ranks
        words = mean_words(shape, grid, placement.mode, training=training)
        seconds += number * flops / (processor.flops * processor.gemm_efficiency)
        seconds += number * words * 4 / bandwidth
    return seconds


def _imbalance(shape: ConvolutionShape, grid: Grid) -> float:
    """How much more than an equal share the fullest rank has; at least 1."""
    sizes: Iterable[int] = (
        shape.images, shape.output_height, shape.output_width, shape.filters,
        max(1, shape.channels // shape.groups),
    )  # fmt: skip
    return prod(
        ceil(max(1, size) / parts) * parts / max(1, size)
        for size, parts in zip(sizes, grid, strict=True)
    )


def _with_details(prediction: Prediction, **more: object) -> Prediction:
    from dataclasses import replace

    return replace(prediction, details={**prediction.details, **more})
