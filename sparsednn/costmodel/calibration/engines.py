"""Measures what the sparse engines cost besides their blocks: calls, layers, memory, optimizers.

Some of it can be timed alone (loops over parameters, derivatives). The rest is what real runs take
more than their blocks: runs of random networks that are narrow and deep, wide and shallow, with
many images and one, so that each cost is most of the difference in some of them. The coefficients
are those of a fit to all of them (`fit`). The networks are `sparse.block_matrix`'s.

Must not know: ranks. What messages cost is measured in `exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np

from sparsednn._jit import read_only
from sparsednn.activations import Activation
from sparsednn.comm.alone import Alone
from sparsednn.costmodel.calibration.fit import fit_linear, residuals_of
from sparsednn.costmodel.calibration.sparse import block_matrix
from sparsednn.costmodel.calibration.timing import FULL, Action, Effort, in_rounds, paced, repeated
from sparsednn.costmodel.platform import Platform
from sparsednn.costmodel.sparse.kernels import OPTIMIZERS, SparseRates
from sparsednn.costmodel.sparse.terms import run_terms, step_terms
from sparsednn.costmodel.sparse.training import divided_step
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.distributed.shard import whole_shard
from sparsednn.inputs import InputSet
from sparsednn.kernels.cpu import NumbaPlan, aligned, in_threads
from sparsednn.kernels.packing import pack
from sparsednn.kernels.sizes import row_stride
from sparsednn.kernels.tile_loops import bias_gradients, load_columns, multiply_derivative
from sparsednn.kernels.updates import adam, momentum_sgd, plain_sgd
from sparsednn.machine import machine
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.training.data import LocalExamples
from sparsednn.training.losses import Targets, loss_gradient
from sparsednn.training.optimizers import SGD
from sparsednn.training.placed import PlacedNetwork
from sparsednn.training.settings import Settings

__all__ = ["measure_small", "random_network"]

#: Width, rows that share a pattern, pattern length, layers, and the images of runs with it.
_RUNS: Final = (
    (64, 8, 16, 2, (1, 48, 960)),
    (64, 8, 16, 96, (1, 48, 480)),
    (320, 4, 32, 12, (1, 96, 384)),
    (768, 8, 48, 10, (1, 48, 480)),
    (768, 1, 24, 6, (48, 240)),
    (1536, 1, 40, 8, (1, 48, 192)),
    (2560, 2, 40, 6, (48, 144)),
    (5120, 1, 48, 20, (48,)),
    (5120, 8, 64, 4, (1, 48)),
    (448, 1, 8, 1, (192, 1920)),
    (1216, 8, 16, 1, (48, 960)),
    (2304, 8, 32, 2, (48, 480)),
    (832, 32, 32, 10, (1, 48, 480)),
    (576, 16, 32, 16, (48, 240)),
    (3328, 32, 64, 5, (1, 48, 192)),
)
#: Width, rows that share a pattern, pattern length, layers, and the batches of steps with it.
_STEPS: Final = (
    (24, 8, 8, 1, (8,)),
    (24, 8, 8, 24, (8, 64)),
    (200, 1, 20, 3, (16, 96)),
    (640, 1, 32, 4, (24, 96)),
    (640, 8, 64, 4, (24, 96)),
    (1600, 1, 24, 3, (48, 160)),
    (1600, 2, 48, 8, (48,)),
    (448, 1, 8, 1, (48, 192)),
    (320, 4, 32, 12, (16, 64)),
    (3584, 1, 48, 3, (16, 64)),
    (1280, 8, 32, 10, (16, 64)),
    (96, 2, 24, 3, (16, 256)),
)
#: Costs of a step that are timed by themselves, on tiles of so many rows and columns.
_ALONE: Final = ("load_element", "bias_row", "bias_element", "loss_element")
_TILES: Final = ((64, 16), (256, 64), (1024, 24), (2048, 96))
#: Blocks whose pattern the block before has, too.
_AGAIN: Final = "again"
#: Of the steps, those that a team of threads does, too.
_TEAMS: Final = slice(2, None, 2)
_PARAMETERS: Final = (1 << 14, 1 << 18, 1 << 22)


def random_network(width: int, height: int, length: int, layers: int, seed: int) -> SparseNetwork:
    """Make a network of equal layers (`sparse.block_matrix`) in which nothing dies."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(layers):
        one = block_matrix(width, width, height, length, random)
        made.append(
            SparseLayer(
                one.indptr,
                one.indices,
                np.abs(one.values),
                width,
                bias=0.01,
                activation="relu",
                check=False,
            )
        )
    return SparseNetwork(made, name=f"calibration-{width}x{layers}")


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of an engine: what is timed, what its blocks take, and how often each cost occurs."""

    action: Action
    blocks: float
    terms: Mapping[str, float]
    known: float = 0.0  # seconds that are measured by themselves


def measure_small(
    platform: Platform,
    *,
    effort: Effort = FULL,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure the small costs of one process.

    Parameters
    ----------
    platform
        With ``measured["sparse"]``, the blocks of this machine.
    effort, progress
        As for `sparse.measure_blocks`.

    Returns
    -------
    table, residuals
        What belongs into ``measured["sparse"]`` besides the blocks: ``small`` (`kernels.SMALL`),
        ``last_cache_bytes``, ``busy``; and the errors of whole runs.
    """

    def told(what: str) -> None:
        if progress is not None:
            progress(what)

    last = float(machine().l3)
    rates = replace(SparseRates.of(platform), last_cache=last)
    told("sparse engines: inference")
    runs = [_inference(rates, *one) for one in _each(_RUNS)]
    small, inference, residuals = _fitted("inference", runs, effort)
    again = max(0.1, small.pop(_AGAIN) / max(inference, 0.1))
    told("sparse engines: loops")
    loops, parameters = _loops(effort)
    small |= loops
    told("sparse engines: training")
    known = replace(
        rates, small={**rates.small, **small}, parameters=parameters, inference_factor=inference,
        again_factor=again,
    )  # fmt: skip
    more, training, errors = _fitted(
        "training", [_step(known, *one) for one in _each(_STEPS)], effort
    )
    small |= more
    told("sparse engines: threads")
    busy, small["thread"] = _threads(effort)
    known = replace(known, small={**known.small, **small}, training_factor=training, busy=busy)
    team, small["meet"], of_teams = _teams(replace(platform, measured={}), known, effort)
    table = {
        "small": small, "last_cache_bytes": last, "busy": busy, "parameters": parameters,
        "inference_factor": inference, "training_factor": training, "again_factor": again,
        "team_factor": team,
    }  # fmt: skip
    return table, [residuals, errors, *of_teams]


