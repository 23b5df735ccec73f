"""Official networks without a GPU: the engine on the twin, or the real kernels' PTX, interpreted.

``PYTHONPATH=tests python tests/gpu/official_runs.py --mnist FOLDER [--truth FILE] [--neurons N]
[--layers L] [--images I] [--on twin|ptx]`` prints what the categories are compared with: the truth,
or the numba kernel's. Exit code 1 if they differ. All 60,000 images of 1024 × 120 take half a
minute on the twin, and some minutes as PTX.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from sparsednn.formats import read_categories
from sparsednn.gpu.twin import TwinDevice
from sparsednn.inference import compare_categories, infer
from sparsednn.kernels.gpu import GpuPlan
from sparsednn.sources import load_inputs, load_network


def make_device(kind: str):
    if kind == "twin":
        return TwinDevice(memory=16 << 30)
    from ptx import EmulatedDevice

    device = EmulatedDevice(memory=16 << 30)
    device.shared_bytes = 227 << 10  # as an H200 has
    return device


def main() -> None:
    parser = argparse.ArgumentParser(description="Official networks without a GPU.")
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--neurons", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=120)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--on", choices=("twin", "ptx"), default="ptx")
    options = parser.parse_args()
    network = load_network(f"graph-challenge:{options.neurons}-{options.layers}")
    inputs = load_inputs(
        f"graph-challenge:{options.neurons}",
        n_features=options.neurons,
        mnist=options.mnist,
        images=options.images,
    )
    device = make_device(options.on)
    plan = GpuPlan(device, network)
    start = time.perf_counter()
    found = np.flatnonzero(plan.run(inputs)) + 1
    print(
        f"{network.name}, {inputs.n_images} images on {device.name}: {found.size} categories, "
        f"{plan.merged_columns} images merged, {time.perf_counter() - start:.0f} s"
    )
    cascade = plan._cascade
    if cascade is not None:  # of the last chunk
        left = device.download(cascade.counts)[1:]
        behind = ", ".join(f"{k + 1}: {n}" for k, n in zip(cascade.points, left, strict=True))
        print(f"columns left behind layers {behind}")
    statistics = getattr(device, "statistics", None)
    if statistics:
        total = sum(one.lane_instructions for one in statistics.values())
        print(f"{total:.3g} instructions of threads, each access checked")
    if options.truth is not None:
        truth, name = read_categories(options.truth), str(options.truth)
    else:
        truth, name = infer(network, inputs).categories + 1, "the numba kernel"
    difference = compare_categories(found, truth)
    print(f"against {name}: {difference or 'pass'}")
    sys.exit(difference is not None)


if __name__ == "__main__":
    main()
