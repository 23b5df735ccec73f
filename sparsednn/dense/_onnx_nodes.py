"""The nodes of an ONNX file: in which order to read them, and what to call their operations.

Use it through `sparsednn.dense.onnx_file`; must not know: what the operators mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import networkx

from sparsednn.errors import FormatError
from sparsednn.formats._onnx_graph import OnnxFile, label

__all__ = ["Names", "ordered"]

_WEIGHT: Final = ".weight"
_WEIGHTED: Final = ("Conv", "Gemm", "MatMul", "BatchNormalization")


def ordered(file: OnnxFile) -> list[Any]:
    """Return the nodes so that each stands behind those it reads; in the file's order, if it can.

    Raises
    ------
    FormatError
        If nodes read each other in a cycle, a tensor is made twice, or one that is read is not.
    """
    made: dict[str, int] = {}
    for place, node in enumerate(file.nodes):
        if not node.output or not node.output[0]:
            raise FormatError(f"{file.path}: {label(node)} has no output")
        for name in filter(None, node.output):
            if made.setdefault(name, place) != place or name in file.inputs:
                raise FormatError(
                    f"{file.path}: {label(node)} gives '{name}', which is there twice"
                )
    links = networkx.DiGraph()
    links.add_nodes_from(range(len(file.nodes)))
    for place, node in enumerate(file.nodes):
        for name in filter(None, node.input):
            if name in made:
                links.add_edge(made[name], place)
            elif name not in file.inputs and not file.is_constant(name):
                raise FormatError(
                    f"{file.path}: {label(node)} takes '{name}', which nothing in the file gives"
                )
    try:
        places = list(networkx.lexicographical_topological_sort(links))
    except networkx.NetworkXUnfeasible as error:
        cycle = [label(file.nodes[edge[0]]) for edge in networkx.find_cycle(links)]
        raise FormatError(
            f"{file.path}: nodes read each other in a cycle: {' → '.join([*cycle, cycle[0]])}"
        ) from error
    return [file.nodes[place] for place in places]


class Names:
    """Names of operations, each given once.

    Parameters
    ----------
    file
        The file.
    nodes
        Its nodes, in order.
    """

    def __init__(self, file: OnnxFile, nodes: Iterable[Any]) -> None:
        self._file = file
        self._taken: set[str] = set()
        self._of_weights: dict[str, str] = {}  # by the tensor that the node gives
        # These first: no other node shall take them away.
        for node in nodes:
            weight = self._weight(node)
            prefix = _word(weight.removesuffix(_WEIGHT))
            if weight.endswith(_WEIGHT) and prefix and prefix not in self._taken:
                self._of_weights[node.output[0]] = self.unique(prefix)

    def _weight(self, node: Any) -> str:
        """Name of a node's weights in the file, behind what exporters put in between."""
        name = node.input[1] if node.op_type in _WEIGHTED and len(node.input) > 1 else ""
        for _ in self._file.nodes:
            source = self._file.producer(name)
            if source is None or source.op_type not in ("Identity", "Transpose"):
                break
            name = source.input[0] if source.input else ""
        return str(name)

    def of(self, node: Any) -> str:
        """Return the name of a node's operation: that of its weights, or else its own."""
        tensor = node.output[0]
        return self._of_weights.get(tensor) or self.unique(node.name or tensor)

    def unique(self, name: str) -> str:
        """Return a name that nobody has, like the one given, and take it."""
        wanted = found = _word(name) or "operation"
        number = 1
        while found in self._taken:
            number += 1
            found = f"{wanted}_{number}"
        self._taken.add(found)
        return found


def _word(name: str) -> str:
    """Return a name without spaces, as operations have it."""
    return "_".join(str(name).split())