def _each(runs: tuple[tuple[Any, ...], ...]) -> list[tuple[SparseNetwork, int]]:
    """Networks with the images of each run."""
    found = []
    for number, (width, height, length, layers, sizes) in enumerate(runs):
        network = random_network(width, height, length, layers, number)
        found += [(network, images) for images in sizes]
    return found


def _fitted(
    what: str, runs: list[_Run], effort: Effort
) -> tuple[dict[str, float], float, dict[str, Any]]:
    """Costs by name that explain what runs take besides their blocks; and the blocks' factor."""
    seconds = in_rounds([run.action for run in runs], effort)
    names = list(runs[0].terms)
    terms = [np.array([run.terms[name] for run in runs]) for name in names]
    blocks = np.array([run.blocks for run in runs])
    # Blocks among others may be a little slower, or quicker, than alone: a factor near 1.
    known = np.array([run.known for run in runs])
    left = np.maximum(seconds - known, 0.05 * seconds)
    fitted = fit_linear([blocks, *terms], left, of=seconds)
    factor, *costs = fitted.coefficients.tolist()
    found = dict(zip(names, costs, strict=True))
    told = known + factor * blocks + sum(c * t for c, t in zip(costs, terms, strict=True))
    return found, max(0.1, factor), residuals_of(told, seconds).as_table(f"sparse {what}")


def _dense_images(n_in: int, images: int) -> InputSet:
    values = np.random.default_rng(images).uniform(0.5, 1.5, (n_in, images)).astype(np.float32)
    return InputSet.from_dense(values)


