"""The larger official networks: seconds, rate and peak memory of whole processes.

``python benchmarks/sizes.py --mnist FOLDER [--json FILE]`` makes the official inputs once
(``sparsednn datasets graph-challenge``), then runs ``sparsednn infer`` on each network in a
process of its own, and prints what the process took. Inputs of 65536 neurons take a minute and
1 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: Network, neurons, images, and the official number of categories where one is known.
_RUNS = (
    ("1024-120", 1024, 60_000, 1812),
    ("1024-1920", 1024, 60_000, None),
    ("4096-120", 4096, 60_000, 1801),
    ("4096-480", 4096, 60_000, None),
    ("16384-120", 16384, 60_000, 1918),
    ("65536-120", 65536, 6_000, None),
)


def run(*arguments: str) -> tuple[str, float, float]:
    """Run the program; returns its output, wall seconds and peak resident memory in GiB."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsednn", *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return output, time.perf_counter() - start, usage.ru_maxrss / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description="Larger official networks.")
    parser.add_argument("--mnist", type=Path, required=True, help="folder with the idx files")
    parser.add_argument("--folder", type=Path, help="where to keep the inputs (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.folder or Path(temporary)
        print(f"{'inputs':<12}{'seconds':>9}{'peak GiB':>10}")
        for neurons in sorted({neurons for _, neurons, _, _ in _RUNS}):
            if not (folder / f"sparse-images-{neurons}.safetensors").exists():
                _, seconds, peak = run(
                    *("datasets", "graph-challenge", "--neurons", str(neurons)),
                    *("--mnist", str(options.mnist), "--format", "native", "--out", str(folder)),
                )
                print(f"{neurons:<12}{seconds:>9.1f}{peak:>10.2f}", flush=True)
        print(
            f"\n{'network':<12}{'images':>8}{'read s':>9}{'prepare s':>11}{'infer s':>10}"
            f"{'edges/s':>12}{'categories':>12}{'peak GiB':>10}"
        )
        for name, neurons, images, official in _RUNS:
            inputs = folder / f"sparse-images-{neurons}.safetensors"
            output, _, peak = run(
                *("infer", f"graph-challenge:{name}", "--inputs", str(inputs)),
                *("--images", str(images), "--json"),
            )
            result = json.loads(output)
            found = result["categories"]
            seconds = result["seconds"]
            if official not in (None, found):
                sys.exit(f"{name}: {found} categories, officially {official}")
            figures.append(result | {"peak_gib": peak})
            print(
                f"{name:<12}{images:>8}{seconds['read']:>9.2f}{seconds['prepare']:>11.2f}"
                f"{seconds['infer']:>10.3f}{result['edges_per_second']:>12.3e}{found:>12}"
                f"{peak:>10.2f}",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
