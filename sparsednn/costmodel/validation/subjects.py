"""What a rank runs of a case, prepared once and run again and again.

Each is the engine that the commands use: `kernels` and `DistributedRun` behind ``infer``,
`PlacedNetwork` behind ``train``, `CnnStepper` behind ``cnn train``. Collective: all ranks of the
world make, run and free the same subjects in the same order.

Must not know: rounds and turns, platforms, predictions.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from sparsednn.costmodel.validation.cases import Case
from sparsednn.costmodel.validation.networks import Files
from sparsednn.training.optimizers import SGD, Adam, Optimizer

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["Subject", "make_subject"]

_BATCHES: Final = 4  # different ones, one after another
_RATE: Final = 1e-6  # parameters move, but little: nothing dies
_ALIVE: Final = 0.99
_IMAGES: Final = 256  # of the first, whose outputs are looked at
_OPTIMIZERS: Final[dict[str, Optimizer]] = {
    "sgd": SGD(),
    "momentum": SGD(momentum=0.9),
    "adam": Adam(),
}


class Subject(Protocol):
    """A case, ready to run."""

    def wake(self) -> None:
        """Set what is the process's and not the subject's, before a turn."""

    def once(self) -> float:
        """Run once; returns seconds of this rank."""

    def trouble(self) -> str:
        """Why its times would mean nothing; "" if all is well. The same on all ranks."""

    def free(self) -> None:
        """Give everything back."""


def make_subject(case: Case, world: Communicator, files: Files) -> Subject:
    """Prepare a case; `world` has as many ranks as it needs."""
    if case.kind == "inference":
        return _Alone(case, files) if case.ranks == 1 else _Inference(case, world, files)
    if case.kind == "training":
        return _Training(case, world, files)
    return _Cnn(case, world)


class _Alone:
    """Inference in this process: no MPI."""

    def __init__(self, case: Case, files: Files) -> None:
        from sparsednn.formats import read_inputs, read_network
        from sparsednn.kernels import get_kernel

        network = read_network(files.network(case))
        self._inputs = read_inputs(files.inputs(case, network.n_in))
        self._n_out = network.n_out
        self._plan = get_kernel("numba").plan(network, threads=case.threads)
        self._plan.run(self._inputs.columns(0, 0))  # compiles, or loads from the cache on disk

    def wake(self) -> None:
        """Nothing is the process's."""

    def once(self) -> float:
        start = time.perf_counter()
        self._plan.run(self._inputs)
        return time.perf_counter() - start

    def trouble(self) -> str:
        some = self._inputs.columns(0, min(_IMAGES, self._inputs.n_images))
        outputs = np.zeros((self._n_out, some.n_images), np.float32)
        self._plan.run(some, outputs)
        return _alive(int(np.count_nonzero(outputs)), outputs.size)

    def free(self) -> None:
        """Nothing is MPI's."""


class _Inference:
    """Inference on ranks."""

    def __init__(self, case: Case, world: Communicator, files: Files) -> None:
        from sparsednn.distributed import DistributedRun
        from sparsednn.formats.native import summarize

        self._world = world
        features = summarize(files.network(case)).layers[0].n_in
        self._run = DistributedRun(
            world,
            str(files.network(case)),
            str(files.inputs(case, features)),
            partition=files.partition(case) if case.parts > 1 else None,
            grid=(case.groups, case.parts),
            threads=case.threads,
            drop=False,
        )
        self._categories = 0

    def wake(self) -> None:
        """Nothing is the process's."""

    def once(self) -> float:
        result = self._run.run()
        self._categories = int(result.categories.size)
        return result.infer_seconds

    def trouble(self) -> str:
        # Columns only; `networks.alive_network` has looked at the rows.
        self.once()
        return _shared(self._world, _alive(self._categories, self._run.n_images))

    def free(self) -> None:
        self._run.free()


