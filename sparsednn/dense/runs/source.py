"""Networks as a person names them — by name, or as a file — and whether pictures fit them.

Must not know: ranks, training.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsednn.datasets.pictures import Pictures, load_pictures
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks import make_network
from sparsednn.dense.onnx_file import read_onnx
from sparsednn.dense.operations import Shape, shape_text
from sparsednn.dense.state_dict import network_in, stored_logits, stored_network
from sparsednn.errors import FormatError, InputError, ShapeError
from sparsednn.formats._common import reading

__all__ = [
    "check_pictures",
    "network_file",
    "network_for",
    "network_of_numbers",
    "numbers_file",
    "pictures_record",
    "validation_pictures",
]

_SYNTHETIC_TESTS = 256
_GRAPH, _ONNX = ".json", ".onnx"
_SUFFIXES = (_GRAPH, _ONNX, ".safetensors", ".pt", ".pth", ".bin")


def network_file(name: str) -> Path | None:
    """Return the file that a person means; None if it is a name.

    >>> network_file("lenet5"), network_file("run/checkpoint.safetensors")
    (None, PosixPath('run/checkpoint.safetensors'))
    """
    path = Path(name)
    return path if "/" in name or path.suffix in _SUFFIXES or os.path.isfile(name) else None


def numbers_file(name: str) -> Path | None:
    """Return the file if it should have a network's numbers; None if it is a name, or a graph.

    >>> numbers_file("own.json"), numbers_file("run/checkpoint.safetensors")
    (None, PosixPath('run/checkpoint.safetensors'))
    """
    path = network_file(name)
    return None if path is None or path.suffix == _GRAPH else path


def network_for(
    name: str, image: Shape | None = None, classes: int | None = None
) -> OperationGraph:
    """Return the network of a name, made for these images, or that of a file as it is there.

    Parameters
    ----------
    name
        One of `networks.NETWORKS`; a file that `state_dict.write_state_dict` or a training wrote;
        what `OperationGraph.as_json` returns, in a file (.json); or a network in ONNX (.onnx).
    image, classes
        Of what it shall learn; None: what is usual for it. A file's network stays as it is.

    Raises
    ------
    UnknownNameError
        If there is no such network.
    FormatError
        If there is no such file, it is damaged, or has no network in it that can be read.
    ShapeError
        If images are too small for the network, or a file's network does not end in logits.
    MissingDependencyError
        If ONNX is needed and not installed.
    """
    path = network_file(name)
    if path is None:
        return make_network(name, image=image, classes=classes)
    graph = None
    with reading(path), open(path, "rb") as file:
        if path.suffix == _GRAPH:
            graph = network_in(file.read(), path, "it")
    if path.suffix == _ONNX:
        graph = read_onnx(path).graph
    if graph is not None:
        try:
            _ = graph.classes
        except ShapeError as error:
            raise ShapeError(f"{path}: {error}") from error
        return graph
    graph = stored_network(path) if path.suffix == ".safetensors" else None
    if graph is None:
        raise FormatError(
            f"{path}: there is no network in it, only its numbers: give the network's name, and "
            f"--weights {path}"
        )
    return graph


def network_of_numbers(name: str, file: Path, image: Shape, classes: int) -> OperationGraph:
    """Return the network whose numbers are in a file, for images of a shape.

    Parameters
    ----------
    name, image
        As for `network_for`.
    file
        A state dict. Its last layer says how many classes a network that is named has: there may
        be more than the images to look at have.
    classes
        Where the last layer is not in the file, which is told when the numbers are read.

    Raises
    ------
    UnknownNameError, FormatError, ShapeError, MissingDependencyError
        As for `network_for` and `state_dict.stored_logits`.
    """
    graph = network_for(name, image, classes)
    if network_file(name) is not None:
        return graph
    found = stored_logits(file, graph)
    return graph if found is None else network_for(name, image, found)


def check_pictures(graph: OperationGraph, pictures: Pictures) -> None:
    """Refuse pictures that a network cannot look at, or has no class for.

    Raises
    ------
    ShapeError
        If their sizes differ.
    InputError
        If there are more classes than logits.
    """
    if pictures.image_shape != graph.image:
        raise ShapeError(
            f"{pictures.name} has images of {shape_text(pictures.image_shape)}, {graph.name} was "
            f"made for {shape_text(graph.image)}"
        )
    for first in np.flatnonzero(pictures.labels >= graph.classes)[:1]:
        raise InputError(
            f"{pictures.name}: image {first} has the label {pictures.labels[first]}, but "
            f"{graph.name} has {graph.classes} classes"
        )


def validation_pictures(
    inputs: str, validate: str | None, learned: Pictures, folder: Path | None
) -> Pictures | None:
    """Load what to test with, with the means and deviations of what is learned.

    Parameters
    ----------
    inputs, learned
        What is learned: as a person names it, and the pictures.
    validate
        Pictures, of a name those to test; None: the other part of `inputs`, if it has one.
    folder
        As for `load_pictures`.

    Returns
    -------
    Pictures
        None where nothing belongs to `inputs`: it is a file, or itself what should be tested.

    Raises
    ------
    InputError, UsageError
        As `load_pictures`.
    """
    source, limit = validate, None
    if source is None:
        if os.path.isfile(inputs) or inputs.endswith((":test", ".npz")):
            return None
        source = inputs.removesuffix(":train")
        if source.startswith("synthetic:"):
            limit = min(learned.n_images, _SYNTHETIC_TESTS)
    found = load_pictures(source, "test", folder=folder, limit=limit)
    return replace(found, mean=learned.mean, std=learned.std)


def pictures_record(pictures: Pictures) -> dict[str, Any]:
    """Return what somebody who looks at other pictures with a network needs to know of these."""
    channels = pictures.image_shape[0]
    mean = np.zeros(channels) if pictures.mean is None else pictures.mean
    std = np.ones(channels) if pictures.std is None else pictures.std
    return {
        "name": pictures.name,
        "scale": pictures.scale,
        "mean": mean.tolist(),
        "std": std.tolist(),
    }
