"""Measures whole sparse runs on ranks, and fits what they take more than their parts.

Parts are timed in loops that find everything in the cache: blocks on tiles that stay, messages in
buffers that stay. In a run a message is packed from a tile that was just written, goes through
another core's cache and is read where it has just arrived; ranks wait for each other in every
layer, so that the slower of two cores counts, moment by moment. Both are more than their parts, and
how much is a property of the machine: it is fitted to runs of random networks on ranks, which have
many words and few, wide layers and narrow ones:

    run = g · others + f · blocks + e · exchanges + c · layers + b · bytes

with the seconds of blocks, exchanges and everything else as they are alone, and the bytes that the
busiest rank sends. Must not know: networks that anybody runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.calibration.fit import fit_linear
from sparsednn.costmodel.calibration.timing import Effort, in_rounds
from sparsednn.network import SparseLayer, SparseNetwork

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.costmodel.platform import Platform

__all__ = ["fit_linked", "linked_network", "measure_linked"]

#: Neurons of a rank, rows that share a pattern, pattern length, columns that a rank gives to each
#: other one, layers, images of a run or step.
_RUNS: Final = (
    (320, 8, 32, 16, 10, 96),
    (320, 8, 32, 160, 10, 480),
    (512, 1, 24, 64, 8, 48),
    (512, 1, 24, 448, 8, 240),
    (960, 2, 32, 480, 6, 96),
    (960, 8, 48, 960, 6, 240),
    (1600, 1, 40, 200, 4, 48),
    (1600, 8, 64, 1600, 4, 144),
    (1600, 1, 40, 1200, 4, 1),
    (64, 4, 16, 32, 40, 96),
    (64, 4, 16, 32, 40, 1),
    (2400, 4, 48, 1200, 4, 96),
)
_COEFFICIENTS: Final = ("others", "blocks", "exchanges", "layer_seconds", "seconds_per_byte")
_WORD: Final = 4


@lru_cache(maxsize=4)
def linked_network(
    ranks: int, rows: int, height: int, length: int, shared: int, layers: int
) -> tuple[SparseNetwork, NDArray[np.int32]]:
    """Make a network of equal layers, and the owners of its neurons, the same in all layers.

    Each of `ranks` has `rows` neurons; theirs have random patterns of their own inputs and the
    first `shared` of each other rank's.
    """
    random = np.random.default_rng((ranks, rows, shared))
    width = ranks * rows
    few = max(1, length // height)
    made = []
    for _ in range(layers):
        parts = []
        for rank in range(ranks):
            foreign = [other * rows + np.arange(shared) for other in range(ranks) if other != rank]
            known = np.concatenate([rank * rows + np.arange(rows), *foreign])
            known.sort()
            across = known[: known.size // height * height].reshape(-1, height)
            drawn = random.integers(0, len(across) - few + 1, (rows // height, few))
            places = np.sort(drawn, axis=1) + np.arange(few)
            parts.append(np.repeat(across[places].reshape(rows // height, -1), height, axis=0))
        indices = np.concatenate(parts).astype(np.int32)
        indptr = np.arange(width + 1, dtype=np.int64) * indices.shape[1]
        values = random.random(indices.size, np.float32) / np.float32(indices.shape[1])
        made.append(
            SparseLayer(
                indptr,
                indices.reshape(-1),
                values,
                width,
                bias=0.01,
                activation="relu",
                check=False,
            )
        )
    owners = np.repeat(np.arange(ranks, dtype=np.int32), rows)
    return SparseNetwork(made, name=f"linked-{width}x{layers}"), owners


def measure_linked(comm: Communicator, effort: Effort, *, step: int = 1) -> dict[str, Any]:
    """Time runs and steps on these ranks; collective, the same on all.

    Returns
    -------
    ``{"inference": [seconds, …], "training": […]}``, of every `step`-th of the runs; 0 where a kind
    has none.
    """
    from sparsednn.costmodel.calibration.exchange import slowest

    found: dict[str, Any] = {}
    for kind, prepare in (("inference", _prepare_run), ("training", _prepare_step)):
        seconds = []
        for run in _RUNS[::step]:  # one after another: together they would not fit the memory
            call, free = prepare(comm, run)
            seconds.append(float(in_rounds([slowest(comm, partial(_repeat, call))], effort)[0]))
            free()
        found[kind] = seconds
    return found


def _repeat(call: Any, times: int) -> None:
    for _ in range(times):
        call()


def _prepare_run(comm: Communicator, run: tuple[int, ...]) -> tuple[Any, Any]:
    from sparsednn.distributed.compiled import CompiledPlan, PackedShard
    from sparsednn.distributed.plan import exchange_plans

    *shape, images = run
    shard, mine = _shard(comm, tuple(shape), images)
    plans = exchange_plans(shard, comm)
    plan = CompiledPlan(
        PackedShard.of(shard, plans), plans, comm, threads=1, columns=images, drop=False
    )
    return partial(plan.run, mine), plan.free


def _prepare_step(comm: Communicator, run: tuple[int, ...]) -> tuple[Any, Any]:
    from sparsednn.comm.alone import Alone
    from sparsednn.training.data import LocalExamples
    from sparsednn.training.optimizers import SGD
    from sparsednn.training.placed import PlacedNetwork
    from sparsednn.training.settings import Settings

    *shape, images = run
    shard, mine = _shard(comm, tuple(shape), images)
    settings = Settings(epochs=1, batch_size=images, optimizer=SGD(momentum=0.9))
    placed = PlacedNetwork(
        shard, None, comm, Alone(), settings, kernel="numba", threads=1, columns=images
    )
    labels = np.random.default_rng(0).integers(0, shard.n_out, images)
    examples = LocalExamples(mine, labels, None, "calibration")
    ids = np.arange(images)
    call = partial(placed.stepper.train, examples, ids, images, rate=1e-9, step=1)
    return call, placed.free


def _shard(comm: Communicator, shape: tuple[int, ...], images: int) -> tuple[Any, Any]:
    """This rank's rows, and its inputs of so many images, all of them features."""
    from sparsednn.distributed.shard import LayerShard, NetworkShard, owned
    from sparsednn.inputs import InputSet

    network, owners = linked_network(comm.size, *shape)
    rows = owned(owners, comm.rank)
    shard = NetworkShard(
        network.name, "", network.edges, tuple(LayerShard.of(layer, rows) for layer in network),
        comm.rank, comm.size, (owners,) * (len(network) + 1), network.droppable_from,
    )  # fmt: skip
    dense = np.random.default_rng(comm.rank).uniform(0.5, 1.5, (rows.size, images))
    return shard, InputSet.from_dense(dense.astype(np.float32))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a run's parts take, as the models have it."""

    others: float
    blocks: float
    exchanges: float
    layers: float
    nbytes: float


