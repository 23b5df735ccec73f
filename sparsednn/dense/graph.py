"""A network as a graph of operations: who reads whose output, what shapes pass, what it costs.

Built operation by operation; shapes are inferred on the way, so what does not fit is told where it
is added. Edges go in the direction of the data. The graph itself is networkx's, whose algorithms
apply (`OperationGraph.nodes`).

Must not know: arrays, ranks, how an operation is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import networkx

from sparsednn.dense.operations import (
    Input,
    Operation,
    Parameter,
    Shape,
    operation_from_json,
    shape_text,
)
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError

__all__ = ["OperationGraph"]

_FORMAT: Final = "sparsednn operation graph"
_VERSION: Final = 1


class OperationGraph:
    """Operations, and which outputs each of them reads.

    Parameters
    ----------
    name
        What to call the network.

    Attributes
    ----------
    nodes : networkx.DiGraph
        A node for each operation, by its name, with attributes ``operation``, ``inputs`` (names, in
        order, one that is read twice twice) and ``shape`` (of its output for one image). To be read
        only.

    Notes
    -----
    Iterating, or `operations`, gives the operations in the order in which they were added, which is
    a topological one.

    >>> from sparsednn.dense.operations import FullyConnected
    >>> graph = OperationGraph("example")
    >>> image = graph.add(Input("image", (3, 8, 8)))
    >>> graph.add(FullyConnected("fc", 10), image)
    'fc'
    >>> graph.finish().shape("fc")
    (10, 1, 1)
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes = networkx.DiGraph()

    def add(self, operation: Operation, *inputs: str) -> str:
        """Add an operation that reads the outputs of others, and return its name.

        Raises
        ------
        UsageError
            If the graph is finished.
        ShapeError
            If the name is taken, an input is not there, or the inputs' shapes do not fit.
        """
        if networkx.is_frozen(self.nodes):
            raise UsageError(f"network {self.name}: it is finished, nothing can be added")
        name = operation.name
        if name in self.nodes:
            raise ShapeError(f"network {self.name}: there are two operations '{name}'")
        for source in inputs:
            if source not in self.nodes:
                raise ShapeError(
                    f"network {self.name}: {operation} reads '{source}', which is not there"
                )
        shape = operation.output_shape(*(self.shape(source) for source in inputs))
        self.nodes.add_node(name, operation=operation, inputs=tuple(inputs), shape=shape)
        self.nodes.add_edges_from((source, name) for source in inputs)
        return name

    def finish(self) -> OperationGraph:
        """Check that it is one network, and allow no more operations; returns the graph itself.

        Raises
        ------
        ShapeError
            If there is not one input, more than one operation's output is read by nobody, or an
            operation does not depend on the input.
        """
        images = [operation.name for operation in self if isinstance(operation, Input)]
        if len(images) != 1:
            raise ShapeError(f"network {self.name}: it must have one input, found {_names(images)}")
        ends = [name for name in self.nodes if not self.nodes.out_degree(name)]
        if len(ends) != 1:
            raise ShapeError(
                f"network {self.name}: one output must have no reader, found {_names(ends)}"
            )
        # What reads something hangs on an input in the end, and there is only this one.
        networkx.freeze(self.nodes)
        return self

    @classmethod
    def of_operations(
        cls, name: str, operations: Iterable[tuple[Operation, Sequence[str]]]
    ) -> OperationGraph:
        """Make a finished graph of operations and their inputs, given in any order.

        An operation that stands behind its inputs keeps its place.

        Raises
        ------
        ShapeError
            If operations read each other in a cycle; as for `add` and `finish`.
        """
        given = list(operations)
        order: dict[str, int] = {}
        for place, (operation, _) in enumerate(given):
            if order.setdefault(operation.name, place) != place:
                raise ShapeError(f"network {name}: there are two operations '{operation.name}'")
        links = networkx.DiGraph()
        links.add_nodes_from(order)
        links.add_edges_from(
            (source, operation.name)
            for operation, inputs in given
            for source in inputs
            if source in order
        )
        try:
            names = list(
                networkx.lexicographical_topological_sort(links, key=lambda name: order[name])
            )
        except networkx.NetworkXUnfeasible as error:
            cycle = [edge[0] for edge in networkx.find_cycle(links)]
            raise ShapeError(
                f"network {name}: operations read each other in a cycle: "
                f"{' → '.join([*cycle, cycle[0]])}"
            ) from error
        graph = cls(name)
        for operation, inputs in (given[order[each]] for each in names):
            graph.add(operation, *inputs)
        return graph.finish()

    # -- what is in it ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Operation]:
        """All operations, in topological order: as added."""
        return (data["operation"] for _, data in self.nodes.nodes(data=True))

    def __len__(self) -> int:
        """How many operations there are."""
        return len(self.nodes)

    def __contains__(self, name: str) -> bool:
        """Whether there is an operation of that name."""
        return name in self.nodes

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations, in topological order: as added."""
        return tuple(self)

    def operation(self, name: str) -> Operation:
        """Return the operation of a name."""
        found: Operation = self._node(name)["operation"]
        return found

    def shape(self, name: str) -> Shape:
        """Shape of an operation's output for one image."""
        found: Shape = self._node(name)["shape"]
        return found

    def predecessors(self, name: str) -> tuple[str, ...]:
        """Whose outputs an operation reads, in order; one that is read twice is there twice."""
        found: tuple[str, ...] = self._node(name)["inputs"]
        return found

    def successors(self, name: str) -> tuple[str, ...]:
        """Who reads an operation's output, in the order of adding; each once."""
        self._node(name)
        return tuple(self.nodes.successors(name))

    def input_shapes(self, name: str) -> tuple[Shape, ...]:
        """Shapes of what an operation reads, for one image."""
        return tuple(self.shape(source) for source in self.predecessors(name))

    def _node(self, name: str) -> dict[str, Any]:
        if name not in self.nodes:
            raise InputError(f"network {self.name}: there is no operation '{name}'")
        node: dict[str, Any] = self.nodes.nodes[name]
        return node

    @property
    def input(self) -> str:
        """Name of the operation where images come in."""
        return next(operation.name for operation in self if isinstance(operation, Input))

    @property
    def output(self) -> str:
        """Name of the operation whose output no other reads."""
        return next(
            each.name for each in reversed(self.operations) if not self.successors(each.name)
        )

    @property
    def image(self) -> Shape:
        """Shape of one image."""
        return self.shape(self.input)

    @property
    def classes(self) -> int:
        """Number of logits.

        Raises
        ------
        ShapeError
            If the output is no list of logits.
        """
        shape = self.shape(self.output)
        if shape[1:] != (1, 1):
            raise ShapeError(
                f"network {self.name}: its output '{self.output}' is {shape_text(shape)}, expected "
                "was one logit for each class (classes×1×1)"
            )
        return shape[0]

    # -- parameters and costs --------------------------------------------------------------------

    def parameters_of(self, name: str) -> tuple[Parameter, ...]:
        """Return one operation's arrays, by their full names."""
        found = self.operation(name).parameters(*self.input_shapes(name))
        return tuple(replace(each, name=f"{name}.{each.name}") for each in found)

    def parameter(self, name: str) -> Parameter:
        """Return an array of the network by its full name.

        Raises
        ------
        InputError
            If there is none of that name.
        """
        operation = name.rpartition(".")[0]
        for found in self.parameters_of(operation) if operation in self else ():
            if found.name == name:
                return found
        raise InputError(f"network {self.name}: there is no parameter '{name}'")

    @property
    def parameters(self) -> dict[str, Parameter]:
        """All arrays of the network by full name, in the order of a state dict of PyTorch."""
        return {
            parameter.name: parameter
            for operation in self
            for parameter in self.parameters_of(operation.name)
        }

    @property
    def trained_words(self) -> int:
        """Trained numbers: what people call the number of parameters."""
        return sum(each.words for each in self.parameters.values() if each.trained)

    def forward_flops(self, images: int = 1, name: str | None = None) -> int:
        """Flops of the forward pass, of one operation or of all."""
        if name is None:
            return sum(self.forward_flops(images, operation.name) for operation in self)
        return self.operation(name).forward_flops(images, *self.input_shapes(name))

    def backward_flops(self, images: int = 1, name: str | None = None) -> int:
        """Flops of the backward pass, of one operation or of all.

        The images need no gradient. Where several operations read one output, adding up its
        gradients is counted with the operation that made it.
        """
        if name is None:
            return sum(self.backward_flops(images, operation.name) for operation in self)
        sources = self.predecessors(name)
        if not sources:
            return 0
        operation, shapes = self.operation(name), self.input_shapes(name)
        needed = any(not isinstance(self.operation(each), Input) for each in sources)
        readers = sum(self.predecessors(each).count(name) for each in self.successors(name))
        adding = max(readers - 1, 0) * operation.output_words(images, *shapes)
        return adding + operation.backward_flops(images, *shapes, input_gradient=needed)

    def output_words(self, images: int = 1, name: str | None = None) -> int:
        """Numbers that an operation gives, or all of them (the input's images included)."""
        if name is None:
            return sum(self.output_words(images, operation.name) for operation in self)
        return self.operation(name).output_words(images, *self.input_shapes(name))

    def describe(self, images: int = 1) -> list[dict[str, Any]]:
        """Return a row for each operation: numbers and texts, for tables and JSON.

        Keys: ``name``, ``kind``, ``details``, ``inputs`` (names), ``output_shape`` (of one image),
        ``parameters`` (trained numbers), ``output_words``, ``forward_flops``, ``backward_flops``.
        """
        return [
            {
                "name": operation.name,
                "kind": operation.kind,
                "details": operation.details(),
                "inputs": list(self.predecessors(operation.name)),
                "output_shape": list(self.shape(operation.name)),
                "parameters": sum(
                    each.words for each in self.parameters_of(operation.name) if each.trained
                ),
                "output_words": self.output_words(images, operation.name),
                "forward_flops": self.forward_flops(images, operation.name),
                "backward_flops": self.backward_flops(images, operation.name),
            }
            for operation in self
        ]

    # -- identity, and files ---------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes; ``json.dumps`` of it goes into checkpoints."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "name": self.name,
            "operations": [
                operation.as_json() | {"inputs": list(self.predecessors(operation.name))}
                for operation in self
            ],
        }

    @classmethod
    def from_json(cls, content: Any) -> OperationGraph:
        """Make the graph that `as_json` described; its operations may stand in any order.

        Raises
        ------
        FormatError
            If it is something else.
        ShapeError
            As for `of_operations`.
        """
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FormatError(f"not a network: its 'format' should be '{_FORMAT}'")
        if content.get("version") != _VERSION:
            raise FormatError(
                f"a network of format version {content.get('version')}, expected {_VERSION}"
            )
        name, rows = content.get("name"), content.get("operations")
        if not isinstance(name, str) or not isinstance(rows, list):
            raise FormatError("a network must have a 'name' and a list of 'operations'")
        operations = []
        for row in rows:
            inputs = row.get("inputs") if isinstance(row, dict) else None
            if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
                raise FormatError(
                    f"network {name}: an operation must have a list of 'inputs', found "
                    f"{str(row)[:80]}"
                )
            attributes = {key: value for key, value in row.items() if key != "inputs"}
            try:
                operations.append((operation_from_json(attributes), inputs))
            except InputError as error:
                raise type(error)(f"network {name}: {error}") from error
        return cls.of_operations(name, operations)

    @property
    def identity(self) -> str:
        """SHA-256 of the structure, 64 digits: operations with names, attributes, and inputs.

        Neither the network's name nor the order of adding is in it.
        """
        rows = self.as_json()["operations"]
        rows.sort(key=lambda row: row["name"])
        text = json.dumps(rows, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Whether both have the same structure; see `identity`."""
        return isinstance(other, OperationGraph) and self.identity == other.identity

    def __hash__(self) -> int:
        """Return a hash of the identity."""
        return hash(self.identity)


def _names(names: Sequence[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(f"'{name}'" for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