def _inference(rates: SparseRates, network: SparseNetwork, images: int) -> _Run:
    plan = NumbaPlan(network)
    inputs = _dense_images(network.n_in, images)
    work = SparseWork.whole(network)

    def counted(by: SparseRates) -> tuple[float, dict[str, float]]:
        nonzeros = float(inputs.indices.size)
        return run_terms(by, work, images, columns=plan.tiling.columns, nonzeros=nonzeros)

    every, terms = counted(rates)
    first, _ = counted(replace(rates, again_factor=0.0))
    return _Run(repeated(lambda: plan.run(inputs)), first, {**terms, _AGAIN: every - first})


def _teams(
    platform: Platform, rates: SparseRates, effort: Effort
) -> tuple[float, float, list[dict[str, Any]]]:
    """What a team of threads takes over what each thread's share does; seconds of one meeting."""
    cores = machine().cores
    if cores < 2:
        return 1.0, 0.0, []
    rates = replace(rates, small={**rates.small, "meet": 0.0})
    actions, serial, divided, meetings = [], [], [], []
    for network, batch in _each(_STEPS)[_TEAMS]:
        actions.append(_steps(network, batch, cores)[0])
        work = SparseWork.whole(network, training=True)
        parts = divided_step(platform, work, batch, threads=cores, rates=rates)
        serial.append(parts[0])
        divided.append(parts[1])
        meetings.append(parts[2])
    seconds = in_rounds(actions, effort)
    left = np.maximum(seconds - np.array(serial), 0.05 * seconds)
    terms = [np.array(divided), np.array(meetings)]
    factor, meet = fit_linear(terms, left, of=seconds).coefficients.tolist()
    told = np.array(serial) + factor * terms[0] + meet * terms[1]
    return max(0.1, factor), meet, [residuals_of(told, seconds).as_table("sparse training, team")]


def _steps(network: SparseNetwork, batch: int, threads: int) -> tuple[Action, int]:
    """Steps of training, and the columns of a piece."""
    settings = Settings(epochs=1, batch_size=batch, optimizer=SGD(momentum=0.9))
    alone = Alone()
    placed = PlacedNetwork(
        whole_shard(network), None, alone, alone, settings,
        kernel="numba", threads=threads, columns=batch,
    )  # fmt: skip
    labels = np.random.default_rng(0).integers(0, network.n_out, batch)
    examples = LocalExamples(_dense_images(network.n_in, batch), labels, None, "calibration")
    ids = np.arange(batch)

    def step() -> None:
        placed.stepper.train(examples, ids, batch, rate=1e-9, step=1)

    return repeated(step), placed.engine.tile


def _step(rates: SparseRates, network: SparseNetwork, batch: int) -> _Run:
    action, tile = _steps(network, batch, 1)
    work = SparseWork.whole(network, training=True)
    backward, rest, terms = step_terms(rates, work, batch, tile=tile, optimizer="momentum")
    alone = sum(rates.seconds(name) * terms.pop(name) for name in _ALONE)
    return _Run(action, backward, terms, rest + alone)


def _loops(effort: Effort) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Costs of `_ALONE` and of a derivative; seconds of a parameter in optimizers' loops."""
    random = np.random.default_rng(0)
    actions: list[Action] = []
    sizes = []
    for size in _PARAMETERS:
        theta, gradient, first, second = (
            random.random(size, np.float32) + np.float32(0.1) for _ in range(4)
        )
        actions += [
            repeated(partial(_plain, theta, gradient)),
            repeated(partial(_momentum, theta, gradient, first)),
            repeated(partial(_adam, theta, gradient, first, second)),
        ]
        sizes += [size] * 3
    y = random.random(1 << 16, np.float32)
    s = random.random(1 << 16, np.float32)
    low, high = np.float32(0), np.float32(np.inf)

    def derivatives() -> None:
        multiply_derivative(s, y, 0, low, high)

    first_alone = len(actions) + 1
    alone = [make(*shape) for make in (_loss, _load, _bias) for shape in _TILES]
    seconds = in_rounds([*actions, repeated(derivatives), *alone], effort)
    each = (seconds[: len(sizes)] / np.array(sizes)).reshape(len(_PARAMETERS), len(OPTIMIZERS))
    parameters = {name: each[:, column].tolist() for column, name in enumerate(OPTIMIZERS)}
    elements = np.array([rows * columns for rows, columns in _TILES], float)
    rows = np.array([rows for rows, _ in _TILES], float)
    loss, load, bias = seconds[first_alone:].reshape(3, len(_TILES))
    # Calls have a cost besides, which is part of a step's.
    small = {
        "derivative_element": float(seconds[first_alone - 1] / s.size),
        "loss_element": float(fit_linear([1.0, elements], loss).coefficients[1]),
        "load_element": float(fit_linear([1.0, elements], load).coefficients[1]),
    }
    _, per_row, per_element = fit_linear([1.0, rows, elements], bias).coefficients.tolist()
    return small | {"bias_row": per_row, "bias_element": per_element}, {
        "sizes": [float(n) for n in _PARAMETERS],
        **parameters,
    }


