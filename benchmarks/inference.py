"""Inference of the official network: our kernels, other libraries, and the arithmetic bound.

``python benchmarks/inference.py --mnist FOLDER [--json FILE]``. Everything is timed in one run, in
turn, median of five, because machines are shared and drift. All contenders get the same inputs in
memory, drop dead columns after every layer, and have to find the official number of categories.

Columns: seconds; edges/s = images × edges / seconds (the challenge's rate, which counts the edges
of dead images too); GMAC/s = billions of the multiply-adds that live columns need, per second; and
the part of the bound, which is these multiply-adds at the machine's measured peak.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peak import fma_lanes_per_second

from sparsednn import InputSet, SparseLayer, SparseNetwork
from sparsednn.datasets import graph_challenge_inputs, graph_challenge_network, load_mnist
from sparsednn.errors import SparseDNNError
from sparsednn.kernels.cpu import NumbaPlan
from sparsednn.kernels.reference import ReferencePlan
from sparsednn.machine import machine

_REPEATS = 5
_CHUNK = 8192  # columns that the other libraries are given at a time; 2,048 to 60,000 are slower
Columns = NDArray[np.float32]
Step = Callable[[int, Columns], Columns]  # one layer without activation: (index, x) -> W x


def median_seconds(run: Callable[[], Any], repeats: int = _REPEATS) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def through_library(network: SparseNetwork, inputs: InputSet, multiply: Step) -> int:
    """Run a network with another library's product; returns the number of categories."""
    found = 0
    for first in range(0, inputs.n_images, _CHUNK):
        x = inputs.columns(first, min(first + _CHUNK, inputs.n_images)).to_dense()
        for index, layer in enumerate(network):
            z = multiply(index, x)
            z += layer.bias[:, None]
            np.clip(z, 0, 32, out=z)
            alive = z.any(axis=0)
            x = z if alive.all() else np.ascontiguousarray(z[:, alive])
        found += x.shape[1]
    return found