class _Training:
    """A step of training a sparse network, on one rank or more."""

    def __init__(self, case: Case, world: Communicator, files: Files) -> None:
        from sparsednn.comm.grid import ProcessGrid
        from sparsednn.distributed.shard import owned, shard_network, whole_shard
        from sparsednn.formats import read_network
        from sparsednn.inputs import InputSet
        from sparsednn.partitioners import read_partition
        from sparsednn.training.data import LocalExamples
        from sparsednn.training.placed import PlacedNetwork, warm_up
        from sparsednn.training.settings import Settings
        from sparsednn.training.turns import in_turn

        self._case, self._world = case, world
        self._grid = ProcessGrid(world, (case.groups, case.parts))
        across, group = self._grid.along(0), self._grid.along(1)
        settings = Settings(
            epochs=1, batch_size=case.batch, rate=_RATE, optimizer=_OPTIMIZERS[case.optimizer]
        )
        in_turn(world, lambda: warm_up(settings))
        network = read_network(files.network(case))
        if case.parts > 1:
            shard = shard_network(network, read_partition(files.partition(case)), group.rank)
        else:
            shard = whole_shard(network)
        self._depth = len(network)
        share = -(-case.batch // case.groups)
        self._placed = PlacedNetwork(
            shard, None, group, across, settings, kernel="numba", threads=case.threads,
            columns=share,
        )  # fmt: skip
        rng = np.random.default_rng(case.batch)
        images = _BATCHES * case.batch
        dense = rng.uniform(0.5, 1.5, (network.n_in, images)).astype(np.float32)
        labels = rng.integers(0, network.n_out, images)
        mine = InputSet.from_dense(dense[owned(shard.owners[0], shard.part)])
        self._examples = LocalExamples(mine, labels, None, "random")
        number = across.rank
        self._own = slice(
            case.batch * number // case.groups, case.batch * (number + 1) // case.groups
        )
        self._steps = 0

    def wake(self) -> None:
        """Nothing is the process's."""

    def once(self) -> float:
        case = self._case
        first = self._steps % _BATCHES * case.batch
        self._steps += 1
        own = np.arange(first, first + case.batch)[self._own]
        self._world.barrier()
        start = time.perf_counter()
        self._placed.stepper.train(self._examples, own, case.batch, rate=_RATE, step=self._steps)
        return time.perf_counter() - start

    def trouble(self) -> str:
        self.once()
        counts = np.zeros(2, np.int64)
        for layer in range(1, self._depth + 1):
            x = self._placed.engine.activations_of(layer)
            counts += np.array([np.count_nonzero(x), x.size])
        self._world.allreduce(counts)
        return _alive(int(counts[0]), int(counts[1]))

    def free(self) -> None:
        self._placed.free()
        self._grid.free()


class _Cnn:
    """A step of training a dense network: what `dense.runs.benchmark` does, kept between turns."""

    def __init__(self, case: Case, world: Communicator) -> None:
        from dataclasses import replace

        from sparsednn.datasets.pictures import load_pictures
        from sparsednn.dense.networks import make_network
        from sparsednn.dense.planning.request import Planning
        from sparsednn.dense.runs.placing import place_network
        from sparsednn.dense.runs.stepper import CnnStepper

        self._case, self._world = case, world
        graph = make_network(case.network, case.image)
        optimizer = _OPTIMIZERS[case.optimizer]
        _, self._model = place_network(
            world, graph, Planning(case.algorithm or None), case.batch, threads=case.threads,
            slots=len(optimizer.slots),
        )  # fmt: skip
        size = "x".join(map(str, graph.image))
        pictures = load_pictures(f"synthetic:{size}:{graph.classes}", limit=case.batch * _BATCHES)
        mean, std = pictures.moments()
        self._pictures = replace(pictures, mean=mean, std=std)
        self._stepper = CnnStepper(self._model, optimizer, threads=case.threads)
        self._model.batch(case.batch)
        self._steps = 0

    def wake(self) -> None:
        """PyTorch has one number of threads for all; whoever makes a backend sets it."""
        from sparsednn.dense.local import make_backend

        make_backend("auto", self._case.threads)

    def once(self) -> float:
        case = self._case
        first = self._steps % _BATCHES * case.batch
        self._steps += 1
        ids = np.arange(first, first + case.batch)
        self._world.barrier()
        start = time.perf_counter()
        self._stepper.train(self._pictures, ids, rate=_RATE, step=self._steps)
        return time.perf_counter() - start

    def trouble(self) -> str:
        """Nothing: dense products take zeros as they take anything, and NaN ends a step."""
        return ""

    def free(self) -> None:
        self._model.free()


def _alive(nonzero: int, of: int) -> str:
    if nonzero >= _ALIVE * of:
        return ""
    return f"only {nonzero} of {of} activations are not zero: its times would mean nothing"


def _shared(world: Communicator, trouble: str) -> str:
    """What rank 0 found, on all ranks."""
    found: Any = world.broadcast_json(trouble if world.rank == 0 else None)
    return str(found)
