"""Training on any number of ranks: load, place, run epochs, save. Called by all ranks alike.

Ranks form a grid D × M as for inference (`distributed.inference`): the images of a batch are
divided among D groups, the neurons among the M ranks of each. On one rank without MPI the world is
an `Alone`. What a step does is in `stepper`, what a rank holds in `placed`, where a state comes
from and goes to in `state` and `checkpoints`; this module knows the order of it all.

The images of epoch e come in an order that depends on the seed and e only, so a training that is
resumed in the middle of an epoch goes on with the images that come next.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.comm.grid import ProcessGrid
from sparsednn.distributed.partitions import (
    broadcast_partition,
    grid_shape,
    share_partition,
)
from sparsednn.distributed.transports import check_transport
from sparsednn.errors import InputError
from sparsednn.training.beginning import PARTITION, Beginning, begin
from sparsednn.training.checkpoints import CHECKPOINT, TrainingState, write_checkpoint
from sparsednn.training.data import LocalExamples, share_examples
from sparsednn.training.device_data import DeviceExamples
from sparsednn.training.epochs import EpochLoop
from sparsednn.training.losses import Score
from sparsednn.training.metrics import METRICS, MetricsFile, metrics_in
from sparsednn.training.pattern import changed_pattern
from sparsednn.training.placed import PlacedNetwork, warm_up
from sparsednn.training.progress import Progress, TrainingResult
from sparsednn.training.repartition import check_remakable, partition_like
from sparsednn.training.settings import Settings
from sparsednn.training.sparsity import Drift
from sparsednn.training.standing import Moment
from sparsednn.training.state import gather_network, scatter_network
from sparsednn.training.turns import in_turn

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.formats import ReadOptions
    from sparsednn.gpu.device import Device
    from sparsednn.network import SparseNetwork
    from sparsednn.partitioners.partition import Partition

__all__ = ["CHECKPOINT", "METRICS", "TrainingRun"]


class TrainingRun(EpochLoop):
    """A network and examples that are spread over ranks, ready to be trained.

    Parameters
    ----------
    world
        All ranks.
    model, layers, bias, options
        As for `sources.load_network`.
    inputs, labels, mnist, images
        As for `examples.load_examples`; of a name, the part to train.
    settings
        Everything that determines the numbers.
    partition
        File; or None for pure data parallelism. Made for the network that training begins with,
        or for that of the checkpoint that is resumed.
    grid
        ``(D, M)``; by default M is the number of parts, and D what follows.
    kernel, threads
        ``numba`` or ``reference``; of each rank.
    validate, validate_labels
        Examples to test with after each epoch; of a name, the part to test.
    folder
        Where checkpoint and metrics go; made if it is not there. None: nothing is kept.
    resume
        Go on with the checkpoint in the folder, if there is one.
    every
        Steps from one checkpoint to the next within an epoch; there is one behind each epoch.
    repartition
        Make a new partition behind an epoch when the words of an image have grown by this factor
        since the last one was made (with dynamic sparsity).
    device
        This rank's GPU, for all of the training; None: the CPU, with `kernel`. All ranks have one,
        or none has.
    transport
        How lines are to travel between GPUs, one of `distributed.transports.TRANSPORTS`; matters
        where M > 1.

    Attributes
    ----------
    name, edges, parameters, n_images, n_validate
        Of the network and the examples.
    shape, threads, resumed_step
        The grid; threads of each rank; steps that were done before (0: none).
    read_seconds, prepare_seconds
        Loading; planning, packing, compiling.

    Raises
    ------
    SparseDNNError
        As the loading functions do, on all ranks alike.
    """

    def __init__(
        self,
        world: Communicator,
        model: str,
        inputs: str,
        settings: Settings,
        *,
        partition: str | os.PathLike[str] | None = None,
        grid: tuple[int, ...] | None = None,
        kernel: str = "numba",
        threads: int = 1,
        labels: Path | None = None,
        validate: str | None = None,
        validate_labels: Path | None = None,
        mnist: Path | None = None,
        images: int | None = None,
        layers: int | None = None,
        bias: float | None = None,
        options: ReadOptions | None = None,
        folder: Path | None = None,
        resume: bool = False,
        every: int | None = None,
        repartition: float | None = None,
        device: Device | None = None,
        transport: str = "auto",
    ) -> None:
        self.world, self.settings, self.kernel, self.threads = world, settings, kernel, threads
        self.device, self._resident = device, None if device is None else DeviceExamples(device)
        self.every, self._repartition, self._wanted = every, repartition, transport
        start = time.perf_counter()
        parts = None if partition is None else share_partition(world, partition)
        with together(world, "arranging the ranks"):
            self.shape = grid_shape(
                world.size, 1 if parts is None else parts.parts, grid, partition=partition
            )
            if parts is not None and repartition is not None:
                check_remakable(parts, partition)
            if device is not None and self.shape[1] > 1:
                check_transport(transport, device)
        self.grid = ProcessGrid(world, self.shape)
        self.group, self.across = self.grid.along(1), self.grid.along(0)
        self._checkpoint = None if folder is None else Path(folder) / CHECKPOINT
        began = begin(
            world, self.group, model, settings, partition=parts, file=partition,
            checkpoint=self._checkpoint, resume=resume,
            loading={"layers": layers, "bias": bias, "options": options},
        )  # fmt: skip
        self._partition, self._origin = began.partition, began.origin
        self._sources: list[tuple[str, str, dict[str, Any]]] = [
            (inputs, "train", {"labels": labels, "mnist": mnist, "images": images})
        ]
        if validate is not None:
            self._sources.append((validate, "test", {"labels": validate_labels, "mnist": mnist}))
        self._examples = self._share_examples(began.shard)
        self.n_images = self._examples[0].n_images
        self._check_examples(began)
        self.n_validate = self._examples[1].n_images if validate is not None else 0
        self._set_sizes(began)
        self.read_seconds = time.perf_counter() - start
        start = time.perf_counter()
        if kernel == "numba" and device is None:
            in_turn(world, lambda: warm_up(settings))
        self._placed = self._place(began.shard, began.slots)
        self.progress = Progress(
            world,
            self._placed,
            began.progress,
            self._partition.identity,
            self._examples[0].identity,
        )
        self.resumed_step = self.progress.step
        self._metrics: MetricsFile | None = None
        with together(world, "opening the metrics"):
            if folder is not None and world.rank == 0:
                self._metrics = metrics_in(
                    Path(folder), self.resumed_step, fresh=began.progress is None
                )
        self.prepare_seconds = time.perf_counter() - start

    def _check_examples(self, began: Beginning) -> None:
        """Refuse to go on with other images: the place in the epoch would mean nothing."""
        with together(self.world, "comparing the examples"):
            known = None if began.progress is None else began.progress.get("examples")
            if known not in (None, self._examples[0].identity):
                raise InputError(
                    f"{self._checkpoint}: was trained with other images or labels: give the same "
                    "--inputs, --labels and --images, or another folder"
                )

    def _set_sizes(self, began: Beginning) -> None:
        shard = began.shard
        self.name, self.edges = shard.name, shard.edges
        self.parameters = self.edges + sum(layer.n_out for layer in shard.layers)

    def _share_examples(self, shard: Any) -> list[LocalExamples]:
        return [
            share_examples(source, split, self.world, self.group, shard, **given)
            for source, split, given in self._sources
        ]

    def _place(self, shard: Any, slots: Any) -> PlacedNetwork:
        groups = self.shape[0]
        self._place_examples(shard)
        return PlacedNetwork(
            shard, slots, self.group, self.across, self.settings, kernel=self.kernel,
            threads=self.threads, columns=-(-self.settings.batch_size // groups),
            device=self.device, resident=self._resident, transport=self._wanted,
        )  # fmt: skip

    def _place_examples(self, shard: Any) -> None:
        """Put all examples on the device, if that has not been done: in front of all else there."""
        resident = self._resident
        if resident is None:
            return
        with together(self.world, "placing the examples"):
            for examples in self._examples:
                resident.inputs(examples.inputs)
                if self.group.size == 1:  # otherwise the loss is made on the host
                    resident.targets(examples, shard.n_out)

    # Epochs ---------------------------------------------------------------------------------

    def run(
        self,
        progress: Callable[[Moment], None] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> TrainingResult:
        """Train until all epochs are done.

        Parameters
        ----------
        progress, on_epoch
            Called on rank 0: behind every step; behind every epoch with its line of metrics.

        Raises
        ------
        DivergenceError
            If the loss is no number any more; the last checkpoint stays.
        FormatError
            If a checkpoint or the metrics cannot be written, on all ranks.
        """
        self.run_until(self.steps_total, progress, on_epoch)
        return self.progress.result(self._placed)

    def _own_share(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of the images that this data group works on."""
        groups, group = self.shape[0], self.grid.coordinates[0]
        return ids[ids.size * group // groups : ids.size * (group + 1) // groups]

    @property
    def standing(self) -> Progress:
        """Where the run stands."""
        return self.progress

    @property
    def labelled(self) -> bool:
        """Whether there are labels, and not dense targets."""
        return self._examples[0].labels is not None

    def _step(self, batch: NDArray[np.int64], rate: float) -> None:
        at, settings = self.progress, self.settings
        own = self._own_share(batch)
        score = self._placed.stepper.train(
            self._examples[0], own, int(batch.size), rate=rate, step=at.step + 1
        )
        at.add(score, int(own.size), rate, self._placed)
        sparsity = settings.sparsity
        if sparsity is not None and sparsity.due(at.step, self.steps_total):
            with at.aside("pattern"):
                shard, slots = changed_pattern(
                    self._placed, self._examples[0], own, int(batch.size), settings,
                    step=at.step, steps_total=self.steps_total, group=self.group,
                    across=self.across,
                )  # fmt: skip
                self._replace(shard, slots)

    def _replace(self, shard: Any, slots: Any) -> None:
        """Go on with another pattern, or another part."""
        self.progress.retire(self._placed)
        self._placed.free()
        self._placed = self._place(shard, slots)

    def _end_epoch(self) -> None:
        at = self.progress
        tested: Score | None = None
        with at.aside("evaluation"):
            if self.n_validate:
                ids = self._own_share(np.arange(self.n_validate))
                tested = self._placed.stepper.evaluate(self._examples[1], ids)
        drift = Drift(at.words_at_start, self._placed.words_per_image())
        record = at.end_epoch(tested, drift.ratio, labelled=self.labelled)
        with together(self.world, "writing the metrics"):
            if self._metrics is not None:
                self._metrics.write(record)
        if self._repartition is not None and drift.ratio > self._repartition:
            with at.aside("pattern"):
                self._make_partition()

    def _make_partition(self) -> None:
        """Divide the neurons anew, as the partition at the start was made; collective."""
        found = self._gathered()
        made: Partition | None = None
        with together(self.world, "making a new partition"):
            if found is not None:
                made = partition_like(self._partition, found[0])
                if self._checkpoint is not None:
                    made.save(self._checkpoint.parent / PARTITION)
        self._partition = broadcast_partition(self.world, made)
        network, slots = (None, None) if found is None else found
        shard, own = scatter_network(
            network, slots, self._partition, self.grid.coordinates[1], self.world
        )
        examples = self._share_examples(shard)
        if self._resident is not None:
            self._resident.forget()
        self._examples = examples
        self._replace(shard, own)
        self.progress.words_at_start = self._placed.words_per_image()
        self.progress.partition = self._partition.identity

    @property
    def transport(self) -> str:
        """How lines travel between the GPUs of a group; "" without."""
        return self._placed.transport

    # State ----------------------------------------------------------------------------------

    def _gathered(self) -> tuple[SparseNetwork, Any] | None:
        """Network and optimizer's arrays, on rank 0 of the world; collective."""
        if self.grid.coordinates[0]:
            return None
        placed = self._placed
        parameters = placed.engine.layers_of(placed.engine.theta)
        return gather_network(placed.shard, parameters, placed.slots, self.group)

    def network(self) -> SparseNetwork | None:
        """Return the network as it is now, on rank 0; None elsewhere. Collective."""
        found = self._gathered()
        return None if found is None else found[0]

    def _save(self) -> None:
        """Write a checkpoint; it is on the disk, whole, when this returns. Collective."""
        if self._checkpoint is None:
            return
        with self.progress.aside("saving"):
            kept = self.progress.as_json()
            found = self._gathered()
            with together(self.world, "saving a checkpoint"):
                if found is not None and self.world.rank == 0:
                    if self._metrics is not None:
                        self._metrics.sync()
                    state = TrainingState(
                        found[0], found[1], self._origin, self.settings.as_json(), kept
                    )
                    write_checkpoint(self._checkpoint, state)

    def free(self) -> None:
        """Give everything back; collective."""
        if self._metrics is not None:
            self._metrics.close()
        self._placed.free()
        self.grid.free()
