"""Scaling to 1,024 ranks, as the cost models predict it: docs/scaling.md and its figures.

    python benchmarks/scaling.py --cache FOLDER                  # all of it
    python benchmarks/scaling.py --only spmv --sizes 1024        # some of it, into the same page
    python benchmarks/scaling.py --only page                     # the page of what is there

Nothing is run on ranks: platforms are files, partitions are made here (and kept in --cache, where
that is given), everything else is arithmetic. ``results/scaling.json`` keeps all figures; whatever
a run does not make again stays there, and the page is always made of the whole file.

Sparse: official networks, ``random`` against ``joint`` partitions. One image (SpMV) is simulated,
event by event; batches and training are closed forms. Dense: algorithms of `sparsednn.dense` on
their cheapest grids.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import _scaling_page as page

from sparsednn.costmodel.planning.dense import DenseModel
from sparsednn.costmodel.planning.partitions import PartitionMaker
from sparsednn.costmodel.planning.sampling import load_sample
from sparsednn.costmodel.planning.simulated import simulated_rows
from sparsednn.costmodel.planning.sparse import SparseModel
from sparsednn.costmodel.platform import Platform, load_platform
from sparsednn.costmodel.scaling import (
    Contender,
    ScalingRow,
    scaling_rows,
    sparse_contenders,
    winners_text,
)
from sparsednn.machine import available_cores

_SIZES = (1024, 4096, 16384, 65536)
_NETWORKS = ("resnet50", "vgg16")
_METHODS = ("random", "joint")
_RANKS = tuple(2**e for e in range(11))
_CNN_RANKS = (1, 4, 16, 64, 256, 1024)
_STRATEGIES = ("data", "filter", "2d", "2.5d", "3d", "auto")
#: Images: of a run; of a step; fewer than ranks; of each rank in weak scaling.
_RUN, _STEP, _FEW, _EACH = 60_000, 1024, 64, 64
_CNN_STEP, _CNN_EACH = 256, 4
#: What can be made by itself.
_PARTS = ("spmv", "inference", "training", "cnn")
_RESULTS = Path(__file__).parent / "results" / "scaling.json"
_DIGITS = 4

Record = dict[str, Any]


def rounded(value: Any) -> Any:
    """The same with few digits: for a file that people may compare."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list) else value


def record(row: ScalingRow) -> Record:
    """What is kept of a row: of the winner more than of the others."""
    found: Record = {
        "ranks": row.ranks,
        "images": row.images,
        "contenders": {
            name: {"configuration": str(one.configuration), "seconds": one.prediction.seconds}
            for name, one in row.entries.items()
        },
    }
    if row.entries:
        won = row.entries[row.winner].prediction
        found["contenders"][row.winner] |= {
            "words": won.words, "memory_bytes": won.memory_bytes, "bound": won.bound,
        }  # fmt: skip
    return found


def section(rows: Iterable[ScalingRow], images: str, said: Callable[[str], None]) -> Record:
    """Make the rows, and what is said of them."""
    found = list(rows)
    text = winners_text(found)
    for line in text:
        said(f"  {line}")
    return {"images": images, "rows": [record(row) for row in found], "text": text}


def sparse_figures(
    neurons: int, platform: Platform, cache: Path | None, parts: Sequence[str]
) -> Record:
    """What is asked for of an official network."""
    sample = load_sample(f"graph-challenge:{neurons}-120")
    maker = PartitionMaker(sample.network, cache=cache)
    found: Record = {
        "model": sample.name, "edges": sample.edges, "layers": sample.layers, "note": sample.note,
    }  # fmt: skip
    said = _teller(sample.name)
    contenders = sparse_contenders(_METHODS, _METHODS[-1])
    for name, training, images in (("inference", False, _RUN), ("training", True, _STEP)):
        model = SparseModel(sample, methods=_METHODS, maker=maker, threads=1, training=training)
        if name == "inference" and "spmv" in parts:
            found["partitions"] = partition_figures(model, said)
            said("one image")
            rows = simulated_rows(model, platform, _RANKS, 1)
            found["spmv"] = {"rows": [asdict(row) for row in rows]}
        if name in parts:
            for kind, batch, text in (
                ("strong", _constant(images), f"{images:,} images"),
                ("few", _constant(_FEW), f"{_FEW} images"),
                ("weak", _growing(_EACH), f"{_EACH} images a rank"),
            ):
                said(f"{name}, {kind}")
                made = scaling_rows(model, platform, _RANKS, batch, contenders)
                found[f"{name}_{kind}"] = section(made, text, said)
    return found


