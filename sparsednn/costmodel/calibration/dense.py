"""Measures what operations of dense networks cost, by training random networks on one process.

What a convolution takes depends on what was done before it: whether its input is still in the
cache, whether the library's code is, which threads are awake. So operations are timed where they
happen: in steps of the real model (`dense.model`, `dense.runs.stepper`) on random networks
(`dense_networks`), by the model's own stopwatch. Every network is visited several times, in turns
with all others, at the usual pace of the machine (`timing`): of each operation's times the lower
quartile of the visits counts.

The times of each kind of operation become a `Surface` (`costmodel.dense.surface`): coefficients,
and the measured shapes with their weights. How well that predicts is measured as well: of every
fifth network the time of a step is predicted from the other four fifths.

Must not know: what is predicted with it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.calibration.dense_networks import draw_network
from sparsednn.costmodel.calibration.fit import Residuals, residuals_of
from sparsednn.costmodel.calibration.timing import paced
from sparsednn.costmodel.dense.features import Rows
from sparsednn.costmodel.dense.surface import Surface, fit_surface
from sparsednn.costmodel.dense.work import local_work
from sparsednn.dense.flow import Flow

if TYPE_CHECKING:
    from sparsednn.dense.graph import OperationGraph
    from sparsednn.dense.local.base import LocalBackend

__all__ = ["measure_dense"]

#: Visits to each network, warm-up steps and counted steps of each.
_VISITS: Final = 5
_WARM, _COUNTED = 1, 2
#: Which of the sorted visits counts: the lower quartile.
_TAKEN: Final = 1
_RATE: Final = 1e-4
_FOLDS: Final = 5
#: Part of the time that the first visits may take; they have networks to make, too.
_FIRST: Final = 0.3
_FEWEST: Final = 5

_Laps = dict[tuple[str, str], float]


def measure_dense(
    backends: Sequence[str] | None = None,
    threads: Sequence[int] = (1, 2),
    seconds: float = 60.0,
    progress: Callable[[str], None] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the local backends.

    Parameters
    ----------
    backends
        Of `dense.local`; None: PyTorch where it is installed, and im2col.
    threads
        Numbers of threads.
    seconds
        About how long it may take, all together.
    progress
        Is told what is measured now.
    seed
        Of the random networks.

    Returns
    -------
    table
        For ``measured["dense"]``: ``backends`` → name → threads → kind → table of a `Surface`, and
        ``residuals``: for each backend and number of threads how far predicted steps of networks
        that were left out are from measured ones (model, median, worst, points).
    """
    from importlib.util import find_spec

    if backends is None:
        backends = ("torch", "im2col") if find_spec("torch") else ("im2col",)
    told = progress or (lambda what: None)
    share = seconds / (len(backends) * len(threads))
    tables: dict[str, Any] = {}
    residuals = []
    for backend in backends:
        tables[backend] = {}
        for count in threads:
            told(f"steps of random CNNs: {backend}, {count} thread{'s' * (count != 1)}")
            found = _observe(backend, count, share, seed)
            surfaces = _fitted(found)
            tables[backend][str(count)] = {k: one.as_table() for k, one in surfaces.items()}
            left = _left_out(found)
            residuals.append(left.as_table(f"CNN steps, {backend}, threads {count}"))
    return {"backends": tables, "residuals": residuals}


@dataclass(frozen=True, eq=False)
class _Observed:
    """One random network: its operations, and what a step took.

    Attributes
    ----------
    operations
        ``(kind, row, seconds)`` of each pass.
    seconds
        Of a step.
    """

    operations: list[tuple[str, Rows, float]]
    seconds: float


def _observe(backend: str, threads: int, seconds: float, seed: int) -> list[_Observed]:
    from sparsednn.dense.local import make_backend
    from sparsednn.dense.runs.warm_up import warm_up
    from sparsednn.training.optimizers import SGD

    local = make_backend(backend, threads)
    warm_up(local, np.float32, SGD(momentum=0.9))
    random = np.random.default_rng(seed)
    runs: list[_Run] = []
    begin = time.perf_counter()
    try:
        while time.perf_counter() - begin < _FIRST * seconds or len(runs) < _FEWEST:
            runs.append(_Run(*draw_network(random), local))
            runs[-1].visit()
        for _ in range(_VISITS - 1):
            for run in runs:
                run.visit()
        return [run.observed() for run in runs]
    finally:
        for run in runs:
            run.model.free()


