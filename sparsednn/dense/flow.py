"""How all activations of a network lie on the ranks, and what has to move between operations.

Convolutions and fully connected layers (the *products*) are placed by whoever plans; all else
follows:

==============  ===========================================================================
operation       lies where
==============  ===========================================================================
input           where the first product wants its input: nothing moves there
product         input and output as `distribution` says; what is elsewhere is redistributed
ReLU, batch     as its input
norm
pooling         as its input, its own rows and columns divided anew; a halo where windows
                overlap. With fewer rows (columns) than the grid divides them into, images
                are divided over those ranks instead
addition        as its first input; the others come there
concatenation   as its first input; others on the same grid stay where they are, channel by
                channel, so mostly nothing moves
==============  ===========================================================================

Pure arithmetic on layouts: what `model` executes and what `planner` counts is the same `Flow`.
Must not know: messages, arrays of activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.distribution import Distribution, halo_intervals
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import B, C, G, Grid, H, K, Placement, W
from sparsednn.dense.layout import Axis, Layout, concatenated
from sparsednn.dense.operations import (
    Add,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    Operation,
    Pool,
    Relu,
    Shape,
)
from sparsednn.dense.volume import Volume, convolution_volume, halo_words
from sparsednn.errors import UsageError

__all__ = ["Flow", "Held", "Step", "entry", "follow", "logits_layout", "make_flow", "products"]

_Words = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Held:
    """How an activation lies on the ranks: its layout, and the grid axes that made it.

    Attributes
    ----------
    grid
        The six axes of `grids.Grid.axes`.
    layout
        ``(images, channels, height, width)``; channels are divided by the grid axes g, k and c
        only, so ranks along (b, h, w) have the same channels.
    images_over, rows_over, columns_over
        Which of the grid axes b, h, w divide images, rows and columns.
    """

    grid: tuple[int, ...]
    layout: Layout
    images_over: tuple[int, ...] = (B,)
    rows_over: tuple[int, ...] = (H,)
    columns_over: tuple[int, ...] = (W,)

    def alike(self, other: Held) -> bool:
        """Whether images, rows and columns are divided in the same way on the same grid."""
        return self.grid == other.grid and all(
            np.array_equal(self.layout.intervals[axis], other.layout.intervals[axis])
            for axis in (0, 2, 3)
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on the ranks.

    Attributes
    ----------
    operation
        What is done.
    inputs
        Names of the operations that it reads, in order.
    sources
        How these outputs lie.
    needs
        What is needed of them; where it differs from `sources`, something moves in front of it.
    halo
        Whether `needs` are tiles with halos (pooling), not a division.
    output
        How the result lies.
    distribution
        Of a product; None for others.
    input_gradient
        Whether anything in front of it is trained.
    """

    operation: Operation
    inputs: tuple[str, ...]
    sources: tuple[Held, ...]
    needs: tuple[Layout, ...]
    output: Held
    distribution: Distribution | None = None
    halo: bool = False
    input_gradient: bool = True

    def volume(self, *, training: bool = True) -> Volume:
        """Return the words that each rank sends for it, all moves in front of it included.

        Without `training` batch normalisation has its statistics, and there is no backward pass.
        """
        ranks = self.output.layout.ranks
        forward: dict[str, _Words] = {}
        backward: dict[str, _Words] = {}
        if self.distribution is not None:
            bias = bool(getattr(self.operation, "bias", False))
            inner = convolution_volume(
                self.distribution, has_bias=bias, input_gradient=self.input_gradient
            )
            forward, backward = dict(inner.forward), dict(inner.backward)
        verb = "halo" if self.halo else "redistribute"
        for source, need in zip(self.sources, self.needs, strict=True):
            if self.halo:
                there, back = halo_words(
                    source.layout, need, source.grid, source.rows_over + source.columns_over
                )
            else:
                common = source.layout.common(need)
                there, back = source.layout.sizes() - common, need.sizes() - common
            forward[verb] = forward.get(verb, np.zeros(ranks, np.int64)) + there
            if self.input_gradient:
                key = f"{verb}-back"
                backward[key] = backward.get(key, np.zeros(ranks, np.int64)) + back
        if isinstance(self.operation, BatchNorm) and training:
            channels = self.output.layout.lengths(1)
            peers = self.output.grid[B] * self.output.grid[H] * self.output.grid[W]
            once = -(-2 * channels * (peers - 1) // peers)
            forward["statistics"] = 2 * once
            backward["statistics"] = -(-4 * channels * (peers - 1) // peers)
        return Volume(forward, backward if training else {})


@dataclass(frozen=True, slots=True)
class Flow:
    """All operations of a network on the ranks, in topological order, for so many images.

    Attributes
    ----------
    steps
        By name of the operation.
    logits
        How the output has to lie for the loss: images over all ranks.
    """

    images: int
    steps: dict[str, Step]
    logits: Layout

    def loss_volume(self) -> Volume:
        """Return the words of bringing the logits to the loss, and their gradient back."""
        last = next(reversed(self.steps.values())).output.layout
        common = last.common(self.logits)
        return Volume(
            {"redistribute": last.sizes() - common},
            {"redistribute-back": self.logits.sizes() - common},
        )

    def total_words(self, *, training: bool = True) -> _Words:
        """Return ``(ranks,)``: words of a forward pass, or of a whole step, loss included."""
        words = self.loss_volume().total(training=training)
        for step in self.steps.values():
            words = words + step.volume(training=training).total(training=training)
        return words


def products(graph: OperationGraph) -> list[str]:
    """Names of the convolutions and fully connected layers, in topological order."""
    return [each.name for each in graph if isinstance(each, (Convolution, FullyConnected))]


def logits_layout(images: int, classes: int, ranks: int) -> Layout:
    """Return how the loss has its logits ``(images, classes, 1, 1)``: images over all ranks."""
    return Layout.on_grid((ranks,), [Axis(images, (0,)), Axis(classes), Axis(1), Axis(1)])


def make_flow(
    graph: OperationGraph, images: int, placements: Mapping[str, Placement], ranks: int
) -> Flow:
    """Lay out a network.

    Parameters
    ----------
    graph
        The network.
    images
        Of a batch, of all ranks together.
    placements
        Of every product, by name.
    ranks
        How many there are.

    Raises
    ------
    UsageError
        If a product has no placement, or one of another number of ranks.
    """
    steps: dict[str, Step] = {}
    trained: dict[str, bool] = {}
    names = products(graph)
    for name in names:
        if name not in placements:
            raise UsageError(f"network {graph.name}: no grid is given for '{name}'")
        if placements[name].grid.ranks != ranks:
            raise UsageError(
                f"network {graph.name}, layer '{name}': the grid {placements[name].grid} has "
                f"{placements[name].grid.ranks} places for {ranks} ranks"
            )
    for operation in graph:
        name = operation.name
        inputs = graph.predecessors(name)
        sources = tuple(steps[source].output for source in inputs)
        input_gradient = any(trained[source] for source in inputs)
        trained[name] = input_gradient or any(
            parameter.trained for parameter in graph.parameters_of(name)
        )
        if isinstance(operation, Input):
            step = Step(operation, (), (), (), entry(graph, images, placements, ranks))
        elif isinstance(operation, (Convolution, FullyConnected)):
            shape = operation.geometry(images, graph.input_shapes(name)[0])
            distribution = Distribution.of(shape, placements[name])
            step = Step(
                operation, inputs, sources, (distribution.input,),
                Held(distribution.grid, distribution.output), distribution,
            )  # fmt: skip
        else:
            step = follow(operation, inputs, sources, graph.shape(name))
        steps[name] = replace(step, input_gradient=input_gradient)
    return Flow(images, steps, logits_layout(images, graph.classes, ranks))


def follow(
    operation: Operation, inputs: tuple[str, ...], sources: tuple[Held, ...], shape: Shape
) -> Step:
    """Return the step of an operation that lies as its inputs do: all but products and the input.

    Parameters
    ----------
    operation, inputs, sources
        As in `Step`.
    shape
        Of its output, for one image.

    Raises
    ------
    UsageError
        If it is of a kind that does not.
    """
    if isinstance(operation, Pool):
        return _pooling(operation, inputs, sources[0], shape)
    if isinstance(operation, Concatenate):
        return _concatenation(operation, inputs, sources)
    if isinstance(operation, (Add, BatchNorm, Relu)):
        first = sources[0]
        return Step(operation, inputs, sources, (first.layout,) * len(sources), first)
    raise UsageError(f"{operation} cannot be placed on ranks")


def entry(
    graph: OperationGraph, images: int, placements: Mapping[str, Placement], ranks: int
) -> Held:
    """Return how the images come in: as the first product that reads them wants them.

    Of `placements` only that product's is looked at (of the first product, where none reads them).
    """
    names = products(graph)
    readers = [name for name in names if graph.predecessors(name) == (graph.input,)]
    if readers:
        operation = graph.operation(readers[0])
        assert isinstance(operation, (Convolution, FullyConnected))
        placed = Distribution.of(operation.geometry(images, graph.image), placements[readers[0]])
        return Held(placed.grid, placed.input)
    grid = (placements[names[0]].grid if names else Grid(b=ranks)).axes()
    channels, height, width = graph.image
    axes = [Axis(images, (B,)), Axis(channels, (C, G, K)), Axis(height, (H,)), Axis(width, (W,))]
    return Held(grid, Layout.on_grid(grid, axes))


def _pooling(
    operation: Pool, inputs: tuple[str, ...], source: Held, shape: tuple[int, int, int]
) -> Step:
    held = source
    grid = source.grid
    few = shape[1] < _parts(grid, source.rows_over) or shape[2] < _parts(grid, source.columns_over)
    if few:  # more ranks than rows or columns: these ranks take images instead
        held = _with_more_images(held)
    needs, output = held.layout, held.layout
    for axis, over in ((0, held.rows_over), (1, held.columns_over)):
        outputs = Axis(shape[axis + 1], over).intervals(grid)
        size = held.layout.shape[axis + 2]
        output = output.with_axis(axis + 2, shape[axis + 1], outputs)
        if _parts(grid, over) > 1:
            window = operation.window(axis)
            needs = needs.with_axis(axis + 2, size, halo_intervals(outputs, size, window))
    return Step(operation, inputs, (source,), (needs,), replace(held, layout=output), halo=not few)


def _parts(grid: tuple[int, ...], over: tuple[int, ...]) -> int:
    return int(np.prod([grid[axis] for axis in over]))


def _with_more_images(held: Held) -> Held:
    """The same with whole rows and columns; what divided these divides the images, too."""
    over = held.images_over + held.rows_over + held.columns_over
    images, _, height, width = held.layout.shape
    layout = held.layout.with_axis(0, images, Axis(images, over).intervals(held.grid))
    layout = layout.with_axis(2, height, Axis(height).intervals(held.grid))
    layout = layout.with_axis(3, width, Axis(width).intervals(held.grid))
    return Held(held.grid, layout, over, (), ())


def _concatenation(
    operation: Operation, inputs: tuple[str, ...], sources: tuple[Held, ...]
) -> Step:
    first = sources[0]
    needs = [
        held.layout if held.alike(first) else _as_on(first, held.layout.shape[1])
        for held in sources
    ]
    return Step(
        operation, inputs, sources, tuple(needs),
        replace(first, layout=concatenated(needs, axis=1)),
    )  # fmt: skip


def _as_on(held: Held, channels: int) -> Layout:
    """So many channels on the grid of another activation, divided as that is."""
    return held.layout.with_axis(1, channels, Axis(channels, (G, K, C)).intervals(held.grid))
