"""What ``cnn infer`` and ``cnn bench`` do, in one process or on ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsednn.cli._cnn import (
    PlacedRequest,
    check_own_sizes,
    image_shape,
    network_keys,
    network_named,
    placed_keys,
    plan_keys,
    ranks_or_alone,
    schedule_keys,
)
from sparsednn.cli._learning import finite, numbers, path_text, threads_of
from sparsednn.cli._targets import check_targets
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sparsednn.dense.runs.inference import CnnInference, InferenceResult

__all__ = ["BenchRequest", "InferRequest", "bench", "infer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest(PlacedRequest):
    """The options of ``cnn infer``, as typed."""

    inputs: str
    folder: Path | None
    images: int | None
    mean: str | None
    std: str | None
    weights: Path | None
    output: Path | None

    def check_call(self) -> None:
        """Tell what is wrong with the options, as far as can be told without reading."""
        self.check_placing()
        means, deviations = numbers("--mean", self.mean), numbers("--std", self.std)
        if deviations is not None and not all(0 < each < float("inf") for each in deviations):
            raise UsageError(f"--std: deviations must be positive and finite, found {self.std}")
        if means is not None and not all(abs(each) < float("inf") for each in means):
            raise UsageError(f"--mean: means must be finite, found {self.mean}")
        if self.output is not None and self.output.suffix not in (".txt", ".npy"):
            raise UsageError(f"{self.output}: classes are written as .txt or .npy")

    def check_files(self) -> None:
        """Tell what cannot be written before anything is done."""
        check_targets(self.network, {"--output": self.output}, [Path(self.inputs), self.weights])


def infer(request: InferRequest) -> dict[str, Any] | None:
    """Look at pictures; rank 0 has the summary, the others None."""
    with ranks_or_alone() as world:
        from sparsednn.comm.failure import together
        from sparsednn.dense.runs.inference import CnnInference

        with together(world, "checking the call"):
            if world.rank == 0:
                request.check_files()
        run = CnnInference(
            world,
            request.network,
            request.inputs,
            weights=request.weights,
            planning=request.planning(),
            backend=request.backend,
            threads=threads_of(request.threads, world),
            dtype=request.dtype,
            batch_size=request.batch_size,
            images=request.images,
            data=request.folder,
            mean=numbers("--mean", request.mean),
            std=numbers("--std", request.std),
            concurrent=request.concurrently(),
        )
        result = run.run()
        with together(world, "writing the results"):
            if result.classes is not None and request.output is not None:
                _write_classes(request.output, result.classes)
        run.free()
        return None if world.rank else _infer_summary(request, run, result)


def _write_classes(path: Path, classes: NDArray[np.int64]) -> None:
    import numpy as np

    from sparsednn.atomic import atomic_file

    with atomic_file(path) as file:
        if path.suffix == ".npy":
            np.save(file, classes, allow_pickle=False)
        else:
            file.write("".join(f"{one}\n" for one in classes.tolist()).encode())


def _infer_summary(
    request: InferRequest, run: CnnInference, result: InferenceResult
) -> dict[str, Any]:
    score = result.score
    summary = {
        **network_keys(run.graph),
        "images": score.images,
        "batch_size": request.batch_size,
        **placed_keys(request, run.world.size, run.threads, run.backend),
        "loss": score.loss / score.images,
        "accuracy": score.correct / score.images,
        "images_per_second": score.images / result.seconds,
        "seconds": {
            "read": run.read_seconds,
            "prepare": run.prepare_seconds,
            "infer": result.seconds,
        },
        "words_sent": result.words_sent,
        "words_predicted": result.words_predicted,
        "memory_predicted": run.plan.totals.memory,
        "plan": plan_keys(run.plan),
        "concurrent": schedule_keys(run.schedule),
        "output": path_text(request.output),
    }
    return {name: finite(value) for name, value in summary.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest(PlacedRequest):
    """The options of ``cnn bench``, as typed."""

    steps: int
    image: str | None
    classes: int | None
    training: bool

    def check_call(self) -> None:
        """Tell what is wrong with the options, as far as can be told without reading."""
        self.check_placing()
        if self.steps < 1:
            raise UsageError(f"--steps must be at least 1, found {self.steps}")
        image_shape(self.image)
        check_own_sizes(self.network, {"--image": self.image, "--classes": self.classes})


def bench(request: BenchRequest) -> dict[str, Any] | None:
    """Measure; rank 0 has the summary, the others None."""
    with ranks_or_alone() as world:
        from sparsednn.comm.failure import together
        from sparsednn.dense.runs.benchmark import bench_network

        with together(world, "making the network"):
            graph = network_named(request.network, request.image, request.classes)
        threads = threads_of(request.threads, world)
        found = bench_network(
            world,
            graph,
            batch_size=request.batch_size,
            steps=request.steps,
            training=request.training,
            planning=request.planning(),
            backend=request.backend,
            threads=threads,
            dtype=request.dtype,
        )
        if world.rank:
            return None
        return {
            **network_keys(graph),
            "training": request.training,
            "batch_size": request.batch_size,
            "steps": request.steps,
            **placed_keys(request, world.size, threads, found.backend),
            "images_per_second": found.images_per_second,
            "seconds_per_step": found.step_seconds,
            "pass_seconds": found.phase_seconds,
            "words_sent": found.words_sent,
            "words_predicted": found.words_predicted,
            "layers": found.layers,
            "plan": plan_keys(found.plan),
        }
