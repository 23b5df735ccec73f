"""From what a person types to objects: a MODEL or INPUTS argument is a path or a name.

Networks by name: ``graph-challenge:1024-120`` (neurons-layers), ``graph-challenge:1024`` (120
layers); to be trained, ``mlp:784-300-10@0.05`` and ``radixnet:784-1024x4-10`` (see
`sparsednn.datasets.topologies`). Inputs by name: ``graph-challenge:1024`` (needs MNIST),
``digits:1024``, and those of `sparsednn.datasets.labelled`. Anything else is a path; a path wins
over a name that looks the same.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sparsednn.errors import FormatError, InputError, UnknownNameError, UsageError
from sparsednn.inputs import InputSet
from sparsednn.network import NetworkSummary, SparseNetwork

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions

__all__ = ["is_path", "load_inputs", "load_network", "official_size", "summarize"]

_OFFICIAL = re.compile(r"graph-challenge:([0-9]{1,9})(?:-([0-9]{1,9}))?")
_DEFAULT_LAYERS = 120  # of a name that does not tell


def is_path(text: str) -> bool:
    """Whether the text is meant as a path: it exists, or it could not be a name."""
    named = text in ("digits", "mnist") or (":" in text and "/" not in text.partition(":")[0])
    return os.path.exists(text) or not named


def _number(text: str, what: str, name: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UnknownNameError(f"'{name}': '{text}' is not a number of {what}") from None


def load_network(
    model: str,
    *,
    layers: int | None = None,
    bias: float | None = None,
    options: ReadOptions | None = None,
) -> SparseNetwork:
    """Load the network that `model` names.

    Parameters
    ----------
    model
        A path (any known format) or a name.
    layers
        Only the first so many layers.
    bias
        For formats that store none (a Graph Challenge folder): one bias for all neurons.
    options
        For checkpoints: which tensors are layers, and what such a file does not say.

    Raises
    ------
    InputError
        (any of its kinds) if there is no such file or name, or its content cannot be used.
    UsageError
        If an option does not apply to this kind of model.
    MissingDependencyError
        If the file's format needs a library that is not installed.
    """
    if layers is not None and layers < 1:
        raise UsageError(f"--layers must be at least 1, found {layers}")
    if is_path(model):
        from sparsednn.formats import read_network

        return read_network(Path(model), layers=layers, bias=bias, options=options)
    kind, _, rest = model.partition(":")
    if kind not in ("graph-challenge", "mlp", "radixnet"):
        raise UnknownNameError(
            f"'{model}': no such file, and no network of this name (known: "
            "graph-challenge:NEURONS-LAYERS, mlp:WIDTH-WIDTH-…@DENSITY, radixnet:WIDTH-WIDTH-…)"
        )
    if bias is not None:
        raise UsageError(f"--bias does not apply to '{model}': its biases are part of it")
    if options is not None:
        options.refuse(model, "it is a network by name")
    from sparsednn.datasets import graph_challenge_network, topology_network

    if kind != "graph-challenge":
        return topology_network(model, layers=layers)
    neurons, dash, depth = rest.partition("-")
    if dash and layers is not None and layers > _number(depth, "layers", model):
        raise InputError(f"'{model}' has {depth} layers, --layers asks for {layers}")
    count = layers or (_number(depth, "layers", model) if dash else _DEFAULT_LAYERS)
    return graph_challenge_network(_number(neurons, "neurons", model), count)


def official_size(model: str, layers: int | None) -> tuple[int, int] | None:
    """Neurons and layers of a name like graph-challenge:1024-120, if it is one."""
    named = _OFFICIAL.fullmatch(model)
    if named is None or (layers is not None and layers < 1):
        return None
    depth = int(named[2]) if named[2] else None
    if depth is not None and layers is not None and layers > depth:
        return None
    return int(named[1]), layers or depth or _DEFAULT_LAYERS


def summarize(
    model: str,
    *,
    layers: int | None = None,
    bias: float | None = None,
    options: ReadOptions | None = None,
    check: bool = False,
) -> NetworkSummary:
    """Summarize a network, reading as little as its format allows; `check` reads everything."""
    if is_path(model):
        from sparsednn.formats import summarize_network

        return summarize_network(
            Path(model), layers=layers, bias=bias, options=options, check=check
        )
    return load_network(model, layers=layers, bias=bias, options=options).summary


def load_inputs(
    source: str,
    *,
    n_features: int | None = None,
    mnist: Path | None = None,
    images: int | None = None,
) -> InputSet:
    """Load the input columns that `source` names.

    Parameters
    ----------
    source
        A path (TSV, .npz, .npy, .safetensors) or a name.
    n_features
        What the network takes, where it is known; the inputs must have it.
    mnist
        The folder with the MNIST idx files, for names that need them.
    images
        Only the first so many images.

    Raises
    ------
    InputError
        (any of its kinds) if there is no such file or name, or its content cannot be used.
    """
    if images is not None and images < 1:
        raise UsageError(f"--images must be at least 1, found {images}")
    if is_path(source):
        from sparsednn.formats import read_inputs

        inputs = read_inputs(Path(source), n_features=n_features)
        if not inputs.n_images:
            raise FormatError(f"{source}: there are no images in it")
    else:
        inputs = _inputs_by_name(source, mnist, images)
    if images is not None and images > inputs.n_images:
        raise InputError(f"{source}: has {inputs.n_images} images, --images asks for {images}")
    if images is not None and images < inputs.n_images:
        inputs = inputs.columns(0, images)
    return inputs


def _inputs_by_name(source: str, mnist: Path | None, images: int | None) -> InputSet:
    from sparsednn import datasets

    kind, _, rest = source.partition(":")
    # The first images of binary sets are made without the others where no labels are wanted.
    match kind:
        case "graph-challenge":
            pixels, _labels = datasets.load_mnist(mnist, "train")
            neurons = _number(rest.partition("-")[0], "neurons", source)
            return datasets.graph_challenge_inputs(neurons, pixels, limit=images)
        case "digits" if rest not in ("", "train", "test"):
            return datasets.digits_inputs(_number(rest, "neurons", source), limit=images)
        case "digits" | "mnist" if rest in ("", "train", "test"):
            return datasets.load_labelled(source, mnist=mnist)[0]
        case _:
            raise UnknownNameError(
                f"'{source}': no such file, and no inputs of this name (known: "
                "graph-challenge:NEURONS, digits, digits:NEURONS, mnist, mnist:train, mnist:test)"
            )
