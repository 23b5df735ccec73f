"""Training dense networks on any number of ranks: load, place, run epochs, save.

Called by all ranks alike. Every rank reads the pictures for itself. What a step does is in
`stepper`, where parameters lie in `parameters`, what a checkpoint has in `checkpoint`; this module
knows the order of it all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.datasets.pictures import Pictures, load_pictures
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.planning.request import Planning
from sparsednn.dense.runs.checkpoint import CnnCheckpoint, CnnState, write_cnn_checkpoint
from sparsednn.dense.runs.filling import fill_from_checkpoint, fill_from_file
from sparsednn.dense.runs.placing import check_dtype, place_network
from sparsednn.dense.runs.result import CnnResult
from sparsednn.dense.runs.source import (
    check_pictures,
    network_for,
    numbers_file,
    pictures_record,
    validation_pictures,
)
from sparsednn.dense.runs.stepper import PHASES, CnnStepper
from sparsednn.dense.runs.warm_up import warm_up
from sparsednn.errors import InputError
from sparsednn.training.checkpoints import CHECKPOINT, check_settings
from sparsednn.training.epochs import EpochLoop
from sparsednn.training.metrics import MetricsFile, metrics_in
from sparsednn.training.settings import Settings
from sparsednn.training.standing import Moment, Standing
from sparsednn.training.turns import in_turn

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.dense.concurrency.request import Concurrently
    from sparsednn.dense.concurrency.schedule import Schedule

__all__ = ["CnnRun"]

#: Settings that a run may be resumed with another value of: how long it goes on.
_MAY_DIFFER: Final = ("epochs",)
_COUNTS: Final = ("words", "predicted", "messages", "evaluation")
#: Verbs that belong to the loop, and to no formula of a network.
_ASIDE: Final = ("score", "norm")


class CnnRun(EpochLoop):
    """A network and pictures, placed on ranks, ready to be trained.

    Parameters
    ----------
    world
        All ranks.
    network
        A name, made for the pictures; or a file, whose network and numbers training begins with
        (.onnx, too; .json: the network alone).
    classes
        Of a name: how many; None: as many as the pictures have.
    inputs, images
        What to learn, see `datasets.pictures`: of a name the part to train, and its first images.
    settings
        Everything that determines the numbers; initial weights are drawn anew unless a file gives
        them.
    planning
        How the grids are chosen.
    backend, threads, dtype
        What computes on each rank (`local.make_backend`), on how many threads, with what numbers
        (one of `placing.DTYPES`).
    weights
        A state dict to begin with.
    validate
        Pictures to test with after each epoch: None is what belongs to `inputs`, "none" nothing.
    data
        Folder with the files of MNIST or CIFAR-10.
    folder
        Where checkpoint and metrics go; made if it is not there. None: nothing is kept.
    resume
        Go on with the checkpoint in the folder, if there is one.
    every
        Steps from one checkpoint to the next within an epoch; there is one behind each epoch.
    concurrent
        Independent operations side by side, on one rank; None: one after the other.

    Attributes
    ----------
    graph, plan, model, stepper
        The network; its `planner.NetworkPlan`; this rank's tiles; what changes them.
    schedule
        What runs side by side; None: nothing does.
    pictures, tests
        What is learned, and tested with (None: nothing).
    resumed_step
        Steps that were done before (0: none).
    read_seconds, prepare_seconds
        Loading; planning, placing.

    Raises
    ------
    SparseDNNError
        As the loading functions do, on all ranks alike.
    """

    def __init__(
        self,
        world: Communicator,
        network: str,
        inputs: str,
        settings: Settings,
        *,
        planning: Planning | None = None,
        backend: str = "auto",
        threads: int = 1,
        dtype: str = "float32",
        weights: Path | None = None,
        validate: str | None = None,
        images: int | None = None,
        classes: int | None = None,
        data: Path | None = None,
        folder: Path | None = None,
        resume: bool = False,
        every: int | None = None,
        concurrent: Concurrently | None = None,
    ) -> None:
        self.world, self.settings, self.every, self.threads = world, settings, every, threads
        self.dtype = np.dtype(check_dtype(dtype))
        self._checkpoint = None if folder is None else Path(folder) / CHECKPOINT
        start = time.perf_counter()
        self.tests: Pictures | None = None
        with together(world, "loading the pictures"):
            self.pictures = _normalized(load_pictures(inputs, "train", folder=data, limit=images))
            if validate != "none":
                self.tests = validation_pictures(inputs, validate, self.pictures, data)
            self.graph = network_for(
                network,
                image=self.pictures.image_shape,
                classes=self.pictures.classes if classes is None else classes,
            )
            for each in (self.pictures, self.tests):
                if each is not None:
                    check_pictures(self.graph, each)
        self.n_images = self.pictures.n_images
        self.n_tests = 0 if self.tests is None else self.tests.n_images
        kept = self._look_for_checkpoint(resume)
        self.read_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.plan, self.model = place_network(
            world, self.graph, planning, min(settings.batch_size, self.n_images), dtype=dtype,
            backend=backend, threads=threads, slots=len(settings.optimizer.slots),
            seed=settings.seed,
        )  # fmt: skip
        local = self.model.setting.local
        self.backend = local.name
        in_turn(world, lambda: warm_up(local, self.dtype, settings.optimizer))
        self.stepper = CnnStepper(
            self.model, settings.optimizer, clip=settings.clip, threads=threads
        )
        self._begin(kept, weights if weights is not None else numbers_file(network))
        self.schedule: Schedule | None = None
        if concurrent is not None:
            with together(world, "planning what runs side by side"):
                self.schedule = concurrent.use(
                    self.model, images=min(settings.batch_size, self.n_images), lanes=threads,
                    training=True,
                )  # fmt: skip
        self._standing = Standing(world, _COUNTS, None if kept is None else kept.progress)
        self.resumed_step = self._standing.step
        self._metrics: MetricsFile | None = None
        with together(world, "opening the metrics"):
            if folder is not None and world.rank == 0:
                self._metrics = metrics_in(Path(folder), self.resumed_step, fresh=kept is None)
        self._seen = self._traffic()
        self.prepare_seconds = time.perf_counter() - start

    # Beginning ------------------------------------------------------------------------------

    def _look_for_checkpoint(self, resume: bool) -> CnnCheckpoint | None:
        """Open the checkpoint that the run goes on with, on all ranks; compare it."""
        path = self._checkpoint
        found = False
        with together(self.world, f"looking for {path}"):
            if path is not None and self.world.rank == 0:
                found = path.exists()
                if found and not resume:
                    raise InputError(
                        f"{path.parent}: has a checkpoint: give --resume to go on with it, or "
                        "another folder"
                    )
        kept: CnnCheckpoint | None = None
        if not self.world.any_rank(found):
            return kept
        with together(self.world, f"reading {path}"):
            assert path is not None  # it has been found
            kept = CnnCheckpoint(path, check=self.world.rank == 0)
            if kept.graph != self.graph:
                raise InputError(
                    f"{path}: is of another network: it has {_described(kept.graph)}, asked for is "
                    f"{_described(self.graph)}"
                )
            check_settings(kept, self._settings_json(), path, may_differ=_MAY_DIFFER)
            if kept.progress.get("examples") != self.pictures.identity:
                raise InputError(
                    f"{path}: was trained with other images or labels: give the same --inputs and "
                    "--images, or another folder"
                )
        return kept

    def _begin(self, kept: CnnCheckpoint | None, weights: Path | None) -> None:
        """Set parameters and the optimizer's arrays, unless they are to begin as they are."""
        source = weights if kept is None else self._checkpoint
        with together(self.world, f"reading {source}"):
            if kept is not None:
                fill_from_checkpoint(self.model, kept, self.stepper.slots)
            elif weights is not None:
                fill_from_file(self.model, weights)

    def _settings_json(self) -> dict[str, Any]:
        """What determines the numbers; without what only sparse networks have."""
        settings = self.settings.as_json()
        for name in ("sparsity", "input_gradient", "init"):
            del settings[name]
        return settings | {"dtype": self.dtype.name}

    # Epochs ---------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        """Where the run stands."""
        return self._standing

    def run(
        self,
        progress: Callable[[Moment], None] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> CnnResult:
        """Train until all epochs are done; see `run_until`."""
        self.run_until(self.steps_total, progress, on_epoch)
        return self.result()

    def _step(self, batch: NDArray[np.int64], rate: float) -> None:
        at = self._standing
        score = self.stepper.train(self.pictures, batch, rate=rate, step=at.step + 1)
        at.own["predicted"] += self.stepper.words(int(batch.size))
        at.note_step(score, rate)

    def _end_epoch(self) -> None:
        tested = None
        with self._aside("evaluation"):
            if self.tests is not None:
                tested = self.stepper.evaluate(self.tests, self.settings.batch_size)
        means = self._standing.note_epoch(tested, labelled=True)
        self._count_steps()
        record = self._standing.record(means)
        with together(self.world, "writing the metrics"):
            if self._metrics is not None:
                self._metrics.write(record)
        self._seen = self._traffic()
        self._standing.restart_clock()

    # Words ----------------------------------------------------------------------------------

    def _traffic(self) -> tuple[int, int]:
        traffic = self.world.traffic
        return (
            traffic.words() - sum(traffic.words(verb) for verb in _ASIDE),
            traffic.messages() - sum(traffic.messages(verb) for verb in _ASIDE),
        )

    def _count_steps(self) -> None:
        """Count what was sent since the last time: in steps."""
        now = self._traffic()
        self._standing.own["words"] += now[0] - self._seen[0]
        self._standing.own["messages"] += now[1] - self._seen[1]
        self._seen = now

    @contextmanager
    def _aside(self, what: str = "") -> Iterator[None]:
        """Do something that is no step: neither its time nor its words count as one's."""
        self._count_steps()
        try:
            yield
        finally:
            if what:
                self._standing.own[what] += self._traffic()[0] - self._seen[0]
            self._seen = self._traffic()
            self._standing.restart_clock()

    def result(self) -> CnnResult:
        """Return what the training gave until now; collective."""
        with self._aside():
            at = self._standing
            counts, last = at.totals(), at.last
            phases = self.model.watch.phases()
            return CnnResult(
                epochs=at.epoch,
                steps=at.step,
                loss=float(last.get("loss", float("nan"))),
                train_accuracy=last.get("train_accuracy"),
                test_loss=last.get("test_loss"),
                test_accuracy=last.get("test_accuracy"),
                images_per_second=at.speed,
                seconds=at.seconds,
                words_sent=counts["words"],
                words_predicted=counts["predicted"],
                messages_sent=counts["messages"],
                evaluation_words=counts["evaluation"],
                phase_seconds={name: phases.get(name, 0.0) for name in PHASES},
                records=list(at.records),
            )

    # State ----------------------------------------------------------------------------------

    def arrays(self) -> dict[str, NDArray[Any]] | None:
        """Return all parameters and buffers by name, on rank 0; None elsewhere. Collective."""
        with self._aside():
            store = self.model.parameters
            trained = store.gathered(store.theta)
            others = store.gathered(store.buffers, trained=False)
            return None if trained is None or others is None else trained | others

    def _save(self) -> None:
        """Write a checkpoint; it is on the disk, whole, when this returns. Collective."""
        if self._checkpoint is None:
            return
        arrays = self.arrays()
        with self._aside():
            store = self.model.parameters
            slots = {name: store.gathered(flat) for name, flat in self.stepper.slots.items()}
            progress = self._standing.as_json() | {
                "examples": self.pictures.identity,
                "pictures": pictures_record(self.pictures),
                "plan": self.plan.as_json(),
            }
            with together(self.world, "saving a checkpoint"):
                if arrays is not None:
                    if self._metrics is not None:
                        self._metrics.sync()
                    made = {name: slot for name, slot in slots.items() if slot is not None}
                    write_cnn_checkpoint(
                        self._checkpoint,
                        CnnState(self.graph, arrays, made, self._settings_json(), progress),
                    )

    def free(self) -> None:
        """Give everything back; collective."""
        if self._metrics is not None:
            self._metrics.close()
        self.model.free()


def _normalized(pictures: Pictures) -> Pictures:
    mean, std = pictures.moments()
    return replace(pictures, mean=mean, std=std)


def _described(graph: OperationGraph) -> str:
    image = "×".join(map(str, graph.image))
    return f"{graph.name} for {image}, {graph.classes} classes ({graph.identity[:12]})"
