"""Independent operations side by side on one GPU: streams, graphs, both, against neither.

``python benchmarks/concurrency_gpu.py [--network googlenet] [--json FILE]`` measures, for each
number of images and each workspace limit, passes of a network in four ways: *serial* (one stream,
each kernel launched by the host), *graphs* (the same, launched as one graph), *streams* (a schedule
on several streams, launched by the host) and *both*. Graphs alone take away what the host takes,
which is most of a pass of one image; what is left between *graphs* and *both* is what running
operations side by side is worth. Times are the device's, by events; medians.

``--dry-run`` goes through everything with tiny sizes on NumPy: figures mean nothing then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from sparsednn.dense.concurrency.gpu.kernels import CupyKernels
from sparsednn.dense.concurrency.gpu.measuring import measure_gpu_pairs, measure_gpu_profile
from sparsednn.dense.concurrency.gpu.streams import StreamExecution
from sparsednn.dense.concurrency.profile import Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.planner import plan
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.networks import make_network
from sparsednn.errors import DeviceMemoryError, SparseDNNError, UsageError

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
#: Megabytes of workspace at one time; None: as much as is wanted.
_LIMITS = (None, 256, 64, 16, 4)
_WAYS = {
    "serial": (False, False),
    "graphs": (False, True),
    "streams": (True, False),
    "both": (True, True),
}
_REPEATS = 9


def make_kernels(graph: OperationGraph, lanes: int, *, dry_run: bool) -> CupyKernels:
    parameters = initial_parameters(graph)
    if not dry_run:
        return CupyKernels(graph, parameters, lanes)
    from sparsednn.dense.concurrency.gpu.twin import TwinCupy, TwinProducts

    twin = TwinCupy()
    return CupyKernels(graph, parameters, lanes, xp=twin, products=TwinProducts(twin))


def run_way(
    tasks: TaskGraph,
    schedule: Schedule,
    kernels: CupyKernels,
    how: str,
    x: Any,
    passes: int,
    repeats: int,
) -> tuple[dict[str, Any], Any]:
    """Median seconds of a pass, and the logits."""
    streams, graphs = _WAYS[how]
    execution = StreamExecution(tasks, schedule, kernels, streams=streams, graphs=graphs)
    execution.tensors[tasks.graph.input].set(x)
    for _ in range(3):
        execution.forward()
    logits = kernels.xp.asnumpy(execution.tensors[tasks.output])
    seconds = [execution.seconds(passes=passes) for _ in range(repeats)]
    median = statistics.median(seconds)
    row = {
        "how": how,
        "schedule": schedule.name,
        "seconds": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "predicted": schedule.seconds,
        "images_per_second": tasks.images / median,
        "arena_bytes": execution.arena_bytes,
        "workspace_bytes": schedule.workspace_bytes,
        "events": execution.events[0] if streams else 0,
        "held_bytes": execution.held_bytes,
    }
    execution.close()
    return row, logits


def schedules_for(
    tasks: TaskGraph, profile: Profile, limit: int | None, effort: Any
) -> tuple[Schedule, Schedule, list[Schedule]]:
    """The serial one, the one with lanes side by side that is predicted quickest, and all."""
    found = plan(tasks, profile, workspace_limit=limit, effort=effort)
    serial = next(one for one in found if one.name.startswith("serial"))
    concurrent = next(one for one in found if not one.name.startswith("serial"))
    return serial, concurrent, found


def run_batch(
    options: argparse.Namespace, graph: OperationGraph, images: int, figures: dict[str, Any]
) -> None:
    tasks = TaskGraph(graph, images)
    begin = time.perf_counter()
    kernels = make_kernels(graph, options.lanes, dry_run=options.dry_run)
    calls, copied = (1, 1 << 16) if options.dry_run else (10, 256 << 20)
    profile = measure_gpu_profile(tasks, kernels, calls=calls, copied_bytes=copied)
    _, _, found = schedules_for(tasks, profile, None, "quick")
    pairs = measure_gpu_pairs(
        tasks, kernels, profile, [one for one in found if not one.name.startswith("serial")],
        most=1 if options.dry_run else 40,
    )  # fmt: skip
    prepared = time.perf_counter() - begin
    figures["device"] = kernels.device
    figures["wait_seconds"] = profile.wait_seconds
    work = sum(choices[0].seconds for choices in profile.choices.values())
    print(
        f"{images} images: profile of {sum(map(len, profile.choices.values()))} ways and {pairs} "
        f"pairs in {prepared:.0f} s; all tasks one by one {work * 1e3:.3f} ms",
        flush=True,
    )
    x = np.random.default_rng(0).standard_normal((images, *graph.image), np.float32)
    repeats = 1 if options.dry_run else _REPEATS
    passes = 1 if options.dry_run else max(2, min(100, int(0.05 / max(work, 1e-6))))
    for limit in (None, 1) if options.dry_run else _LIMITS:
        row: dict[str, Any] = {"images": images, "limit_megabytes": limit, "ways": []}
        figures["runs"].append(row)
        try:
            serial, concurrent, _ = schedules_for(
                tasks, profile, limit if limit is None else limit << 20, options.effort
            )
        except UsageError as error:
            row["left_out"] = str(error)
            print(f"{'':<4}limit {limit} MB: {error}")
            continue
        logits = {}
        for how in _WAYS:
            schedule = concurrent if _WAYS[how][0] else serial
            one, logits[how] = run_way(tasks, schedule, kernels, how, x, passes, repeats)
            row["ways"].append(one)
        # The same schedule gives the same bits, however it is launched.
        same = [("serial", "graphs"), ("streams", "both")]
        differ = sum(not np.array_equal(logits[a], logits[b]) for a, b in same)
        figures["results_differ"] = figures.get("results_differ", 0) + differ
        scale = float(np.abs(logits["serial"]).max())
        row["between_schedules"] = float(np.abs(logits["both"] - logits["serial"]).max()) / scale
        base = row["ways"][0]["seconds"]
        print(
            f"{'':<4}limit {'none' if limit is None else f'{limit} MB':<7}"
            + "  ".join(
                f"{one['how']} {one['images_per_second']:>9.1f}/s ({base / one['seconds']:.2f}×)"
                for one in row["ways"]
            ),
            flush=True,
        )
    kernels.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Concurrent operations on one GPU, measured.")
    parser.add_argument("--network", default="googlenet", help="name of a network")
    parser.add_argument("--batches", default=",".join(map(str, _BATCHES)), help="images of a pass")
    parser.add_argument("--lanes", type=int, default=4, help="streams")
    parser.add_argument("--effort", default="quick", help="of the schedules' search")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=450, help="begin nothing after so long")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on NumPy")
    options = parser.parse_args()
    end = time.perf_counter() + options.seconds
    graph = make_network(options.network, image=(3, 8, 8) if options.dry_run else None)
    batches = [1] if options.dry_run else [int(one) for one in options.batches.split(",")]
    figures: dict[str, Any] = {
        "network": options.network,
        "dry_run": options.dry_run,
        "lanes": options.lanes,
        "runs": [],
        "left_out": [],
    }
    for images in batches:
        if time.perf_counter() > end:
            print(f"{images} images left out: no time for it")
            figures["left_out"].append(images)
            continue
        try:
            run_batch(options, graph, images, figures)
        except DeviceMemoryError as error:
            print(f"{images} images left out: {error}")
            figures["left_out"].append(images)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    try:
        main()
    except SparseDNNError as error:
        sys.exit(f"benchmarks/concurrency_gpu.py: {error}")
