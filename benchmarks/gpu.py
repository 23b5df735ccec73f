"""The GPU engine on one device: official networks, roofs, cuSPARSE, training.

``python benchmarks/gpu.py [--mnist FOLDER] [--json FILE]`` measures, in this order: what the device
can do at most; training steps; the official networks, with and without copies, in fp32 and fp16,
with and without merging equal columns; each part of those of 120 layers over the roofs; and for two
of them cuSPARSE through CuPy on the same inputs. It stops beginning new networks when `--seconds`
are over (by default 450), and says which it left out. Without MNIST the inputs are the digits,
repeated: rates then cannot be compared with published ones, and the first lines say so.

``--dry-run`` goes through everything with tiny sizes on the NumPy twin: figures mean nothing then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _gpu_training import measure_training

from sparsednn import InputSet, SparseNetwork
from sparsednn.errors import SparseDNNError
from sparsednn.gpu import find_device
from sparsednn.gpu.ceilings import Ceilings, measure
from sparsednn.gpu.device import Device
from sparsednn.kernels.gpu import GpuPlan
from sparsednn.sources import load_inputs, load_network

#: Neurons and layers, in the order of work; official categories after 120 layers.
NETWORKS = (
    (1024, 120), (1024, 480), (1024, 1920), (4096, 120), (4096, 480), (16384, 120),
    (4096, 1920), (65536, 120), (16384, 480), (65536, 480), (16384, 1920), (65536, 1920),
)  # fmt: skip
CATEGORIES = {1024: 1812, 4096: 1801, 16384: 1918, 65536: 1994}

#: Best published seconds on one GPU (facts: SNICIT's Table 3, RTX A6000) and the 2020 champion's
#: rates on one A100 (arXiv 2007.14152), edges a second.
PUBLISHED_SECONDS = {
    (1024, 120): 0.0134, (1024, 1920): 0.0725, (4096, 120): 0.0324,
    (16384, 1920): 0.179, (65536, 1920): 0.689,
}  # fmt: skip
PUBLISHED_RATES = {
    (1024, 120): 16.7e12, (1024, 1920): 20.7e12, (4096, 120): 14.3e12,
    (16384, 1920): 15.3e12, (65536, 1920): 9.33e12,
}  # fmt: skip

_REPEATS = 5


class Clock:
    """How much of the time is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.perf_counter()


def inputs_for(neurons: int, images: int, mnist: Path | None) -> InputSet:
    """The official inputs, or the digits as often as needed."""
    if mnist is not None:
        return load_inputs(
            f"graph-challenge:{neurons}", n_features=neurons, mnist=mnist, images=images
        )
    digits = load_inputs(f"digits:{neurons}", n_features=neurons)
    return digits.pick(np.arange(images) % digits.n_images)


def run_once(plan: GpuPlan, inputs: InputSet) -> tuple[float, float, float, int]:
    """Wall seconds, seconds on the device and of copies, and categories of one run."""
    plan.forget_times()
    start = time.perf_counter()
    found = plan.run(inputs)
    wall = time.perf_counter() - start
    return wall, plan.device_seconds, plan.copy_seconds, int(found.sum())


