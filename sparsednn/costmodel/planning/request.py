"""`ModelRequest`: which network a person wants to have planned, and how; it makes the model.

Must not know: platforms, tables.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sparsednn.costmodel.planning.partitions import is_file, parse_methods
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.planning.dense import DenseModel
    from sparsednn.costmodel.planning.rows import Model
    from sparsednn.costmodel.planning.sparse import SparseModel
    from sparsednn.dense.operations import Shape
    from sparsednn.formats import ReadOptions

__all__ = ["OPTIMIZERS", "ModelRequest", "is_dense", "refuse_dense"]

OPTIMIZERS: Final = {"sgd": 0, "momentum": 1, "adam": 2}
"""Optimizers, and how many arrays as long as the parameters each keeps."""

Report = Callable[[str, float], None]
Warn = Callable[[str], None]


def is_dense(model: str) -> bool:
    """Whether a person means a dense network: its name, a graph (.json), a checkpoint of one.

    >>> is_dense("vgg16"), is_dense("graph-challenge:1024-120")
    (True, False)
    """
    from sparsednn.dense.networks.catalogue import NETWORKS

    if os.path.isfile(model):
        if model.endswith(".safetensors"):
            from sparsednn.dense.state_dict import stored_network
            from sparsednn.errors import FormatError

            try:
                return stored_network(model) is not None
            except FormatError:
                return False  # whoever reads it says what is wrong
        return model.endswith(".json")
    return model in NETWORKS or model.endswith(".json")


def refuse_dense(model: str) -> None:
    """Refuse dense networks, where only sparse ones will do.

    Raises
    ------
    UsageError
        If it is one.
    """
    if is_dense(model):
        raise UsageError(f"{model} is a dense network: only sparse ones are simulated")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """Options, as typed; those that a kind of network does not have are refused.

    Attributes
    ----------
    model
        Path or name.
    training
        None: a step of training for dense networks, inference for sparse ones.
    partition
        Sparse: methods with commas between them, see `partitions.METHODS`, or partitions' files.
    algorithm
        Dense: strategies with commas between them.
    effort, seed, cache
        Of partitions.
    layers, sampled, bias, options
        Sparse: see `sampling.load_sample`.
    image, classes
        Dense: of a network by name.
    """

    model: str
    training: bool | None = None
    threads: int | None = None
    optimizer: str = "sgd"
    partition: str | None = None
    effort: str = "quick"
    seed: int = 1
    cache: Path | None = None
    layers: int | None = None
    sampled: int | None = None
    bias: float | None = None
    options: ReadOptions | None = None
    algorithm: str | None = None
    image: Shape | None = None
    classes: int | None = None

    def check(self) -> None:
        """Tell what is wrong with the options, as far as can be told without reading.

        Raises
        ------
        UsageError
            Naming the option.
        """
        from sparsednn.partitioners.methods import EFFORTS

        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads must be at least 1, found {self.threads}")
        if self.optimizer not in OPTIMIZERS:
            raise UsageError(f"--optimizer is one of {', '.join(OPTIMIZERS)}: '{self.optimizer}'")
        if self.effort not in EFFORTS:
            raise UsageError(f"--effort is one of {', '.join(EFFORTS)}: '{self.effort}'")
        if self.cache is not None and not self.cache.is_dir():
            raise UsageError(f"--cache {self.cache}: there is no such folder")
        dense = is_dense(self.model)
        others = (
            {"--partition": self.partition, "--layers": self.layers, "--cache": self.cache,
             "--layers-sampled": self.sampled, "--bias": self.bias}
            if dense
            else {"--algorithm": self.algorithm, "--image": self.image, "--classes": self.classes}
        )  # fmt: skip
        for option, value in others.items():
            if value is not None:
                kind = "sparse" if dense else "dense"
                raise UsageError(f"{option} belongs to {kind} networks; {self.model} is none")
        if self.options is not None and dense:
            self.options.refuse(self.model, "it is a dense network")
        if dense:
            from sparsednn.costmodel.planning.dense import parse_strategies

            parse_strategies(self.algorithm)
        else:
            parse_methods(self.partition)

    @property
    def files(self) -> tuple[str, ...]:
        """Partitions' files among the methods."""
        return tuple(filter(is_file, parse_methods(self.partition)))

    def make(self, *, report: Report | None = None, warn: Warn | None = None) -> Model:
        """Read the network, and return what can be planned.

        Raises
        ------
        SparseDNNError
            As reading does.
        """
        return self.dense() if is_dense(self.model) else self.sparse(report=report, warn=warn)

    def sparse(self, *, report: Report | None = None, warn: Warn | None = None) -> SparseModel:
        """Return the model of a sparse network; see `make`."""
        from sparsednn.costmodel.planning.partitions import PartitionMaker
        from sparsednn.costmodel.planning.sampling import load_sample
        from sparsednn.costmodel.planning.sparse import SparseModel
        from sparsednn.partitioners import read_partition

        given = {file: read_partition(file) for file in self.files}
        # A partition's file belongs to the whole network.
        sampled = 0 if given and self.sampled is None else self.sampled
        sample = load_sample(
            self.model, layers=self.layers, sampled=sampled, bias=self.bias, options=self.options
        )
        for file, partition in given.items():
            partition.check(sample.network, file=file)
        maker = PartitionMaker(
            sample.network, effort=self.effort, seed=self.seed, given=given, cache=self.cache,
            report=report, warn=warn,
        )  # fmt: skip
        return SparseModel(
            sample, training=bool(self.training), methods=parse_methods(self.partition),
            maker=maker, threads=self.threads, optimizer=self.optimizer,
        )  # fmt: skip

    def dense(self) -> DenseModel:
        """Return the model of a dense network; see `make`."""
        from sparsednn.costmodel.planning.dense import DenseModel, parse_strategies
        from sparsednn.dense.runs.source import network_file, network_for

        if network_file(self.model) is not None:
            for option, value in (("--image", self.image), ("--classes", self.classes)):
                if value is not None:
                    raise UsageError(
                        f"{option} belongs to a network's name; {self.model} is a file"
                    )
        training = self.training is not False
        return DenseModel(
            network_for(self.model, self.image, self.classes),
            training=training,
            strategies=parse_strategies(self.algorithm),
            threads=self.threads,
            optimizer_slots=OPTIMIZERS[self.optimizer] if training else 0,
        )
