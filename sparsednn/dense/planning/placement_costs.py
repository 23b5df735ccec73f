"""What placements cost: words and bytes of every operation of a network, each worked out once.

An operation's cost depends on where it and its inputs lie, and that on the placements of a few
products only: its own, and those that its inputs follow (`NetworkCosts.products_of`). Operations of
the same structure (the blocks of a ResNet) share results. Every number is what `flow.Step.volume`
and `memory.step_memory` say.

Must not know: how placements are chosen.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.distribution import Distribution, halo_intervals
from sparsednn.dense.flow import Held, Step, entry, follow, logits_layout, products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import REPLICATE, STREAM, Grid, Placement
from sparsednn.dense.layout import Axis
from sparsednn.dense.operations import Concatenate, Convolution, FullyConnected, Input, Operation
from sparsednn.dense.planning.memory import (
    ProductMemory,
    keeps_output,
    loss_memory,
    product_memory,
    step_memory,
)
from sparsednn.dense.volume import Volume, convolution_volume

__all__ = ["LOSS", "Cost", "NetworkCosts", "mean_words"]

#: Name of the step behind the last operation: logits go to where the loss is computed.
LOSS = "loss"

_Words = NDArray[np.int64]


class Cost(NamedTuple):
    """Of one operation.

    Attributes
    ----------
    words
        That the busiest rank sends in a step, moves in front of the operation included.
    mean
        The same, mean of all ranks.
    moved
        What the busiest rank sends in moves in front of it (redistribution, halos of pooling).
    resident, transient
        Bytes; see `memory.StepMemory`, of the rank that has most.
    """

    words: int
    mean: float
    moved: int
    resident: int
    transient: int


@dataclass(frozen=True, slots=True)
class PlacedProduct:
    """A product on a grid."""

    distribution: Distribution
    words: _Words
    memory: ProductMemory


class NetworkCosts:
    """Costs of all placements of a network for so many images on so many ranks.

    Parameters
    ----------
    graph, images, ranks
        What runs, on what.
    training
        Whether there are backward passes.
    itemsize
        Bytes of a number.
    optimizer_slots
        Arrays like the parameters that the optimizer has.

    Attributes
    ----------
    steps
        Names of all operations, and `LOSS`.
    shapes
        The geometry of every product.
    """

    def __init__(
        self,
        graph: OperationGraph,
        images: int,
        ranks: int,
        *,
        training: bool = True,
        itemsize: int = 4,
        optimizer_slots: int = 0,
    ) -> None:
        self.graph, self.images, self.ranks = graph, images, ranks
        self.training, self.itemsize, self.slots = training, itemsize, optimizer_slots
        self.products = products(graph)
        self.shapes = {name: self._geometry(name) for name in self.products}
        self.steps = [operation.name for operation in graph] + [LOSS]
        self._logits = logits_layout(images, graph.classes, ranks)
        self._followed: dict[str, tuple[str, ...]] = {}
        self._numbers: dict[Hashable, int] = {}
        self._keys: dict[str, int] = {}
        self._with_gradient: dict[str, bool] = {}
        self._kept: dict[str, bool] = {}
        trained: dict[str, bool] = {}
        for operation in graph:
            name, sources = operation.name, graph.predecessors(operation.name)
            self._followed[name], self._keys[name] = self._structure(operation, sources)
            self._with_gradient[name] = any(trained[source] for source in sources)
            self._kept[name] = keeps_output(graph, name)
            trained[name] = self._with_gradient[name] or any(
                parameter.trained for parameter in graph.parameters_of(name)
            )
        self._placed: dict[Hashable, PlacedProduct] = {}
        self._alone: dict[Hashable, int] = {}
        self._held: dict[Hashable, Held] = {}
        self._costs: dict[Hashable, Cost] = {}
        self._structures: dict[str, tuple[tuple[str, ...], int]] = {}
        for name in self.steps:
            scope, structure = self._step_structure(name)
            self._structures[name] = scope, self._number(structure)

    def _number(self, structure: Hashable) -> int:
        """The same small number for the same structure: quick to look up."""
        return self._numbers.setdefault(structure, len(self._numbers))

    def _geometry(self, name: str) -> ConvolutionShape:
        operation = self.graph.operation(name)
        assert isinstance(operation, (Convolution, FullyConnected))
        return operation.geometry(self.images, self.graph.input_shapes(name)[0])

    # -- structure -------------------------------------------------------------------------------

    def _structure(
        self, operation: Operation, sources: tuple[str, ...]
    ) -> tuple[tuple[str, ...], int]:
        """Which placements say how an output lies; what is equal for equal layouts."""
        name = operation.name
        if isinstance(operation, (Convolution, FullyConnected)):
            return (name,), self._number(("product", self.shapes[name]))
        if isinstance(operation, Input):
            readers = [each for each in self.products if self.graph.predecessors(each) == (name,)]
            first = (readers or self.products)[:1]
            structure = "input", *(self.shapes[each] for each in first), bool(readers)
            return tuple(first), self._number(structure)
        leaders = sources if isinstance(operation, Concatenate) else sources[:1]
        followed = tuple(dict.fromkeys(each for one in leaders for each in self._followed[one]))
        places = tuple(
            tuple(followed.index(each) for each in self._followed[one]) for one in leaders
        )
        own = replace(operation, name="any") if operation.kind.endswith("pool") else operation.kind
        keys = tuple(self._keys[one] for one in leaders)
        if own in ("relu", "batch_norm", "add"):
            return followed, keys[0]
        return followed, self._number((own, self.graph.shape(name)[1:], places, keys))

    def _step_structure(self, name: str) -> tuple[tuple[str, ...], Hashable]:
        """Which placements an operation's cost depends on; what is equal for equal costs."""
        if name == LOSS:
            last = self.steps[-2]
            return self._followed[last], (LOSS, self._keys[last])
        operation = self.graph.operation(name)
        sources = self.graph.predecessors(name) or (name,)
        found = [each for source in sources for each in self._followed[source]]
        if name in self.shapes:
            found.append(name)
        followed = tuple(dict.fromkeys(found))
        places = tuple(
            tuple(followed.index(each) for each in self._followed[source]) for source in sources
        )
        return followed, (
            replace(operation, name="any"), places, tuple(self._keys[each] for each in sources),
            self.shapes.get(name), self._with_gradient[name], self._kept[name],
        )  # fmt: skip

    def products_of(self, step: str) -> tuple[str, ...]:
        """Which products' placements the cost of a step depends on."""
        return self._structures[step][0]

    def key_of(self, step: str) -> int:
        """Return a number that is equal for steps whose costs are equal for equal placements."""
        return self._structures[step][1]

    def has_gradient(self, name: str) -> bool:
        """Whether anything in front of an operation is trained."""
        return self._with_gradient[name]

    # -- costs -----------------------------------------------------------------------------------

    def placed(self, name: str, placement: Placement) -> PlacedProduct:
        """Return a product on a grid."""
        shape = self.shapes[name]
        bias = bool(getattr(self.graph.operation(name), "bias", False))
        key = shape, placement.grid, placement.mode, bias, self._with_gradient[name]
        if key not in self._placed:
            distribution = Distribution.of(shape, placement)
            how = {"has_bias": bias, "input_gradient": self._with_gradient[name]}
            memory = product_memory(
                distribution, **how, training=self.training, optimizer_slots=self.slots
            )
            words = convolution_volume(distribution, **how).total(training=self.training)
            self._placed[key] = PlacedProduct(distribution, words, memory)
        return self._placed[key]

    def product_words(self, name: str, placement: Placement) -> int:
        """Words of the busiest rank for a product alone, without what moves in front of it."""
        bias = bool(getattr(self.graph.operation(name), "bias", False))
        how = {"has_bias": bias, "input_gradient": self._with_gradient[name]}
        key = self.shapes[name], placement.grid, placement.mode, *how.values()
        if key not in self._alone:
            # Only the number stays: layouts of a thousand placements would fill the memory.
            volume = convolution_volume(Distribution.of(self.shapes[name], placement), **how)
            self._alone[key] = int(volume.total(training=self.training).max())
        return self._alone[key]

    def cost(self, step: str, placements: Mapping[str, Placement]) -> Cost:
        """Return the cost of a step; `placements` has those of `products_of` at least."""
        followed, key = self._structures[step]
        full = key, *((placements[each].grid, placements[each].mode) for each in followed)
        if full not in self._costs:
            self._costs[full] = self._work_out(step, placements)
        return self._costs[full]

    def _work_out(self, name: str, placements: Mapping[str, Placement]) -> Cost:
        if name == LOSS:
            last = self._lies(self.steps[-2], placements).layout
            common = last.common(self._logits)
            there, back = last.sizes() - common, self._logits.sizes() - common
            words = there + back if self.training else there
            memory = loss_memory(last, self._logits, itemsize=self.itemsize)
            moved = words
        else:
            step = self._step(name, placements)
            # The product itself has been worked out: only what moves in front of it is left.
            volume: Volume = replace(step, distribution=None).volume(training=self.training)
            words = volume.total(training=self.training) if step.inputs else _no_words(step)
            moved = _moves(volume, words)
            product = None
            if step.distribution is not None:
                placed = self.placed(name, placements[name])
                words, product = words + placed.words, placed.memory
            memory = step_memory(
                step, output_kept=self._kept[name], itemsize=self.itemsize,
                training=self.training, optimizer_slots=self.slots, product=product,
            )  # fmt: skip
        return Cost(
            int(words.max()), float(words.mean()), int(moved.max()),
            int(memory.resident.max()), int(memory.transient.max()),
        )  # fmt: skip

    def _step(self, name: str, placements: Mapping[str, Placement]) -> Step:
        operation, inputs = self.graph.operation(name), self.graph.predecessors(name)
        output = self._lies(name, placements)
        sources = tuple(self._lies(source, placements) for source in inputs)
        if name in self.shapes:
            distribution = self.placed(name, placements[name]).distribution
            step = Step(operation, inputs, sources, (distribution.input,), output, distribution)
        elif isinstance(operation, Input):
            step = Step(operation, (), (), (), output)
        else:
            step = follow(operation, inputs, sources, self.graph.shape(name))
        return replace(step, input_gradient=self._with_gradient[name])

    def _lies(self, name: str, placements: Mapping[str, Placement]) -> Held:
        """How an output lies."""
        followed = self._followed[name]
        full = (
            self._keys[name],
            *((placements[each].grid, placements[each].mode) for each in followed),
        )
        if full not in self._held:
            operation, inputs = self.graph.operation(name), self.graph.predecessors(name)
            if name in self.shapes:
                distribution = self.placed(name, placements[name]).distribution
                held = Held(distribution.grid, distribution.output)
            elif isinstance(operation, Input):
                held = entry(self.graph, self.images, placements, self.ranks)
            else:
                leaders = inputs if isinstance(operation, Concatenate) else inputs[:1]
                sources = tuple(self._lies(source, placements) for source in leaders)
                held = follow(operation, leaders, sources, self.graph.shape(name)).output
            self._held[full] = held
        return self._held[full]

    # -- whole networks --------------------------------------------------------------------------

    def words(self, placements: Mapping[str, Placement]) -> int:
        """Return the words of the busiest rank, summed over all steps."""
        return sum(self.cost(step, placements).words for step in self.steps)

    def memory(self, placements: Mapping[str, Placement]) -> int:
        """Return the bytes that no rank needs more than: as `memory.flow_memory`."""
        found = [self.cost(step, placements) for step in self.steps]
        return sum(each.resident for each in found) + max(each.transient for each in found)


