"""ONNX files as networks: a graph of operations, and their arrays.

Products and batch normalisations have the names that PyTorch's exporter leaves at their weights
(``layer1.0.conv1`` of ``layer1.0.conv1.weight``), so that state dicts fit; all others, and those
without such weights, have their nodes' names. The number of images in the file does not matter.
What changes nothing is left out, and a Softmax at the end; every operator that has no operation
here is an error that names its node.

Must not know: ranks, training.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, NamedTuple

from numpy.typing import NDArray

from sparsednn.dense._onnx_nodes import Names, ordered
from sparsednn.dense._onnx_operators import Operators, Value
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import Input, Shape
from sparsednn.errors import FormatError, InputError
from sparsednn.formats._common import located, reading
from sparsednn.formats._onnx_graph import OnnxFile, label

__all__ = ["OnnxNetwork", "read_onnx"]

_OPSET: Final = 7  # since then broadcasting is NumPy's


class OnnxNetwork(NamedTuple):
    """A network of a file: its operations, and their arrays by full name, in the graph's shapes."""

    graph: OperationGraph
    arrays: dict[str, NDArray[Any]]


def read_onnx(path: str | os.PathLike[str]) -> OnnxNetwork:
    """Read a network from an ONNX file; external data beside it are found.

    Returns
    -------
    OnnxNetwork
        Named after the file. Arrays are float64 where the file's are, otherwise float32.

    Raises
    ------
    MissingDependencyError
        If onnx is not installed.
    FormatError
        If the file is damaged, no network of one input and one output, or has an operator or an
        attribute that is not read.
    ShapeError
        If shapes do not fit each other, or what operations here can do.
    """
    try:
        return _read(Path(path))
    except InputError as error:
        lines = str(error).splitlines()
        if len(lines) == 1:
            raise
        # In a damaged file there may be anything in names.
        raise type(error)(" ".join(lines)) from error


def _read(path: Path) -> OnnxNetwork:
    with reading(path):  # puts the file in front of a MemoryError
        file = OnnxFile(path)
        if file.opset < _OPSET:
            raise FormatError(
                f"{path}: is of ONNX opset {file.opset}, read are {_OPSET} and later ones"
            )
        image, output = _ends(file)
        nodes = ordered(file)
        graph, names = OperationGraph(path.stem), Names(file, nodes)
        source = graph.add(Input(names.unique(image), _image(file)))
        flat = len(file.inputs[image] or ()) == 2
        operators = Operators(file, graph, names, {image: Value(source, flat)})
        for node in nodes:
            # A size that somebody asks for is no use of the values.
            if node.op_type != "Shape" and not operators.values.keys().isdisjoint(node.input):
                operators.apply(node)
        _check_end(file, operators.values, image, output)
        with located(path):
            return OnnxNetwork(graph.finish(), operators.arrays)


def _ends(file: OnnxFile) -> tuple[str, str]:
    """Names of the one input and the one output."""
    for what, found in (("input", file.inputs), ("output", file.outputs)):
        if len(found) != 1:
            named = ", ".join(f"'{name}'" for name in found) or "none"
            raise FormatError(f"{file.path}: it must have one {what}, found {named}")
    return next(iter(file.inputs)), next(iter(file.outputs))


def _image(file: OnnxFile) -> Shape:
    """Shape of an image; of flat values, as many channels."""
    ((name, shape),) = file.inputs.items()
    sizes = [size for size in (shape or ())[1:] if size is not None]
    if shape is None or len(shape) not in (2, 4) or len(sizes) != len(shape) - 1:
        text = "unknown" if shape is None else [size or "?" for size in shape]
        raise FormatError(
            f"{file.path}: input '{name}' has shape {text}, expected images of a fixed size (N, "
            "channels, height, width), or (N, values): export the model with one"
        )
    channels, height, width = [*sizes, 1, 1][:3]
    return channels, height, width


def _check_end(file: OnnxFile, values: dict[str, Value], image: str, output: str) -> None:
    """Refuse a file whose output is not that of all that is computed of the images."""
    if output not in values:
        raise FormatError(
            f"{file.path}: its output '{output}' does not depend on its input '{image}'"
        )
    if values[output].unsure:
        raise FormatError(
            f"{file.path}: {values[output].unsure} arranges the output in an unknown way"
        )
    for name in values:
        if name != output and not file.readers(name):
            raise FormatError(
                f"{file.path}: {label(file.producer(name))} gives '{name}', which nobody reads"
            )
