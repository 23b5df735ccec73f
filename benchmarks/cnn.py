"""Training of dense CNNs: images per second, ours on threads and on ranks, against PyTorch.

``python benchmarks/cnn.py [--networks smallcnn,lenet5,resnet20] [--rounds 5] [--seconds 3]
[--json FILE]``

Contenders of a network, each in processes of its own (`_cnn_rivals.py`), take turns of some
seconds, one after the other, in several rounds: PyTorch with 2 threads; ours with PyTorch's
convolutions and with im2col, 1 process with 2 threads, and 2 ranks with 1 thread each that share
the images (`data`) or run the 2D algorithm. A step is forward, backward, SGD with momentum. Told
are the median over all steps of all rounds, the quickest and slowest round's median, and the ratio
of PyTorch's time to ours in each round (median of these: both had the same noise). The first losses
of all contenders are compared: `losses agree`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from _cnn_rivals import CnnCase

from sparsednn.comm.launcher import run_command
from sparsednn.machine import machine

_RIVAL = Path(__file__).with_name("_cnn_rivals.py")
#: Images of a batch, where 64 would take too long.
_BATCH = {"resnet18": 16, "resnet50": 8, "vgg16": 8, "alexnet": 32, "googlenet": 16}
_AGREE = 2e-3  # of losses; sums in another order


def contenders(network: str, batch: int, seconds: float) -> list[CnnCase]:
    base = CnnCase(network, "torch", batch=batch, seconds=seconds)
    return [
        replace(base, how="pytorch", threads=2),
        replace(base, threads=2),
        replace(base, ranks=2),
        replace(base, ranks=2, algorithm="2d"),
        replace(base, how="im2col", threads=2),
        replace(base, how="im2col", ranks=2),
    ]


def turn(case: CnnCase) -> dict[str, Any]:
    command = [sys.executable, str(_RIVAL), json.dumps(asdict(case))]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        if case.ranks > 1:
            code = run_command(case.ranks, command, stdout=out, stderr=errors).code
        else:
            code = subprocess.run(command, stdout=out, stderr=errors, check=False).returncode
        out.seek(0)
        errors.seek(0)
        if code:
            raise SystemExit(f"{case.network}, {case.name}: {errors.read().strip()[-2000:]}")
        found: dict[str, Any] = json.loads(out.read().strip().splitlines()[-1])
    return found


def compare(network: str, rounds: int, batch: int, seconds: float) -> list[dict[str, Any]]:
    cases = contenders(network, batch, seconds)
    steps: dict[CnnCase, list[list[float]]] = {case: [] for case in cases}
    losses: dict[CnnCase, list[float]] = {}
    for _ in range(rounds):
        for case in cases:
            found = turn(case)
            steps[case].append(found["seconds"])
            losses[case] = found["losses"]
    theirs = [statistics.median(one) for one in steps[cases[0]]]
    rows = []
    for case in cases:
        medians = [statistics.median(one) for one in steps[case]]
        everything = statistics.median([step for one in steps[case] for step in one])
        ratio = statistics.median(a / b for a, b in zip(theirs, medians, strict=True))
        agree = all(
            abs(a - b) <= _AGREE * max(1.0, abs(b))
            for a, b in zip(losses[case], losses[cases[0]], strict=True)
        )
        rows.append(
            {
                "network": network,
                "name": case.name,
                "batch": batch,
                "images_per_second": batch / everything,
                "slowest": batch / max(medians),
                "quickest": batch / min(medians),
                "pytorch_time_over_ours": ratio,
                "losses_agree": agree,
                **asdict(case),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(f"\n{rows[0]['network']}, batch {rows[0]['batch']}, training")
    print(f"{'':44} {'images/s':>10} {'slowest':>9} {'quickest':>9}  PyTorch's time / its own")
    for row in rows:
        note = "" if row["losses_agree"] else "  LOSSES DIFFER"
        print(
            f"{row['name']:44} {row['images_per_second']:10,.0f} {row['slowest']:9,.0f} "
            f"{row['quickest']:9,.0f}  {row['pytorch_time_over_ours']:.2f}{note}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", default="smallcnn,lenet5,resnet20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    figures: dict[str, Any] = {"machine": str(machine()), "rows": []}
    for network in given.networks.split(","):
        batch = given.batch or _BATCH.get(network, 64)
        rows = compare(network, given.rounds, batch, given.seconds)
        show(rows)
        figures["rows"] += rows
        if given.json is not None:
            given.json.write_text(json.dumps(figures, indent=1) + "\n")
    rows = figures["rows"]
    wrong = [f"{row['network']}: {row['name']}" for row in rows if not row["losses_agree"]]
    if wrong:
        raise SystemExit("losses differ from PyTorch's: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