def _loss(rows: int, columns: int) -> Action:
    y = np.random.default_rng(0).random((rows, row_stride(columns)), np.float32)[:, :columns]
    labels = np.random.default_rng(1).integers(0, rows, columns)
    targets, every, alone = Targets(labels, None), np.arange(rows, dtype=np.int32), Alone()
    identity = Activation("identity")
    return repeated(
        lambda: loss_gradient("cross-entropy", identity, y, targets, every, rows, columns, alone)
    )


def _load(rows: int, columns: int) -> Action:
    images = _dense_images(rows, columns)
    ld = row_stride(columns)
    tile = aligned((rows * ld + 256,), np.float32)
    narrow, wide = np.asarray(images.indices, np.uint16), np.zeros(0, np.int32)
    values = np.asarray(images.values, np.float32)
    begins, ids = read_only(images.indptr), np.arange(columns)
    features, weights = (read_only(narrow), read_only(wide)), read_only(values)
    return repeated(lambda: load_columns(begins, *features, weights, ids, tile, rows, ld))


def _bias(rows: int, columns: int) -> Action:
    layer = block_matrix(rows, 64, 1, 1, np.random.default_rng(0))
    net = pack(SparseNetwork([layer], name="calibration"))
    ld = row_stride(columns)
    delta = np.random.default_rng(0).random(rows * ld, np.float32)
    out = np.zeros(rows, np.float32)
    return repeated(lambda: bias_gradients(net, 0, delta, ld, columns, out, 0, np.float32(1)))


def _plain(theta: Any, gradient: Any) -> None:
    plain_sgd(theta, gradient, scale=1.0, decay=0.0, rate=1e-9, threads=1)


def _momentum(theta: Any, gradient: Any, buffer: Any) -> None:
    momentum_sgd(
        theta, gradient, buffer, scale=1.0, decay=0.0, momentum=0.9, nesterov=False, rate=1e-9,
        threads=1,
    )  # fmt: skip


def _adam(theta: Any, gradient: Any, first: Any, second: Any) -> None:
    adam(
        theta, gradient, first, second, scale=1.0, decay=0.0, beta1=0.9, beta2=0.999,
        correction=1.0, epsilon=1e-8, size=1e-9, threads=1,
    )  # fmt: skip


def _threads(effort: Effort) -> tuple[float, float]:
    """How much longer a core takes when all are busy; seconds of one more thread."""
    cores = machine().cores
    if cores < 2:
        return 1.0, 0.0
    network = random_network(640, 2, 32, 8, 99)
    alone, inputs = NumbaPlan(network), _dense_images(640, 16 * 48)
    all_inputs = _dense_images(640, cores * 16 * 48)
    together = NumbaPlan(network, threads=cores)

    def nothing() -> None:
        in_threads(lambda: None, cores)

    (started,) = in_rounds([repeated(nothing)], effort)
    ratios = []
    for _ in range(3 * effort.rounds):
        one = paced(repeated(lambda: alone.run(inputs)), 2)
        ratios.append((paced(repeated(lambda: together.run(all_inputs)), 2) - started) / one)
    # The probe sees one core only: others' work on another one is what the high ratios are.
    usual = float(np.quantile(ratios, 0.25))
    return min(max(1.0, usual), float(cores)), float(started / (cores - 1))