def fit_linked(
    platform: Platform, ranks: int, found: Mapping[str, Sequence[float]], *, step: int = 1
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Fit the formula above to what `measure_linked` found.

    Parameters
    ----------
    platform
        With the tables of blocks and exchanges.
    ranks, found, step
        On how many ranks; what was found.

    Returns
    -------
    tables, residuals
        For ``measured["linked"]``: ``kind``, ``ranks`` and the five coefficients; errors.
    """
    tables, residuals = [], []
    for kind, seconds in found.items():
        measured = np.array(seconds)
        parts = [_parts(platform, ranks, kind, run) for run in _RUNS[::step]]
        terms = [
            np.array([getattr(one, name) for one in parts])
            for name in ("others", "blocks", "exchanges", "layers", "nbytes")
        ]
        fitted = fit_linear(terms, measured)
        residuals.append(fitted.residuals.as_table(f"sparse {kind}, {ranks} ranks"))
        coefficients = dict(zip(_COEFFICIENTS, fitted.coefficients.tolist(), strict=True))
        tables.append({"kind": kind, "ranks": ranks, **coefficients})
    return tables, residuals


def _parts(platform: Platform, ranks: int, kind: str, run: tuple[int, ...]) -> _Parts:
    from sparsednn.costmodel.sparse.inference import predict_inference
    from sparsednn.costmodel.sparse.training import predict_training
    from sparsednn.costmodel.sparse.work import SparseWork

    *shape, images = run
    network, owners = linked_network(ranks, *shape)
    vectors = [owners] * (len(network) + 1)
    training = kind == "training"
    work = SparseWork.of(network, vectors, ranks, training=training)
    if training:
        predicted = predict_training(platform, work, images, optimizer="momentum")
        parts = dict(predicted.parts)
        blocks = parts["forward"] + parts["backward"]
        passes, pieces = 2, int(predicted.details["pieces"])
    else:
        predicted = predict_inference(
            platform, work, images, nonzeros_per_image=float(work.widths[0])
        )
        parts = dict(predicted.parts)
        blocks = parts["compute"] + parts["layers"] + parts["pack"]
        passes, pieces = 1, int(predicted.details["tiles_per_rank"])
    others = predicted.seconds - blocks - parts["exchange"]
    nbytes = _WORD * passes * images * float(work.words_sent.max(axis=1).sum())
    layers = float(passes * pieces * work.layers)
    return _Parts(others, blocks, parts["exchange"], layers, nbytes)