class _Run:
    """A network that is trained a few steps at a time."""

    def __init__(self, graph: OperationGraph, images: int, local: LocalBackend) -> None:
        from sparsednn.comm.alone import Alone
        from sparsednn.datasets.pictures import load_pictures
        from sparsednn.dense.flow import products
        from sparsednn.dense.grids import Grid, Placement
        from sparsednn.dense.model import DenseModel
        from sparsednn.dense.runs.stepper import CnnStepper
        from sparsednn.training.optimizers import SGD

        alone = {name: Placement(Grid(), "data") for name in products(graph)}
        self.graph, self.images = graph, images
        self.model = DenseModel(Alone(), graph, alone, local)
        size = "x".join(map(str, graph.image))
        pictures = load_pictures(f"synthetic:{size}:{graph.classes}", limit=2 * images)
        mean, std = pictures.moments()
        self._pictures = replace(pictures, mean=mean, std=std)
        self._stepper = CnnStepper(self.model, SGD(momentum=0.9), threads=local.threads)
        self._steps = 0
        self._laps: list[_Laps] = []
        self._seconds: list[float] = []

    def visit(self) -> None:
        """Do some steps, and keep the median of each operation, at the usual pace."""
        laps: list[_Laps] = []
        taken: list[float] = []

        def steps(_: int) -> float:
            self._do(laps, taken)
            return 1.0

        usual = paced(steps, 1)  # of a second of this visit
        self._laps.append({key: median(lap[key] for lap in laps) * usual for key in laps[0]})
        self._seconds.append(median(taken) * usual)

    def _do(self, laps: list[_Laps], taken: list[float]) -> None:
        for number in range(_WARM + _COUNTED):
            self._steps += 1
            ids = np.arange(self.images) + self._steps % 2 * self.images
            self.model.watch.clear()
            begin = time.perf_counter()
            self._stepper.train(self._pictures, ids, rate=_RATE, step=self._steps)
            spent = time.perf_counter() - begin
            if number >= _WARM:
                taken.append(spent)
                laps.append(dict(self.model.watch.seconds))

    def observed(self) -> _Observed:
        """Return its operations with their times."""
        taken = min(_TAKEN, len(self._laps) - 1)
        laps = {key: sorted(lap[key] for lap in self._laps)[taken] for key in self._laps[0]}
        flow: Flow = self.model.batch(self.images).flow
        rows = []
        for operation in local_work(flow, training=True):
            spent = sum(laps.get(key, 0.0) for key in operation.laps)
            if spent > 0:
                rows.append((operation.kind, operation.rows[0], spent))
        return _Observed(rows, sorted(self._seconds)[taken])


def _by_kind(observed: Sequence[_Observed]) -> Iterator[tuple[str, Rows, NDArray[np.float64]]]:
    rows: dict[str, list[Any]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for one in observed:
        for kind, row, spent in one.operations:
            rows[kind].append(row)
            seconds[kind].append(spent)
    for kind, some in rows.items():
        yield kind, np.asarray(some, np.float64), np.asarray(seconds[kind], np.float64)


def _fitted(observed: Sequence[_Observed]) -> dict[str, Surface]:
    return {kind: fit_surface(kind, rows, seconds) for kind, rows, seconds in _by_kind(observed)}


def _left_out(observed: Sequence[_Observed]) -> Residuals:
    """Predict the step of each network from those of the other folds."""
    expected = np.zeros(len(observed))
    for fold in range(min(_FOLDS, len(observed))):
        surfaces = _fitted([one for at, one in enumerate(observed) if at % _FOLDS != fold])
        for at in range(fold, len(observed), _FOLDS):
            for kind, rows, seconds in _by_kind([observed[at]]):
                known = kind in surfaces
                expected[at] += surfaces[kind].seconds(rows).sum() if known else seconds.sum()
    return residuals_of(expected, [one.seconds for one in observed])