def partition_figures(model: SparseModel, said: Callable[[str], None]) -> list[Record]:
    """Words and messages per layer of every partition."""
    found = []
    for parts in _RANKS[1:]:
        said(f"partitions for {parts} parts")
        row: Record = {"parts": parts}
        for method in _METHODS:
            work = model.work(method, parts)
            if work is not None:
                row[method] = {
                    "words": float(work.words_sent.sum()) / work.layers,
                    "messages": float(work.messages_sent.sum()) / work.layers,
                }
        found.append(row)
    return found


def cnn_figures(network: str, kind: str, platform: Platform) -> Record:
    """A dense network: ``strong`` or ``weak``."""
    from sparsednn.dense.networks import make_network

    graph = make_network(network)
    model = DenseModel(graph, strategies=_STRATEGIES, threads=1, optimizer_slots=1)
    contenders = {name: _strategy(name) for name in _STRATEGIES}
    images, text = {
        "strong": (_constant(_CNN_STEP), f"{_CNN_STEP:,} images"),
        "weak": (_growing(_CNN_EACH), f"{_CNN_EACH} images a rank"),
    }[kind]
    said = _teller(f"{network}, {kind}")
    rows = scaling_rows(model, platform, _CNN_RANKS, images, contenders)
    return {
        "model": network, "parameters": graph.trained_words, kind: section(rows, text, said),
    }  # fmt: skip


def _strategy(name: str) -> Contender:
    return lambda one: one.strategy in (name, "alone")


def _constant(images: int) -> Callable[[int], int]:
    return lambda ranks: images


def _growing(images: int) -> Callable[[int], int]:
    return lambda ranks: images * ranks


def _teller(what: str) -> Callable[[str], None]:
    start = time.perf_counter()

    def tell(line: str) -> None:
        print(f"{time.perf_counter() - start:6.1f} s  {what}: {line}", flush=True)

    return tell


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in (*_PARTS, "page"):
            raise argparse.ArgumentTypeError(f"{name}: known are {', '.join(_PARTS)}, page")
    return names


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=_names, default=list(_PARTS), metavar="PARTS",
        help=f"with commas: {', '.join(_PARTS)}; page: nothing but the page",
    )  # fmt: skip
    parser.add_argument("--sizes", type=_numbers, default=list(_SIZES), help="neurons, with commas")
    parser.add_argument("--networks", default=",".join(_NETWORKS), help="dense networks")
    parser.add_argument("--platform", default="infiniband-128", help="name or file")
    parser.add_argument("--cache", type=Path, help="a folder to keep partitions in")
    parser.add_argument("--results", type=Path, default=_RESULTS, help="the file of all figures")
    parser.add_argument("--out", type=Path, default=page.PAGE, help="the page; figures beside it")
    options = parser.parse_args(arguments)
    platform = load_platform(options.platform)
    figures: Record = {"sparse": {}, "cnn": {}}
    if options.results.exists():
        figures = json.loads(options.results.read_text())
    figures["platform"] = {
        "name": platform.name, "source": platform.source, "nodes": platform.nodes,
        "ranks": platform.node.ranks, **{f"between_{k}": v for k, v in _link(platform).items()},
    }  # fmt: skip
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)

    def keep(part: str, name: str, made: Record) -> None:
        known = figures[part].setdefault(name, {})
        known |= rounded(made)
        options.results.write_text(_text(figures))

    sizes = options.sizes if set(options.only) & set(_PARTS[:-1]) else []
    names = options.networks.split(",") if "cnn" in options.only else []
    # Looking for grids takes one core, and minutes: it goes on beside the sparse networks.
    with ProcessPoolExecutor(available_cores(), multiprocessing.get_context("spawn")) as pool:
        dense = [
            (name, pool.submit(cnn_figures, name, kind, platform))
            for name in names
            for kind in ("strong", "weak")
        ]
        for size in sizes:
            keep("sparse", str(size), sparse_figures(size, platform, options.cache, options.only))
        for name, made in dense:
            keep("cnn", name, made.result())
    for path in page.write(figures, options.out):
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def _link(platform: Platform) -> dict[str, float]:
    return {} if platform.between is None else asdict(platform.between)


def _text(figures: Record) -> str:
    """JSON with a row on each line."""
    text = json.dumps(figures, indent=1, sort_keys=False)
    return page.compact(text) + "\n"


if __name__ == "__main__":
    main()
