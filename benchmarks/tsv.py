"""Lines per second of reading and writing triplet files (median of five, generated data).

Run: ``python benchmarks/tsv.py [--lines 6000000] [--threads 1 2]``
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from sparsednn.formats.tsv import compress, read_triplets, write_triplets


def median(function: Callable[[], object]) -> float:
    function()  # compiles, and brings the file into the page cache
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=6_000_000)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary one)")
    args = parser.parse_args()
    n: int = args.lines
    rng = np.random.default_rng(1)
    images = np.sort(rng.integers(0, 60_000, n)).astype(np.int32)
    features = rng.integers(0, 1024, n).astype(np.int32)
    cases = {
        "inputs (value 1)": None,
        "layer (weight 1/16)": np.full(n, 1 / 16, np.float32),
        "random weights": rng.standard_normal(n).astype(np.float32),
    }
    print(f"{n} lines, median of five")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "triplets.tsv"
        for name, values in cases.items():
            seconds = median(partial(write_triplets, path, [(images, features, values)]))
            size = path.stat().st_size
            report(name, "write", 2, n, size, seconds)  # one formats, one writes
            for threads in args.threads:
                seconds = median(partial(read_triplets, path, max_col=1024, threads=threads))
                report(name, "read", threads, n, size, seconds)
        distinct = np.unique(images.astype(np.int64) * 1024 + features)
        rows, cols = (distinct // 1024).astype(np.int32), (distinct % 1024).astype(np.int32)
        for name, order in (
            ("sorted by row", slice(None)),
            ("sorted by column", np.argsort(cols, kind="stable")),
        ):
            write_triplets(path, [(rows[order], cols[order], None)])
            triplets = read_triplets(path, max_col=1024)
            seconds = median(partial(compress, triplets, 60_000, 1024))
            report(name, "sort", 1, rows.size, path.stat().st_size, seconds)


def report(name: str, what: str, threads: int, lines: int, size: int, seconds: float) -> None:
    print(
        f"{name:20} {what:5} {threads} thread{'s' if threads > 1 else ' '} "
        f"{lines / seconds / 1e6:8.1f} M lines/s  {size / seconds / 1e6:8.0f} MB/s"
    )


if __name__ == "__main__":
    main()
