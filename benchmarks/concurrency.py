"""Independent operations side by side on the CPU: bounds of networks, and images per second.

``python benchmarks/concurrency.py --bounds [--batch 1]`` prints, for GoogLeNet, Inception-v3,
ResNet-50, a PathNet-like network and VGG-16, forward and backward: how many operations there are,
the widest level, and work / critical path, the most that any number of lanes can gain; in flops,
and in measured seconds with ``--measured``.

``python benchmarks/concurrency.py [--network googlenet] [--batches 1,2,4,8,16,32] [--rounds 3]
[--seconds 2] [--threads 2] [--json FILE]`` compares inference: our serial plans (each operation
with one thread; with all threads; with the best number of each), our concurrent plan, our model
without plans, and PyTorch in both memory layouts. Contenders are processes that take turns; our
plans take turns within one. Told are medians over all passes, and the ratio of serial to
concurrent time in each round (median). Logits are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _concurrency_rivals import Case

from sparsednn.dense.concurrency.bounds import Bounds, bounds_of, flops_and_words
from sparsednn.dense.concurrency.schedule_file import save_schedule
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.networks import make_network
from sparsednn.dense.runs.concurrency import measured_bounds, study_concurrency
from sparsednn.machine import machine

_RIVAL = Path(__file__).with_name("_concurrency_rivals.py")
_BOUNDED = ("googlenet", "inception_v3", "resnet50", "pathnet", "vgg16")
_AGREE = 2e-3


def bounds(batch: int, *, measured: bool) -> list[dict[str, Any]]:
    rows = []
    for name in _BOUNDED:
        graph = make_network(name)
        tasks = TaskGraph(graph, batch, training=True, fuse=False)
        costs = flops_and_words(tasks)
        found: dict[str, Bounds] = {
            part: bounds_of(tasks, costs, part=part) for part in ("forward", "backward", "all")
        }
        seconds: dict[str, Bounds] = {}
        if measured:
            seconds = measured_bounds(graph, images=batch)
        for part, one in found.items():
            row: dict[str, Any] = {
                "network": name, "images": batch, "part": part, "operations": one.tasks,
                "levels": len(one.levels), "width": one.width, "bound": one.bound,
            }  # fmt: skip
            if part in seconds:
                row |= {
                    "work_seconds": seconds[part].work,
                    "critical_path_seconds": seconds[part].critical_path,
                    "bound_seconds": seconds[part].bound,
                }
            rows.append(row)
    return rows


def show_bounds(rows: list[dict[str, Any]]) -> None:
    head = "| network | | operations | levels | widest level | work / critical path, flops |"
    measured = "bound_seconds" in rows[0]
    print(head + (" the same, seconds | work, ms |" if measured else ""))
    print("| --- " * (8 if measured else 6) + "|")
    for row in rows:
        line = (
            f"| {row['network']} | {row['part']} | {row['operations']} | {row['levels']} | "
            f"{row['width']} | {row['bound']:.2f} |"
        )
        if measured:
            line += f" {row['bound_seconds']:.2f} | {row['work_seconds'] * 1e3:.1f} |"
        print(line)


def turn(case: Case) -> dict[str, Any]:
    command = [sys.executable, str(_RIVAL), json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(
    network: str, batch: int, threads: int, rounds: int, seconds: float, folder: Path
) -> dict[str, Any]:
    study = study_concurrency(make_network(network), images=batch, lanes=threads)
    plans = []
    for schedule in study.trial.schedules:
        path = folder / f"{schedule.name}.json"
        save_schedule(schedule, path)
        plans.append(str(path))
    base: dict[str, Any] = {
        "network": network,
        "batch": batch,
        "threads": threads,
        "seconds": seconds,
    }
    cases = [
        Case(how="plans", plans=tuple(plans), **base),
        *(Case(how=how, **base) for how in ("model", "pytorch", "pytorch-channels-last")),
    ]
    taken: dict[str, list[list[float]]] = {}
    logits: dict[str, list[float]] = {}
    for _ in range(rounds):
        for case in cases:
            found = turn(case)
            for name, one in found["seconds"].items():
                taken.setdefault(name, []).append(one)
                logits[name] = found["logits"][name]
    medians = {
        name: statistics.median([each for one in some for each in one])
        for name, some in taken.items()
    }
    serial = min((name for name in medians if name.startswith("serial")), key=medians.__getitem__)
    chosen = study.trial.chosen.name
    ratios = {
        name: [
            statistics.median(mine) / statistics.median(its)
            for mine, its in zip(taken[name], taken[chosen], strict=True)
        ]
        for name in medians
    }
    return {
        "network": network,
        "batch": batch,
        "threads": threads,
        "chosen": chosen,
        "best_serial": serial,
        "bound": study.bounds["all"].bound,
        "arena_bytes": {one.name: one.arena_bytes for one in study.trial.schedules},
        "workspace_bytes": {one.name: one.workspace_bytes for one in study.trial.schedules},
        "predicted_seconds": {one.name: one.seconds for one in study.trial.schedules},
        "seconds": medians,
        "images_per_second": {name: batch / one for name, one in medians.items()},
        "time_over_chosen": {name: statistics.median(one) for name, one in ratios.items()},
        "logits_agree": all(_alike(one, logits["pytorch"]) for one in logits.values()),
    }


def _alike(some: list[float], others: list[float]) -> bool:
    scale = max(map(abs, others))
    return all(abs(a - b) <= _AGREE * scale for a, b in zip(some, others, strict=True))


def show(row: dict[str, Any]) -> None:
    print(f"\n{row['network']}, batch {row['batch']}, {row['threads']} threads: {row['chosen']}")
    print(f"{'':24} {'ms':>9} {'images/s':>10}  its time / that of the plan taken")
    for name, seconds in row["seconds"].items():
        print(
            f"{name:24} {seconds * 1e3:9.2f} {row['images_per_second'][name]:10,.1f}  "
            f"{row['time_over_chosen'][name]:.2f}"
        )
    if not row["logits_agree"]:
        print("LOGITS DIFFER")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bounds", action="store_true")
    parser.add_argument("--measured", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--network", default="googlenet")
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--threads", type=int, default=machine().cores)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    figures: dict[str, Any] = {"machine": str(machine()), "rows": []}
    if given.bounds:
        figures["rows"] = bounds(given.batch, measured=given.measured)
        show_bounds(figures["rows"])
    else:
        for batch in map(int, given.batches.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                row = compare(
                    given.network, batch, given.threads, given.rounds, given.seconds, Path(folder)
                )
            show(row)
            figures["rows"].append(row)
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    if any(not row.get("logits_agree", True) for row in figures["rows"]):
        raise SystemExit("logits differ from PyTorch's")


if __name__ == "__main__":
    main()