def run_network(
    device: Device, network: SparseNetwork, inputs: InputSet, **options: Any
) -> dict[str, Any]:
    """Median of some runs; packing and copying the weights apart."""
    start = time.perf_counter()
    plan = GpuPlan(device, network, **options)
    plan.reserve(inputs, False)
    run_once(plan, inputs)
    prepared = time.perf_counter() - start
    runs = [run_once(plan, inputs) for _ in range(_REPEATS)]
    wall, busy, copies = (statistics.median(one[i] for one in runs) for i in range(3))
    work = network.edges * inputs.n_images
    return {
        **options,
        "streamed": plan.streamed,
        "chunks": -(-inputs.n_images // plan.columns),
        "prepare_seconds": prepared,
        "wall_seconds": wall,
        "device_seconds": busy,
        "copy_seconds": copies,
        "edges_per_second": work / wall,
        "edges_per_device_second": work / busy,
        "categories": runs[-1][3],
        "merged": plan.merged_columns,
    }


def over_the_roofs(
    device: Device, network: SparseNetwork, inputs: InputSet, roofs: Ceilings
) -> list[dict[str, Any]]:
    """Each part's multiply-adds and bytes against what the device can do at most.

    Bytes are those that a part has to move at least once: weights, the columns read and
    written. Multiply-adds are those of the columns that are there, dead or not.
    """
    plan = GpuPlan(device, network)
    parts = []
    size = 4
    for part in plan.profile(inputs):
        layers = list(network)[part.first : part.last]
        n_in, n_out = layers[0].n_in, layers[-1].n_out
        lines = n_in + n_out
        adds = 0.0
        weights = 0
        if part.kind != "drop":
            edges = sum(layer.nnz for layer in layers)
            adds = float(edges) * part.columns
            weights = edges * 4
            if part.kind == "layer":
                lines = sum(layer.n_in + layer.n_out for layer in layers)
        moved = lines * size * part.columns + weights
        parts.append(
            {
                "kind": part.kind,
                "first": part.first + 1,
                "last": part.last,
                "columns": part.columns,
                "seconds": part.seconds,
                "of_multiply_adds": adds / part.seconds / roofs.multiply_adds,
                "of_memory": moved / part.seconds / roofs.memory_bytes,
            }
        )
    return parts


def run_cusparse(network: SparseNetwork, inputs: InputSet) -> dict[str, Any]:
    """The same network layer by layer through CuPy: SpMM of all columns, bias, clamp."""
    import cupy
    from cupyx.profiler import benchmark

    from sparsednn.gpu.cusparse import cusparse_dense, cusparse_matrix, cusparse_product

    layers = [(cusparse_matrix(layer.weight), float(layer.bias[0])) for layer in network]
    first = cusparse_dense(inputs.to_dense())

    def run() -> Any:
        x = first
        for weight, bias in layers:
            x = cusparse_product(weight, x)
            x += cupy.float32(bias)
            cupy.clip(x, 0, 32, out=x)
        return x

    found = benchmark(run, n_repeat=2, n_warmup=1)
    seconds = float(np.median(found.gpu_times))
    categories = int((run() > 0).any(axis=0).sum())
    work = network.edges * inputs.n_images
    return {"device_seconds": seconds, "edges_per_device_second": work / seconds,
            "categories": categories}  # fmt: skip


@dataclass
class Costs:
    """What the next network will take, from what the last one took; at first a guess."""

    edge: float = 5e-8  # seconds to make an edge, to pack it, and to run it some times
    neuron: float = 5e-3  # seconds for the inputs of a network, over its neurons

    def seconds(self, neurons: int, edges: int, packed: int, *, made: bool) -> float:
        """Of a network that is packed so often; `made`: whether its inputs are there."""
        return 1.5 * (self.edge * edges * packed + (0 if made else self.neuron * neurons))


def warm_up(device: Device, ways: list[dict[str, Any]]) -> None:
    """Compile all kernels, and what packs networks: no time of any network."""
    network = load_network("graph-challenge:1024-120", layers=12)
    inputs = load_inputs("digits:1024", n_features=1024, images=64)
    for way in ways:
        GpuPlan(device, network, **way).run(inputs)


def run_networks(
    device: Device,
    options: argparse.Namespace,
    clock: Clock,
    roofs: Ceilings,
    found: list[dict[str, Any]],
    save: Callable[[], None],
) -> None:
    """All official networks that there is time for go to `found`; saved one by one."""
    images = 64 if options.dry_run else 60_000
    inputs: dict[int, InputSet] = {}
    costs = Costs()
    ways: list[dict[str, Any]] = [{}, {"merge": False}, {"precision": "fp16"}]
    warm_up(device, ways)
    print(
        f"{'network':<12}{'how':<14}{'wall ms':>9}{'device ms':>11}{'copies ms':>11}"
        f"{'edges/s':>11}{'(device)':>11}{'categories':>12}{'published ms':>14}"
    )
    for neurons, depth in NETWORKS[:1] if options.dry_run else NETWORKS:
        layers = 12 if options.dry_run else depth
        edges = 32 * neurons * layers
        few = ways if edges < 2e9 else ways[:1]
        packed = len(few) + (depth == 120)  # how often; once more to look at its parts
        if clock.left < costs.seconds(neurons, edges, packed, made=neurons in inputs):
            print(f"{neurons}-{depth:<7} left out: no time for it")
            found.append({"neurons": neurons, "layers": depth, "left_out": "no time"})
            continue
        if neurons not in inputs:
            begin = time.perf_counter()
            inputs[neurons] = inputs_for(neurons, images, options.mnist)
            costs.neuron = (time.perf_counter() - begin) / neurons
        here = inputs[neurons]
        begin = time.perf_counter()
        network = load_network(f"graph-challenge:{neurons}-{depth}", layers=layers)
        one: dict[str, Any] = {"neurons": neurons, "layers": layers, "images": images, "runs": []}
        for way in few:
            result = run_network(device, network, here, **way)
            one["runs"].append(result)
            costs.edge = (time.perf_counter() - begin) / edges / len(one["runs"])
            name = " ".join(f"{key}={value}" for key, value in way.items()) or "fp32 merge"
            published = PUBLISHED_SECONDS.get((neurons, layers))
            print(
                f"{neurons}-{depth:<7}{name:<14}{result['wall_seconds'] * 1e3:>9.2f}"
                f"{result['device_seconds'] * 1e3:>11.2f}{result['copy_seconds'] * 1e3:>11.2f}"
                f"{result['edges_per_second']:>11.2e}{result['edges_per_device_second']:>11.2e}"
                f"{result['categories']:>12}" + (f"{published * 1e3:>14.1f}" if published else ""),
                flush=True,
            )
        official = CATEGORIES[neurons]
        if options.mnist and not options.dry_run and depth == 120:
            # How many, not which: `tests/gpu`, and `infer --truth`, compare the ids.
            one["official_categories"] = official
            one["as_many"] = one["runs"][0]["categories"] == official
            print(f"{'':<12}official categories: {official}")
        if depth == 120:
            one["parts"] = over_the_roofs(device, network, here, roofs)
        if (neurons, depth) in ((1024, 120), (4096, 120)) and not options.dry_run:
            one["cusparse"] = rival = run_cusparse(network, here)
            ours = one["runs"][0]["device_seconds"]
            print(
                f"{'':<12}{'cuSPARSE':<14}{'':>9}{rival['device_seconds'] * 1e3:>11.2f}{'':>11}"
                f"{'':>11}{rival['edges_per_device_second']:>11.2e}{rival['categories']:>12}"
                f"   ours is {rival['device_seconds'] / ours:.0f} times faster",
                flush=True,
            )
        found.append(one)
        save()


def print_parts(networks: list[dict[str, Any]]) -> None:
    """The parts of one network that take longest."""
    for one in networks:
        parts = sorted(one.get("parts", ()), key=lambda part: -float(part["seconds"]))[:8]
        if not parts:
            continue
        total = sum(part["seconds"] for part in one["parts"])
        print(f"\n{one['neurons']}-{one['layers']}: parts that take longest")
        print(
            f"{'part':<10}{'layers':>12}{'columns':>9}{'µs':>9}{'share':>7}{'FMA':>7}{'memory':>8}"
        )
        for part in sorted(parts, key=lambda part: int(part["first"])):
            print(
                f"{part['kind']:<10}{part['first']:>6}…{part['last']:<5}{part['columns']:>9}"
                f"{part['seconds'] * 1e6:>9.1f}{part['seconds'] / total:>7.0%}"
                f"{part['of_multiply_adds']:>7.0%}{part['of_memory']:>8.0%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="The GPU engine, measured.")
    parser.add_argument("--mnist", type=Path, help="folder with the idx files")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--seconds", type=float, default=450, help="begin nothing after so long")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the NumPy twin")
    options = parser.parse_args()
    clock = Clock(options.seconds)
    device = _device(options.dry_run)
    print(f"{device.name}: {device.multiprocessors} multiprocessors, "
          f"{device.total_bytes() / 2**30:.0f} GiB")  # fmt: skip
    if options.mnist is None:
        print("inputs: digits, repeated (no --mnist): not the official ones")
    roofs = measure(device, **({"megabytes": 1, "rounds": 2} if options.dry_run else {}))
    print("  ".join(f"{name} {value:.3g}/s" for name, value in asdict(roofs).items()), flush=True)
    figures: dict[str, Any] = {
        "device": device.name,
        "inputs": "digits, repeated" if options.mnist is None else "official, from MNIST",
        "dry_run": options.dry_run,
        "ceilings": asdict(roofs),
    }

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))

    figures["training"] = measure_training(device, clock.left * 0.35, options.dry_run)
    figures["networks"] = []
    run_networks(device, options, clock, roofs, figures["networks"], save)
    save()
    print_parts(figures["networks"])


def _device(dry_run: bool) -> Device:
    if dry_run:
        from sparsednn.gpu.twin import TwinDevice

        return TwinDevice()
    found = find_device("gpu")
    assert found is not None  # or it has raised
    return found


if __name__ == "__main__":
    try:
        main()
    except SparseDNNError as error:
        sys.exit(f"benchmarks/gpu.py: {error}")
