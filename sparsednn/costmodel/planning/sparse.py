"""A sparse network on ranks: grids of groups × parts, partitions by several methods, threads.

Must not know: files, the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsednn.costmodel.planning.partitions import DEFAULT_METHODS, PartitionMaker, most_parts
from sparsednn.costmodel.planning.rows import Configuration
from sparsednn.costmodel.planning.sampling import Sample, extended
from sparsednn.costmodel.sparse.work import SparseWork

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform
    from sparsednn.costmodel.prediction import Prediction

__all__ = ["SparseModel", "thread_counts"]


def thread_counts(platform: Platform, ranks: int, most: int | None = None) -> list[int]:
    """Return numbers of threads per rank that are worth a look: one, and a rank's share of a node.

    Parameters
    ----------
    most
        This number only; None: as the platform has cores.
    """
    if most is not None:
        return [most]
    if platform.processor.kind == "gpu":
        return [1]
    share = platform.node.processors // platform.ranks_on_node(ranks)
    return sorted({1, max(1, share)})


class SparseModel:
    """A sparse network, ready to be planned.

    Parameters
    ----------
    sample
        The network, or its first layers.
    training
        Predict a step of training instead of inference.
    methods
        Of partitions, see `partitions.METHODS`; or names that the maker was given.
    maker
        Makes partitions; None: with its defaults.
    threads
        Of each rank; None: one, or a rank's share of its node.
    optimizer
        One of ``sgd``, ``momentum``, ``adam``; for training.
    """

    def __init__(
        self,
        sample: Sample,
        *,
        training: bool = False,
        methods: Sequence[str] = DEFAULT_METHODS,
        maker: PartitionMaker | None = None,
        threads: int | None = None,
        optimizer: str = "sgd",
    ) -> None:
        self._sample, self._training, self._methods = sample, training, tuple(methods)
        self.maker = maker or PartitionMaker(sample.network)
        self._threads, self._optimizer = threads, optimizer
        self._works: dict[tuple[str, int], SparseWork | None] = {}
        network = sample.network
        self._most = most_parts([layer.n_out for layer in network])

    @property
    def name(self) -> str:
        """Of the whole network."""
        return self._sample.name

    @property
    def notes(self) -> Sequence[str]:
        """What was left out."""
        return [note for note in (self._sample.note,) if note]

    @property
    def training(self) -> bool:
        """Whether a step of training is predicted."""
        return self._training

    @property
    def sample(self) -> Sample:
        """The network."""
        return self._sample

    @property
    def methods(self) -> tuple[str, ...]:
        """Of partitions."""
        return self._methods

    @property
    def threads(self) -> int | None:
        """Of each rank, if that is fixed."""
        return self._threads

    @property
    def optimizer(self) -> str:
        """Of training."""
        return self._optimizer

    def configurations(
        self, platform: Platform, ranks: int, images: int, limit: float
    ) -> Sequence[Configuration]:
        """Return every grid of so many ranks, with every method and number of threads.

        Whatever the limit: which of them fit it is seen when they are predicted.

        Grids with more groups than images, or more parts than the widest layer has neurons, have
        ranks without work: they are left out, unless there is no other.
        """
        every = [m for m in range(1, ranks + 1) if ranks % m == 0]
        useful = [m for m in every if m <= self._most and ranks // m <= images]
        found = []
        for parts in useful or every[-1:]:
            strategies = self._methods if parts > 1 else ("data" if ranks > 1 else "alone",)
            found += [
                Configuration(ranks, strategy, f"{ranks // parts}x{parts}", threads)
                for strategy in strategies
                for threads in thread_counts(platform, ranks, self._threads)
            ]
        return found

    def work(self, method: str, parts: int) -> SparseWork | None:
        """Return the work of the whole network with a partition; None if there is none.

        Parameters
        ----------
        method, parts
            See `partitions.PartitionMaker.get`; with one part any method will do.
        """
        key = (method if parts > 1 else "", parts)
        if key not in self._works:
            self._works[key] = self._count(method, parts)
        return self._works[key]

    def _count(self, method: str, parts: int) -> SparseWork | None:
        sample = self._sample
        if parts == 1:
            work = SparseWork.whole(sample.network, training=self._training)
        else:
            partition = self.maker.get(method, parts)
            if partition is None:
                return None
            work = SparseWork.of(sample.network, partition, training=self._training)
        return extended(work, sample.start, sample.depth)

    def predict(
        self, platform: Platform, configuration: Configuration, images: int
    ) -> Prediction | None:
        """Return what the models say of a configuration; None if its partition cannot be made."""
        groups, parts = map(int, configuration.grid.split("x"))
        work = self.work(configuration.strategy, parts)
        if work is None:
            return None
        return predict_sparse(
            platform, work, images, groups=groups, threads=configuration.threads,
            training=self._training, optimizer=self._optimizer,
        )  # fmt: skip


def predict_sparse(
    platform: Platform,
    work: SparseWork,
    images: int,
    *,
    groups: int = 1,
    threads: int = 1,
    training: bool = False,
    optimizer: str = "sgd",
) -> Prediction:
    """Return the closed form of inference, or of a step of training."""
    if training:
        from sparsednn.costmodel.sparse.training import predict_training

        return predict_training(
            platform, work, images, groups=groups, threads=threads, optimizer=optimizer
        )
    from sparsednn.costmodel.sparse.inference import predict_inference

    return predict_inference(platform, work, images, groups=groups, threads=threads)
