"""Inference on ranks: how much faster are two than one, and what do partitions and overlap do?

``python benchmarks/distributed.py --mnist FOLDER [--json FILE] [--rounds 3]``. Every configuration
is started under mpirun as a program of its own, which times its run several times; all take turns
in several rounds, since machines are shared and drift, and the median of all times is told.

Networks: the official 1024-120 with its 60,000 images, of which most die (as ``sparsednn infer``
runs it), and the same weights without bias, where every column lives through all layers
(``undying``), at batches of 1 (a sparse matrix times a vector), 64 and 1,024; ``scattered`` has as
many weights as that, but no two rows with the same pattern; ``4096`` is the official 4096-120. One
rank is the ordinary kernel on one thread. More ranks than cores share them: their times say little,
their words all.

``--memory`` measures something else instead: peak resident memory of each rank that runs the
official 16384-120 with 60,000 images, on 1, 2 and 4 ranks (cyclic partitions), beyond what the
process had before it loaded anything.

Columns: median seconds; speed-up over one rank of the same network and batch; words between ranks
per image and layer that were really sent; seconds of each phase, the largest of all ranks in each
layer, summed; and which part of the waiting without overlap the overlap hides.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from peak import fma_lanes_per_second

from sparsednn import InputSet, SparseLayer, SparseNetwork
from sparsednn.machine import machine
from sparsednn.partitioners import Options, Partition, make_partition

_REPEATS = 6
_LAYERS = 120
_LARGE = ("4096", "16384")
_MODELS = {
    "official": "graph-challenge:1024-120",
    "4096": "graph-challenge:4096-120",
    "16384": "graph-challenge:16384-120",
}


@dataclass(frozen=True)
class Case:
    """One configuration; `partition` names a method, None is data parallelism."""

    network: str
    images: int
    ranks: int
    partition: str | None = None
    overlap: bool = True

    @property
    def name(self) -> str:
        way = self.partition or ("data" if self.ranks > 1 else "-")
        return f"{self.network} {self.images}, {self.ranks} × {way}" + (
            "" if self.overlap else ", no overlap"
        )


def cases() -> list[Case]:
    official = [Case("official", 60000, 1), Case("official", 60000, 2)]
    for ranks in (2, 4, 8):
        for method in ("joint", "random"):
            official.append(Case("official", 60000, ranks, method))
    official.append(Case("official", 60000, 2, "joint", overlap=False))
    official.append(Case("official", 60000, 2, "random", overlap=False))
    undying = []
    for images in (1, 64, 1024):
        undying.append(Case("undying", images, 1))
        if images > 1:
            undying.append(Case("undying", images, 2))
        for method in ("joint", "random"):
            undying.append(Case("undying", images, 2, method))
            undying.append(Case("undying", images, 2, method, overlap=False))
    others = [
        Case("scattered", 1024, 1),
        Case("scattered", 1024, 2),
        Case("scattered", 1024, 2, "random"),
        Case("scattered", 1024, 2, "random", overlap=False),
        Case("4096", 60000, 1),
        Case("4096", 60000, 2),
        Case("4096", 60000, 2, "joint"),
    ]
    return official + undying + others


def peak_kib() -> int:
    """Peak resident memory of this process, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work(folder: Path, case: Case) -> None:
    """What every rank of a started program does; rank 0 prints its figures as JSON."""
    from sparsednn.comm import world
    from sparsednn.comm.threads import limit_threads
    from sparsednn.datasets import graph_challenge_network
    from sparsednn.distributed import DistributedRun
    from sparsednn.inference import infer
    from sparsednn.kernels.linked import PHASES

    ranks = world()
    limit_threads(1)
    # The compiler takes memory, too; that is not what grows with the network.
    small = graph_challenge_network(1024, 1)
    infer(small, InputSet.from_dense(np.eye(1024, 2)))
    before = peak_kib()
    parts = folder / f"{case.network}.{case.partition}.p{case.ranks}.npz"
    run = DistributedRun(
        ranks,
        _MODELS.get(case.network, str(folder / f"{case.network}.safetensors")),
        str(folder / f"inputs{case.network if case.network in _LARGE else '1024'}.safetensors"),
        partition=None if case.partition is None else parts,
        images=case.images,
        overlap=case.overlap,
    )
    # The first runs touch memory for the first time and wake the cores: a third is not counted.
    first = run.run()
    repeats = (
        0 if case.network == "16384" else max(_REPEATS, min(2000, int(2 / first.infer_seconds)))
    )
    results = [first, *(run.run() for _ in range(repeats))][repeats // 3 :]
    seconds = [one.infer_seconds for one in results]
    phases = [one.seconds.sum(axis=0) for one in results]
    result = results[-1]
    memory = ranks.allgather(np.array([peak_kib() - before]))
    run.free()
    if ranks.rank == 0:
        told = {
            "seconds": seconds,
            "phases": {name: [float(p[i]) for p in phases] for i, name in enumerate(PHASES)},
            "words_sent": result.words_sent,
            "words_predicted": result.words_predicted,
            "messages_sent": result.messages_sent,
            "categories": int(result.categories.size),
            "tile_columns": run.columns,
            "edges": run.edges,
            "peak_mib": [int(kib) // 1024 for kib in memory],
        }
        print(json.dumps(told))


def prepare(folder: Path, mnist: Path) -> None:
    """Inputs, the undying network, and partitions, for all cases."""
    from sparsednn.datasets import graph_challenge_inputs, graph_challenge_network, load_mnist
    from sparsednn.formats import write_inputs, write_network

    images, _ = load_mnist(mnist, "train")
    write_inputs(graph_challenge_inputs(1024, images), folder / "inputs1024.safetensors")
    official = graph_challenge_network(1024, _LAYERS)
    undying = SparseNetwork(
        [
            SparseLayer(
                layer.indptr, layer.indices, layer.values, layer.n_in,
                activation="clamped_relu:32", check=False,
            )
            for layer in official
        ]
    )  # fmt: skip
    rng = np.random.default_rng(1)
    scattered = SparseNetwork([_scattered(layer, rng) for layer in undying])
    write_network(undying, folder / "undying.safetensors")
    write_network(scattered, folder / "scattered.safetensors")
    for ranks in (2, 4, 8):
        for partitioner in (None, "random"):
            made = _partition(official, ranks, partitioner)
            name = f"{partitioner or 'joint'}.p{ranks}.npz"
            made.save(folder / f"official.{name}")
            # The pattern is the same, so the partition is; it only has to name the network.
            meta = replace(made.meta, hash=undying.hash, network=undying.name)
            Partition(made.owners, made.parts, meta).save(folder / f"undying.{name}")
    _partition(scattered, 2, "random").save(folder / "scattered.random.p2.npz")
    wide = graph_challenge_network(4096, _LAYERS)
    write_inputs(graph_challenge_inputs(4096, images), folder / "inputs4096.safetensors")
    _partition(wide, 2, None).save(folder / "4096.joint.p2.npz")


def _partition(network: SparseNetwork, ranks: int, partitioner: str | None) -> Partition:
    method = "joint" if partitioner is None else "multiphase"
    return make_partition(network, Options(ranks), method=method, partitioner=partitioner)


def _scattered(layer: SparseLayer, rng: np.random.Generator) -> SparseLayer:
    """As many weights per row, in random columns."""
    fan_in = layer.nnz // layer.n_out
    columns = [np.sort(rng.permutation(layer.n_in)[:fan_in]) for _ in range(layer.n_out)]
    return SparseLayer(
        layer.indptr, np.concatenate(columns), layer.values, layer.n_in,
        activation=layer.activation, check=False,
    )  # fmt: skip


def prepare_large(folder: Path, mnist: Path) -> None:
    """What `--memory` needs."""
    from sparsednn.datasets import graph_challenge_inputs, graph_challenge_network, load_mnist
    from sparsednn.formats import write_inputs

    network = graph_challenge_network(16384, _LAYERS)
    for ranks in (2, 4):
        made = _partition(network, ranks, "cyclic")
        made.save(folder / f"16384.cyclic.p{ranks}.npz")
    images, _ = load_mnist(mnist, "train")
    write_inputs(graph_challenge_inputs(16384, images), folder / "inputs16384.safetensors")


def measure_memory(folder: Path) -> list[dict[str, Any]]:
    rows = []
    print("| ranks | peak MiB of each rank | largest × ranks |")
    print("| --- | --- | --- |")
    for ranks in (1, 2, 4):
        case = Case("16384", 60000, ranks, None if ranks == 1 else "cyclic")
        told = start(folder, case)
        peaks = told["peak_mib"]
        print(f"| {ranks} | {', '.join(map(str, peaks))} | {max(peaks) * ranks} |", flush=True)
        rows.append({"ranks": ranks, "peak_mib": peaks, "categories": told["categories"]})
    return rows


def start(folder: Path, case: Case) -> dict[str, Any]:
    from sparsednn.comm.launcher import run_command

    command = [sys.executable, __file__, "--work", str(folder), "--case", json.dumps(asdict(case))]
    with tempfile.TemporaryFile("w+") as out:
        outcome = run_command(case.ranks, command, stdout=out, timeout=600)
        out.seek(0)
        text = out.read()
    if outcome.code:
        raise SystemExit(f"{case.name}: exit code {outcome.code} {outcome.failure}")
    told: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mnist", type=Path, help="folder with the MNIST idx files")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="only cases whose name contains this")
    parser.add_argument("--folder", type=Path, help="keep prepared files here for the next time")
    parser.add_argument("--memory", action="store_true", help="peak memory of ranks, nothing else")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        work(given.work, Case(**json.loads(given.case)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        if given.memory:
            if not (folder / "inputs16384.safetensors").exists():
                prepare_large(folder, given.mnist)
            write(given.json, {"memory": measure_memory(folder)})
            return
        if not (folder / "4096.joint.p2.npz").exists():
            prepare(folder, given.mnist)
        measure(folder, given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    chosen = [c for c in cases() if given.only is None or given.only in c.name]
    found: dict[Case, list[dict[str, Any]]] = {case: [] for case in chosen}
    scaling = []
    for turn in range(given.rounds):
        # What two cores can give at all just now: a virtual machine's may share a real one.
        scaling.append(fma_lanes_per_second(2) / fma_lanes_per_second(1))
        for case in chosen:
            print(f"round {turn + 1}: {case.name}", file=sys.stderr, flush=True)
            found[case].append(start(folder, case))
    rows = []
    for case, runs in found.items():
        seconds = [s for run in runs for s in run["seconds"]]
        phases = {
            name: float(np.median([s for run in runs for s in run["phases"][name]]))
            for name in runs[0]["phases"]
        }
        rows.append(
            {
                **asdict(case),
                "name": case.name,
                "median_seconds": float(np.median(seconds)),
                "min_seconds": min(seconds),
                "phases": phases,
                **{key: runs[0][key] for key in runs[0] if key not in ("seconds", "phases")},
            }
        )
    scaling.append(fma_lanes_per_second(2) / fma_lanes_per_second(1))
    report(rows)
    print("\npeak of two cores over that of one, in turn:", ", ".join(f"{s:.2f}" for s in scaling))
    write(given.json, {"rounds": given.rounds, "peak_scaling": scaling, "cases": rows})


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures as JSON, with the machine and the commit that they are of."""
    if path is None:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    told = {"machine": asdict(machine()), "commit": commit, **figures}
    path.write_text(json.dumps(told, indent=1) + "\n")


def report(rows: list[dict[str, Any]]) -> None:
    single = {
        (row["network"], row["images"]): row["median_seconds"] for row in rows if row["ranks"] == 1
    }
    waits = {
        (row["network"], row["images"], row["ranks"], row["partition"]): row["phases"]["wait"]
        for row in rows
        if not row["overlap"]
    }
    print(
        "| network | images | ranks | partition | overlap | seconds | edges/s | speed-up "
        "| words/layer | pack | compute | wait | agree | hidden |"
    )
    print("| --- " * 14 + "|")
    for row in rows:
        base = single.get((row["network"], row["images"]))
        speed_up = "" if base is None else f"{base / row['median_seconds']:.2f}"
        words = row["words_sent"] / row["images"] / _LAYERS
        without = waits.get((row["network"], row["images"], row["ranks"], row["partition"]))
        hidden = ""
        if without and row["overlap"]:
            hidden = f"{1 - row['phases']['wait'] / without:.0%}"
        phases = [
            f"{row['phases'][name] * 1e3:.3g} ms" if row["partition"] else ""
            for name in ("pack", "compute", "wait", "agree")
        ]
        rate = row["images"] * row["edges"] / row["median_seconds"]
        print(
            f"| {row['network']} | {row['images']:,} | {row['ranks']} "
            f"| {row['partition'] or ('data' if row['ranks'] > 1 else '')} "
            f"| {'yes' if row['overlap'] else 'no'} | {row['median_seconds']:.4g} | {rate:.2e} "
            f"| {speed_up} | {words:.1f} | {' | '.join(phases)} | {hidden} |"
        )


if __name__ == "__main__":
    main()