def torch_step(network: SparseNetwork, threads: int) -> Step | None:
    if find_spec("torch") is None:
        return None
    import warnings

    import torch

    torch.set_num_threads(threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "CSR is in beta state"
        weights = [
            torch.sparse_csr_tensor(
                torch.from_numpy(layer.indptr),
                torch.from_numpy(layer.indices.astype(np.int64)),
                torch.from_numpy(layer.values.copy()),
                size=layer.shape,
            )
            for layer in network
        ]

    def step(index: int, x: Columns) -> Columns:
        return np.asarray((weights[index] @ torch.from_numpy(x)).numpy())

    return step


def mkl_step(network: SparseNetwork, threads: int) -> Step | None:
    if find_spec("sparse_dot_mkl") is None:
        return None
    # The `mkl` wheel puts the library where sparse_dot_mkl does not look by itself.
    for library in sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*")):
        os.environ.setdefault("MKL_RT", str(library))
    from scipy.sparse import csr_matrix

    try:
        from sparse_dot_mkl import dot_product_mkl, mkl_set_num_threads
    except ImportError:
        return None

    mkl_set_num_threads(threads)
    weights = [csr_matrix(layer.weight) for layer in network]

    def step(index: int, x: Columns) -> Columns:
        return np.asarray(dot_product_mkl(weights[index], x))

    return step


def live_columns(network: SparseNetwork, inputs: InputSet) -> int:
    """Columns that are alive in front of each layer, summed over the layers (the needed work)."""
    total = inputs.n_images
    alive = inputs.n_images
    for depth in range(1, len(network)):
        if depth <= 32 or depth % 16 == 0:  # behind the first layers hardly any image dies
            alive = int(NumbaPlan(SparseNetwork(network[:depth]), threads=2).run(inputs).sum())
        total += alive
    return total


def undying(network: SparseNetwork) -> SparseNetwork:
    """The same weights with no bias: every column lives through all layers."""
    return SparseNetwork(
        [
            SparseLayer(
                layer.indptr,
                layer.indices,
                layer.values,
                layer.n_in,
                activation="clamped_relu:32",
                check=False,
            )
            for layer in network
        ]
    )


def scattered(neurons: int, layers: int, fan_in: int, seed: int) -> SparseNetwork:
    """No two rows with the same pattern: what a network pruned without structure looks like."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(layers):
        columns = rng.permuted(np.tile(np.arange(neurons, dtype=np.int32), (neurons, 1)), axis=1)
        indices = np.sort(columns[:, :fan_in], axis=1).ravel()
        values = rng.random(indices.size, np.float32) / fan_in
        indptr = np.arange(neurons + 1) * fan_in
        made.append(SparseLayer(indptr, indices, values, neurons, activation="clamped_relu:32"))
    return SparseNetwork(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--mnist", type=Path, help="folder with the MNIST idx files")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--threads", type=int, default=machine().cores)
    options = parser.parse_args()
    threads: int = options.threads

    try:
        pixels, _ = load_mnist(options.mnist, "train")
    except SparseDNNError as error:
        sys.exit(f"the official inputs are made from MNIST: {error}")
    inputs = graph_challenge_inputs(1024, pixels)
    network = graph_challenge_network(1024, 120)
    dense_images = inputs.columns(0, 6000)

    peak = {count: fma_lanes_per_second(count) for count in sorted({1, threads})}
    needed = live_columns(network, inputs) * network[0].nnz
    bound = needed / peak[threads]
    rows: list[dict[str, Any]] = []

    def report(name: str, count: int, seconds: float, categories: int) -> None:
        if categories != 1812:
            sys.exit(f"{name}: {categories} categories instead of 1812")
        rows.append(
            {
                "contender": name,
                "threads": count,
                "seconds": seconds,
                "edges_per_second": inputs.n_images * network.edges / seconds,
                "multiply_adds_per_second": needed / seconds,
                "part_of_bound": needed / peak[count] / seconds,
            }
        )
        print(
            f"{name:<28}{count:>8}{seconds:>11.4f}{rows[-1]['edges_per_second']:>13.3e}"
            f"{needed / seconds / 1e9:>12.1f}{rows[-1]['part_of_bound']:>10.1%}",
            flush=True,
        )

    print(f"{machine().processor}, {threads} threads; peak of one core {peak[1] / 1e9:.1f} and of")
    print(f"all {peak[threads] / 1e9:.1f} billion multiply-adds/s; live columns need {needed:.4g}:")
    print(f"arithmetic bound {bound:.4f} s\n")
    print(f"{'1024 × 120, 60,000 images':<28}{'threads':>8}{'seconds':>11}{'edges/s':>13}", end="")
    print(f"{'GMAC/s':>12}{'of bound':>10}")
    for count in sorted({1, threads}, reverse=True):
        plan = NumbaPlan(network, threads=count)
        seconds = median_seconds(partial(plan.run, inputs))
        report("sparsednn numba", count, seconds, int(plan.run(inputs).sum()))
    reference = ReferencePlan(network)
    found = int(reference.run(inputs).sum())
    report("sparsednn reference (SciPy)", 1, median_seconds(partial(reference.run, inputs)), found)
    missing = []
    for name, step in (
        ("PyTorch CSR", torch_step(network, threads)),
        ("MKL sparse", mkl_step(network, threads)),
    ):
        if step is None:
            missing.append(name)
            continue
        run = partial(through_library, network, inputs, step)
        report(name, threads, median_seconds(run), run())
    if missing:
        print(f"not installed, so not measured: {', '.join(missing)}")

    print(f"\n{'dense columns, one core':<44}{'edges/s':>13}{'of peak':>10}")
    dense_rates = {}
    for name, dense in (
        ("official patterns (16 rows share each)", undying(network)),
        ("no two rows share a pattern", scattered(1024, 120, 32, seed=7)),
    ):
        plan = NumbaPlan(dense, threads=1)
        seconds = median_seconds(partial(plan.run, dense_images))
        alive = plan.run(dense_images).mean()
        rate = dense_images.n_images * dense.edges / seconds
        dense_rates[name] = rate
        print(f"{name:<44}{rate:>13.3e}{rate / peak[1]:>10.1%}   ({alive:.0%} of columns alive)")

    if options.json is not None:
        figures = {
            "processor": machine().processor,
            "threads": threads,
            "peak_lanes_per_second": peak,
            "needed_multiply_adds": needed,
            "bound_seconds": bound,
            "rows": rows,
            "dense_columns_edges_per_second": dense_rates,
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
