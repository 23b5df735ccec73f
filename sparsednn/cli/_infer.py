"""What ``infer`` does, in one process or on ranks: one call of the library, and a summary."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.cli._common import note
from sparsednn.cli._device import check_device, cpu_kernel, device_of
from sparsednn.cli._ranks import on_ranks
from sparsednn.errors import FormatError, UsageError

if TYPE_CHECKING:
    from sparsednn.distributed import DistributedResult, DistributedRun
    from sparsednn.formats import ReadOptions
    from sparsednn.gpu.device import Device
    from sparsednn.inference import OutputSink

__all__ = ["Request", "infer_here", "infer_on_ranks"]

#: Summary, and how the answer differs from the truth (None: it does not).
Told = tuple[dict[str, Any], str | None]


@dataclass(frozen=True, slots=True)
class Request:
    """The options of ``infer``, as typed."""

    model: str
    inputs: str
    options: ReadOptions
    truth: Path | None
    categories_out: Path | None
    outputs_out: Path | None
    kernel: str | None
    threads: int | None
    images: int | None
    layers: int | None
    bias: float | None
    mnist: Path | None
    partition: Path | None
    grid: str | None
    trace: Path | None
    overlap: bool
    drop: bool
    device: str
    precision: str
    merge: bool
    transport: str

    def check_call(self) -> None:
        """Tell what is wrong with the options; looks at no file."""
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads must be at least 1, found {self.threads}")
        for name, given in (
            ("--trace", self.trace is not None),
            ("--no-overlap", not self.overlap),
            ("--no-drop", not self.drop),
        ):
            if given and self.partition is None:
                raise UsageError(
                    f"{name} is for ranks that share the neurons: give --partition FILE, made by "
                    "'sparsednn partition'"
                )
            if given and self.kernel == "reference" and name != "--no-drop":
                raise UsageError(f"{name} belongs to the numba kernel, the reference has none")
        check_device(self.device, self.kernel, self.transport)
        self._check_precision()

    def _check_precision(self) -> None:
        from sparsednn.gpu.storage import store_of

        store_of(self.precision)  # refuses what it does not know
        for name, given in (
            (f"--precision {self.precision}", self.precision != "fp32"),
            ("--no-merge", not self.merge),
        ):
            if given and self.device != "gpu":
                raise UsageError(f"{name} is for a GPU: give --device gpu")
        if self.trace is not None and self.device != "cpu":
            raise UsageError(f"--trace is of the CPU's kernels: leave out --device {self.device}")
        if not self.merge and self.partition:
            raise UsageError("--no-merge: ranks that share the neurons merge no columns anyway")

    def check_files(self) -> NDArray[np.int64] | None:
        """Tell what cannot be written before anything is run; returns the truth."""
        from sparsednn.atomic import check_target
        from sparsednn.formats import read_categories
        from sparsednn.outputs import check_outputs

        read = (self.model, self.inputs, self.truth, self.partition)
        check_outputs(self.categories_out, self.outputs_out, read)
        if self.trace is not None:
            check_outputs(self.trace, None, (*read, self.categories_out, self.outputs_out))
            check_target(self.trace)
        return None if self.truth is None else read_categories(self.truth)

    def check_images(self, expected: NDArray[np.int64] | None, images: int) -> None:
        """Refuse a truth that has other images."""
        if expected is not None and expected.size and int(expected[-1]) > images:
            raise FormatError(
                f"{self.truth}: has image {int(expected[-1])}, but there are only {images}"
            )

    @contextmanager
    def sink(self, n_out: int, images: int) -> Iterator[OutputSink | None]:
        """Open the file for the outputs, if they are wanted."""
        from sparsednn.outputs import output_sink

        with ExitStack() as stack:
            opened = None
            if self.outputs_out is not None:
                opened = stack.enter_context(output_sink(self.outputs_out, n_out, images))
            yield opened

    def compare(
        self, categories: NDArray[np.int64], expected: NDArray[np.int64] | None
    ) -> tuple[str | None, str | None]:
        """Write the categories, if wanted; return the verdict and the difference."""
        from sparsednn.formats import write_categories
        from sparsednn.inference import compare_categories

        found = categories + 1
        if self.categories_out is not None:
            write_categories(found, self.categories_out)
        if expected is None:
            return None, None
        difference = compare_categories(found, expected)
        return ("pass" if difference is None else "fail"), difference


def infer_here(request: Request) -> Told:
    """Run in this process."""
    from sparsednn.inference import infer
    from sparsednn.sources import load_inputs, load_network

    expected = request.check_files()
    device = device_of(request.device)
    start = time.perf_counter()
    network = load_network(
        request.model, layers=request.layers, bias=request.bias, options=request.options
    )
    columns = load_inputs(
        request.inputs, n_features=network.n_in, mnist=request.mnist, images=request.images
    )
    read_seconds = time.perf_counter() - start
    request.check_images(expected, columns.n_images)
    with request.sink(network.n_out, columns.n_images) as sink:
        result = infer(
            network,
            columns,
            kernel=cpu_kernel(request.kernel),
            threads=request.threads,
            sink=sink,
            device=device,
            precision=request.precision,
            merge=request.merge,
        )
    verdict, difference = request.compare(result.categories, expected)
    seconds = {
        "read": read_seconds,
        "prepare": result.prepare_seconds,
        "infer": result.infer_seconds,
    }
    on_device: dict[str, Any] = {}
    if device is not None:
        seconds |= {"device": result.device_seconds, "copies": result.copy_seconds}
        on_device["merged"] = result.merged
        if request.precision != "fp32":
            on_device["precision_error"] = result.precision_error
    return {
        "network": network.name,
        "neurons": max(layer.n_out for layer in network),
        "layers": len(network),
        "edges": result.edges,
        "images": result.images,
        "threads": result.threads,
        "kernel": result.kernel,
        "device": result.device,
        "precision": result.precision,
        **on_device,
        "seconds": seconds,
        "edges_per_second": result.edges_per_second,
        "categories": int(result.categories.size),
        "truth": verdict,
    }, difference


def infer_on_ranks(request: Request) -> Told | None:
    """Run on all ranks; rank 0 has the summary, the others None."""
    with on_ranks() as world:
        from sparsednn.atomic import atomic_file
        from sparsednn.comm.failure import together
        from sparsednn.comm.grid import ProcessGrid
        from sparsednn.comm.threads import limit_threads, threads_per_rank
        from sparsednn.distributed import DistributedRun

        expected = None
        with together(world, "checking the call"):
            grid = None if request.grid is None else ProcessGrid.parse(request.grid)
            if world.rank == 0:
                expected = request.check_files()
        device = device_of(request.device, world)
        threads = request.threads or threads_per_rank(world)
        limit_threads(threads)
        run = DistributedRun(
            world,
            request.model,
            request.inputs,
            partition=request.partition,
            grid=grid,
            kernel=cpu_kernel(request.kernel),
            threads=threads,
            drop=request.drop,
            overlap=request.overlap,
            outputs=request.outputs_out is not None,
            trace=request.trace is not None,
            mnist=request.mnist,
            images=request.images,
            layers=request.layers,
            bias=request.bias,
            options=request.options,
            device=device,
            precision=request.precision,
            transport=request.transport,
            merge=request.merge,
        )
        with together(world, "checking the truth"):
            request.check_images(expected, run.n_images)
        with ExitStack() as stack:
            sink = None
            if world.rank == 0:
                sink = stack.enter_context(request.sink(run.n_out, run.n_images))
            result = run.run(sink)
        verdict = difference = None
        with together(world, "writing the results"):
            if world.rank == 0:
                verdict, difference = request.compare(result.categories, expected)
                if request.trace is not None:
                    with atomic_file(request.trace) as file:
                        file.write(json.dumps(result.trace).encode())
                    lost = (result.trace or {}).get("otherData", {}).get("events_lost", 0)
                    if lost:
                        note(f"{request.trace}: {lost} events came when there was no more room")
        # All ranks end with the exit code of the answer; rank 0 says which images differ.
        fails = world.any_rank(difference is not None)
        run.free()
        if world.rank:
            if fails:
                raise SystemExit(4)
            return None
        return _summary(run, result, verdict, device), difference


def _summary(
    run: DistributedRun, result: DistributedResult, verdict: str | None, device: Device | None
) -> dict[str, Any]:
    """What rank 0 tells of a run."""
    from sparsednn.kernels.linked import PHASES

    rate = run.n_images * run.edges / result.infer_seconds if result.infer_seconds else 0.0
    on_device = {"device": result.device_seconds} if device is not None else {}
    if result.copy_seconds:  # with M > 1 they are part of the messages
        on_device["copies"] = result.copy_seconds
    return {
        "network": run.name,
        "neurons": run.neurons,
        "layers": run.depth,
        "edges": run.edges,
        "images": run.n_images,
        "ranks": run.world.size,
        "grid": "x".join(map(str, run.shape)),
        "threads": run.threads,
        "kernel": run.kernel,
        "device": "cpu" if device is None else device.name,
        "precision": run.precision,
        **({"transport": run.transport} if run.transport else {}),
        "seconds": {
            "read": run.read_seconds,
            "prepare": run.prepare_seconds,
            "infer": result.infer_seconds,
            **on_device,
        },
        "edges_per_second": rate,
        "words_sent": result.words_sent,
        "words_predicted": result.words_predicted,
        "messages_sent": result.messages_sent,
        "messages_predicted": result.messages_predicted,
        "tile_columns": run.columns,
        "layer_seconds": {
            phase: result.seconds[:, index].tolist() for index, phase in enumerate(PHASES)
        },
        "categories": int(result.categories.size),
        "truth": verdict,
    }
