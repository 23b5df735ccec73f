"""The sparse networks of the cases, alive, and how their neurons are divided.

A case keeps the *pattern* of the network that it names. Its weights are drawn anew, all positive,
each row's adding up to 0.9, and all biases are 0.1, so from inputs of about 1 all activations stay
near 1: none is ever zero, however deep the network. What is zero is quicker (kernels skip rows and
columns of zeros), and a model that is held against that would be held against the data. No column
may be dropped either, as a column of zeros would not stay one.

Must not know: ranks that run, predictions.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from sparsednn.costmodel.validation.cases import Case
from sparsednn.errors import AnswerMismatchError, MissingDependencyError
from sparsednn.inputs import InputSet
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.partitioners.partition import Partition

__all__ = [
    "Files",
    "alive_network",
    "case_inputs",
    "divided",
    "nonzeros_per_image",
    "write_files",
]

_ROW_SUM: Final = 0.9
_BIAS: Final = 0.1
#: Images that have all features.
_FEW: Final = 64
#: Of many images a quarter of the features are set: enough that no feature is zero in a tile.
_DENSITY: Final = 0.25
_SEED: Final = 20
#: Networks, and partitions, that stay in memory: to predict and to write files need the same ones.
_KEPT: Final = 32


@lru_cache(maxsize=_KEPT)
def alive_network(name: str) -> SparseNetwork:
    """Return the network of a name with weights that keep it alive; see the module.

    Raises
    ------
    InputError
        As `sources.load_network`.
    AnswerMismatchError
        If an activation is zero all the same.
    """
    from sparsednn.sources import load_network

    rng = np.random.default_rng(_SEED)
    layers = [_alive(layer, rng) for layer in load_network(name)]
    network = SparseNetwork(layers, name=name)
    x = np.ones((network.n_in, 2), np.float32)
    for number, layer in enumerate(network, 1):
        x = layer.weight @ x + layer.bias[:, None]
        if not (x > 0).all():
            raise AnswerMismatchError(f"{name}: layer {number} has activations of zero")
    return network


def _alive(layer: SparseLayer, rng: np.random.Generator) -> SparseLayer:
    values = rng.uniform(0.5, 1.5, layer.nnz).astype(np.float32)
    lengths = np.diff(layer.indptr)
    filled = lengths > 0
    sums = np.ones(layer.n_out, np.float32)
    sums[filled] = np.add.reduceat(values, layer.indptr[:-1][filled])
    values *= np.repeat(_ROW_SUM / sums, lengths).astype(np.float32)
    return SparseLayer(
        layer.indptr, layer.indices, values, layer.n_in, bias=_BIAS, activation=layer.activation,
        check=False,
    )  # fmt: skip


@lru_cache(maxsize=_KEPT)
def divided(name: str, parts: int, method: str) -> Partition:
    """Divide the neurons of `alive_network` among so many parts; the same each time.

    Parameters
    ----------
    name, parts, method
        As of a `Case`.

    Raises
    ------
    MissingDependencyError
        If the method is a library that is not installed.
    """
    from sparsednn.partitioners.methods import Options, make_partition

    network = alive_network(name)
    # The whole machine may be used to partition; only deterministic methods are.
    options = Options(parts, effort="quick")
    if method == "joint":
        return make_partition(network, options)
    return make_partition(network, options, method="multiphase", partitioner=method)


def nonzeros_per_image(case: Case, features: int) -> float:
    """Return how many features of an image are not zero."""
    if case.kind == "inference" and case.batch > _FEW:
        return _DENSITY * features
    return float(features)


def case_inputs(features: int, images: int) -> InputSet:
    """Make inputs: all features are 1 in few images, every fourth or so in many."""
    shape = (images, features)
    if images <= _FEW:
        chosen = np.ones(shape, bool)
    else:
        drawn = np.random.default_rng(_SEED).integers(0, 256, shape, np.uint8)
        chosen = drawn < int(256 * _DENSITY)
    indptr = np.zeros(images + 1, np.int64)
    np.cumsum(chosen.sum(axis=1), out=indptr[1:])
    kind = np.uint16 if features <= 1 << 16 else np.int32
    indices = np.nonzero(chosen)[1].astype(kind)
    return InputSet(indptr, indices, None, features, name="ones")


class Files:
    """Where the files of the cases are; names only.

    Parameters
    ----------
    folder
        Of all of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def network(self, case: Case) -> Path:
        """Of the network."""
        return self.folder / f"{_plain(case.network)}.safetensors"

    def inputs(self, case: Case, features: int) -> Path:
        """Of the inputs."""
        return self.folder / f"inputs-{features}-{case.batch}.safetensors"

    def partition(self, case: Case) -> Path:
        """Of the partition."""
        return self.folder / f"{_plain(case.network)}.{case.method}.p{case.parts}.npz"


def write_files(cases: Iterable[Case], files: Files) -> dict[str, str]:
    """Write what the ranks of all cases read, each file once.

    Returns
    -------
    Name of a case that cannot be run here → why, in one line.
    """
    from sparsednn.formats import write_inputs, write_network

    missing: dict[str, str] = {}
    for case in cases:
        if case.kind == "cnn":
            continue
        network = alive_network(case.network)
        if case.parts > 1 and not (path := files.partition(case)).exists():
            try:
                divided(case.network, case.parts, case.method).save(path)
            except MissingDependencyError as error:
                missing[case.name] = str(error)
                continue
        if not (path := files.network(case)).exists():
            write_network(network, path)
        if case.kind == "inference":
            path = files.inputs(case, network.n_in)
            if not path.exists():
                write_inputs(case_inputs(network.n_in, case.batch), path)
    return missing


def _plain(name: str) -> str:
    """A name that can be a file's.

    >>> _plain("mlp:8-8@0.5#1")
    'mlp-8-8_0.5_1'
    """
    return name.replace(":", "-").replace("@", "_").replace("#", "_").replace("/", "_")
