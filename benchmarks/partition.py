"""Words of every method on the official networks and on pruned models, in one table.

``python benchmarks/partition.py [MODEL:PARTS …] [--models FOLDER] [--mnist FOLDER] [--json FILE]``

Without arguments: the official networks 1024-120 (24 and 120 layers; K = 2, 8, 16, 64), 4096-120
(K = 32) and 16384-120 (K = 64), and the models of ``pruned_models.py`` (K = 4, 8, 16; made anew if
``--models`` does not have them; needs PyTorch). MODEL is a path or a name, as for ``sparsednn
partition``. ``multi rows`` is multiphase with every row by itself, as in the paper; otherwise rows
of equal pattern stay together. Words are per image and layer; ``of best`` is joint over the best
multiphase chain.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sparsednn.network import SparseNetwork
from sparsednn.partitioners import Compared, Options, compare
from sparsednn.partitioners.methods import NATIVE
from sparsednn.partitioners.report import partitioned
from sparsednn.sources import load_network

#: Network, layers, parts.
_OFFICIAL = (
    *(("graph-challenge:1024-24", parts) for parts in (2, 8, 16, 64)),
    *(("graph-challenge:1024-120", parts) for parts in (2, 8, 16, 64)),
    ("graph-challenge:4096-16", 32),
    ("graph-challenge:4096-120", 32),
    ("graph-challenge:16384-120", 64),
)
_PRUNED_PARTS = (4, 8, 16)
#: Up to so many edges multiphase is also measured with every row by itself.
_ROWS_EDGES = 20_000_000


def measure(model: str, parts: int) -> Iterator[tuple[Compared, dict[str, Any]]]:
    """Compare all methods on one network."""
    network = load_network(model)
    name = Path(model).name if "/" in model else model
    print(f"\n{name}, {len(network)} layers, {network.edges:,} edges, K = {parts}", flush=True)
    print(
        f"{'method':<12}{'partitioner':<12}{'words/layer':>12}{'of best':>9}{'messages/layer':>16}"
        f"{'most by one':>13}{'imbalance':>11}{'seconds':>9}{'s/10^6 nnz':>12}"
    )
    best: int | None = None
    ways = [compare(network, Options(parts, warn=_warn))]
    if network.edges <= _ROWS_EDGES and model.startswith("graph-challenge"):
        ways.insert(0, _by_rows(network, parts))
    for found in chain.from_iterable(ways):
        stats, layers = found.stats, len(network)
        if found.method.startswith("multi"):
            best = stats.words_total if best is None else min(best, stats.words_total)
        # Joint against the best of all chains; what comes before it is not known to all.
        ratio = f"{stats.words_total / best:.3f}" if best and found.method == "joint" else ""
        shown = found.partitioner if found.method != "joint" else "all"
        rate = found.seconds / (network.edges / 1e6)
        print(
            f"{found.method:<12}{shown:<12}{stats.words_total / layers:>12.1f}{ratio:>9}"
            f"{stats.messages_total / layers:>16.1f}{stats.max_words_per_rank / layers:>13.1f}"
            f"{stats.imbalance_max:>11.3f}{found.seconds:>9.1f}{rate:>12.2f}",
            flush=True,
        )
        yield (
            found,
            {
                "network": name,
                "layers": layers,
                "edges": network.edges,
                "parts": parts,
                "method": found.method,
                "partitioner": found.partitioner,
                "version": found.partition.meta.version,
                "words_per_layer_mean": stats.words_total / layers,
                "words_total": stats.words_total,
                "messages_total": stats.messages_total,
                "max_words_per_rank": stats.max_words_per_rank,
                "imbalance_max": stats.imbalance_max,
                "seconds": found.seconds,
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
            },
        )


def _by_rows(network: SparseNetwork, parts: int) -> Iterator[Compared]:
    for name in NATIVE:
        options = Options(parts, rows=True, warn=_warn)
        found = partitioned(network, options, method="multiphase", partitioner=name)
        yield replace(found, method="multi rows")


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Words of every partitioning method.")
    parser.add_argument("runs", nargs="*", help="MODEL:PARTS (default: all)")
    parser.add_argument("--models", type=Path, help="folder of the pruned models")
    parser.add_argument("--mnist", type=Path, help="folder with the idx files (default: digits)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        runs = []
        for run in options.runs:
            model, _, parts = run.rpartition(":")
            runs.append((model, int(parts)))
        if not runs:
            from pruned_models import make

            runs = list(_OFFICIAL)
            folder: Path = options.models or Path(temporary)
            files = sorted(folder.glob("*.pt")) or make(folder, options.mnist)
            runs += [(str(file), parts) for file in files for parts in _PRUNED_PARTS]
        for model, parts in runs:
            found = [row for _, row in measure(model, parts)]
            joint, chains = found[-1], [r for r in found if r["method"].startswith("multi")]
            if chains:
                least = min(r["words_total"] for r in chains)
                joint["of_best_multiphase"] = float(np.float64(joint["words_total"]) / least)
            rows += found
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