def _no_words(step: Step) -> _Words:
    """No words on any rank."""
    return np.zeros(step.output.layout.ranks, np.int64)


def _moves(volume: Volume, like: _Words) -> _Words:
    found = np.zeros_like(like)
    for words in (volume.forward, volume.backward):
        for verb, counted in words.items():
            if verb != "statistics":
                found = found + counted
    return found


@lru_cache(maxsize=4096)
def _extent(shape: ConvolutionShape, axis: int, parts: int) -> tuple[int, int]:
    """Along rows (0) or columns (1): what all parts need, and what of it they have themselves."""
    size = (shape.height, shape.width)[axis]
    outputs = Axis((shape.output_height, shape.output_width)[axis], (0,)).intervals((parts,))
    owned = Axis(size, (0,)).intervals((parts,))[:, 0]
    needed = halo_intervals(outputs, size, shape.window(axis))[:, 0]
    common = np.minimum(needed[:, 1], owned[:, 1]) - np.maximum(needed[:, 0], owned[:, 0])
    return int((needed[:, 1] - needed[:, 0]).sum()), int(np.maximum(common, 0).sum())


def mean_words(
    shape: ConvolutionShape,
    grid: Grid,
    mode: str,
    *,
    has_bias: bool = False,
    input_gradient: bool = True,
    training: bool = True,
) -> float:
    """Return the mean words of a rank for a product, without an array of ranks: fast.

    What `volume.convolution_volume` gives, summed over ranks (less the rounding up of allreduces):
    the busiest rank sends no less. Parameters as there; `mode` as `grids.Placement.mode`.
    """
    rows, own_rows = _extent(shape, 0, grid.h)
    columns, own_columns = _extent(shape, 1, grid.w)
    per_pixel = shape.images * shape.channels
    source = per_pixel * rows * columns
    halo = per_pixel * (rows * columns - own_rows * own_columns)
    kernel = int(np.prod(shape.kernel_shape))
    output = int(np.prod(shape.output_shape))
    bias = shape.filters * has_bias
    total = halo * (1 + (training and input_gradient))
    if mode == REPLICATE:
        return (total + 2 * (kernel + bias) * (grid.bhw - 1) * training) / grid.ranks
    row = grid.axes(shape.groups)[4]
    source, kernel, output = source * (row - 1), kernel * (grid.bhw - 1), output * (grid.c - 1)
    total += source + kernel + output
    if training:
        total += output + kernel + source * input_gradient + 2 * bias * (grid.bhw - 1)
        if mode == STREAM:
            total += source + kernel * input_gradient
    return total / grid.ranks
