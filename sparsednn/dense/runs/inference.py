"""Pictures through a network with known numbers, on any number of ranks: loss, accuracy, classes.

Called by all ranks alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.datasets.pictures import Pictures, load_pictures
from sparsednn.dense.planning.request import Planning
from sparsednn.dense.runs.checkpoint import CnnCheckpoint, is_checkpoint
from sparsednn.dense.runs.filling import fill_from_file
from sparsednn.dense.runs.placing import check_dtype, place_network
from sparsednn.dense.runs.source import check_pictures, network_of_numbers, numbers_file
from sparsednn.dense.runs.stepper import CnnStepper
from sparsednn.dense.runs.warm_up import warm_up
from sparsednn.errors import FormatError, UsageError
from sparsednn.training.losses import Score
from sparsednn.training.optimizers import SGD
from sparsednn.training.turns import in_turn

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.dense.concurrency.request import Concurrently
    from sparsednn.dense.concurrency.schedule import Schedule

__all__ = ["CnnInference", "InferenceResult"]


@dataclass(frozen=True)
class InferenceResult:
    """What pictures have given; the same on all ranks but for classes and time.

    Attributes
    ----------
    score
        Of all.
    classes
        ``(images,)`` int64 on rank 0, None elsewhere: the largest logit of each.
    seconds
        Of all batches.
    words_sent, words_predicted
        Of all ranks, as counted and by the formulas of `flow`.
    """

    score: Score
    classes: NDArray[np.int64] | None
    seconds: float
    words_sent: int
    words_predicted: int


class CnnInference:
    """A network with known numbers and pictures, placed on ranks.

    Parameters
    ----------
    world, network, planning, backend, threads, dtype
        As for `trainer.CnnRun`.
    inputs, images, data
        What to look at: of a name the part to test, if it does not say which; only the first
        `images`; the folder with MNIST or CIFAR-10.
    weights
        A state dict, or a checkpoint; None: `network` is a file that has them.
    batch_size
        Images at a time.
    mean, std
        What pictures are normalized with, a number for each channel, or one for all. None: what a
        checkpoint says, otherwise 0 and 1.
    concurrent
        Independent operations side by side, on one rank; None: one after the other.

    Attributes
    ----------
    graph, plan, model, pictures, schedule
        As of `trainer.CnnRun`.
    read_seconds, prepare_seconds
        Loading; planning, placing.

    Raises
    ------
    UsageError
        If there are no weights.
    SparseDNNError
        As the loading functions do, on all ranks alike.
    """

    def __init__(
        self,
        world: Communicator,
        network: str,
        inputs: str,
        *,
        weights: Path | None = None,
        planning: Planning | None = None,
        backend: str = "auto",
        threads: int = 1,
        dtype: str = "float32",
        batch_size: int = 64,
        images: int | None = None,
        data: Path | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        concurrent: Concurrently | None = None,
    ) -> None:
        self.world, self.threads, self.batch_size = world, threads, batch_size
        start = time.perf_counter()
        with together(world, "loading the pictures"):
            check_dtype(dtype)
            file = weights if weights is not None else numbers_file(network)
            if file is None:
                raise UsageError(
                    f"{network}: is a network without numbers: give --weights FILE, or a "
                    "checkpoint in its place"
                )
            pictures = load_pictures(inputs, "test", folder=data, limit=images)
            self.graph = network_of_numbers(network, file, pictures.image_shape, pictures.classes)
            check_pictures(self.graph, pictures)
            kept: dict[str, Any] = {}
            if is_checkpoint(file):
                kept = CnnCheckpoint(file, check=world.rank == 0).progress.get("pictures", {})
            self.pictures = replace(
                pictures,
                scale=float(kept.get("scale", pictures.scale)),
                mean=_per_channel("mean", mean, kept, pictures, file),
                std=_per_channel("std", std, kept, pictures, file),
            )
        self.read_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.plan, self.model = place_network(
            world, self.graph, planning, min(batch_size, pictures.n_images), backend=backend,
            threads=threads, dtype=dtype, training=False,
        )  # fmt: skip
        local = self.model.setting.local
        self.backend = local.name
        in_turn(world, lambda: warm_up(local, self.model.setting.dtype))
        with together(world, f"reading {file}"):
            fill_from_file(self.model, file)
        self.schedule: Schedule | None = None
        if concurrent is not None:
            with together(world, "planning what runs side by side"):
                self.schedule = concurrent.use(
                    self.model, images=min(batch_size, pictures.n_images), lanes=threads,
                    training=False,
                )  # fmt: skip
        self._stepper = CnnStepper(self.model, SGD())
        self.prepare_seconds = time.perf_counter() - start

    def run(self) -> InferenceResult:
        """Look at all pictures; collective."""
        traffic = self.world.traffic
        before = traffic.words() - traffic.words("score")
        start = time.perf_counter()
        score, ids, classes = self._stepper.classify(self.pictures, self.batch_size)
        seconds = time.perf_counter() - start
        words = np.array(
            [traffic.words() - traffic.words("score") - before, self._predicted()], np.int64
        )
        self.world.allreduce(words)
        ordered: NDArray[np.int64] | None = None
        parts = [self.world.gather(np.ascontiguousarray(one)) for one in (ids, classes)]
        if parts[0] is not None and parts[1] is not None:
            ordered = np.empty(self.pictures.n_images, np.int64)
            ordered[np.concatenate(parts[0])] = np.concatenate(parts[1])
        return InferenceResult(score, ordered, seconds, int(words[0]), int(words[1]))

    def _predicted(self) -> int:
        whole, left = divmod(self.pictures.n_images, self.batch_size)
        words = whole * self._stepper.words(self.batch_size, training=False) if whole else 0
        return words + (self._stepper.words(left, training=False) if left else 0)

    def free(self) -> None:
        """Give everything back; collective."""
        self.model.free()


def _per_channel(
    name: str,
    asked: Sequence[float] | None,
    kept: dict[str, Any],
    pictures: Pictures,
    file: Path,
) -> NDArray[np.float64] | None:
    """Numbers for the channels: those asked for, else a checkpoint's, else None."""
    channels = pictures.image_shape[0]
    if asked is not None:
        if len(asked) not in (1, channels):
            raise UsageError(f"--{name}: {len(asked)} numbers for images of {channels} channels")
        return np.broadcast_to(np.array(asked, np.float64), (channels,)).copy()
    found = kept.get(name)
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != channels:
        raise FormatError(f"{file}: what it says of the pictures' {name} cannot be used")
    return np.array(found, np.float64)
