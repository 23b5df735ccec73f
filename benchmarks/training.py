"""Training: images per second and memory, ours against PyTorch, and on ranks.

``python benchmarks/training.py [--only A,B,C] [--json FILE] [--rounds 3] [--mnist FOLDER]``

A. Three square layers, relu between them, cross-entropy over the last, SGD with momentum 0.9, batch
   64: `--widths` × `--densities`. Ours on two threads, on one, and on two ranks with one thread
   each, against PyTorch on two threads: dense weights times a mask, dense weights whose gradient
   is masked, and `torch.sparse` weights, CSR and COO. Inputs are random numbers around ten
   prototypes, ten classes, nothing is zero; all contenders start from the same weights and see the
   same batches, and their first losses are compared: `losses agree` says if they did the same.
B. The Graph Challenge's topologies of 1024 and 4096 neurons, 120 layers, weights drawn anew, plain
   SGD, batch 1 and 64: threads, ranks that share the neurons by a random and by the joint
   partition, and ranks that share the images. The backward pass goes through the first layer, too,
   so that words are twice those of the forward pass.
C. (`--mnist`) 784-1024-1024-10 with 5 % of the weights on MNIST, 10 epochs of ``sparsednn train``
   with two threads, and on two ranks: seconds and test accuracy of each epoch.

Every contender is a process (`_rivals.py`), or as many as it has ranks; in each round all of a
network take a turn of some seconds, one after the other. Those that fit in memory together stay
between the rounds; others, and all on ranks, are started for each turn. Told are the median of the
turns, the slowest and the fastest; and the peak memory of the whole process (of the largest rank)
while preparing and while training, and the latter beyond what it had when NumPy, SciPy and PyTorch
or our modules were imported (compiled kernels are loaded later: about 60 MiB).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from _contenders import Case
from peak import fma_lanes_per_second

from sparsednn.machine import machine

_RIVALS = Path(__file__).with_name("_rivals.py")
_MASKED = ("masked weights", "masked gradients")
_SPARSE = ("sparse CSR", "sparse COO")
_SECONDS = {"small": 2.0, "large": 8.0}  # of a turn
_LARGE = 8192  # from this width on
_LAYERS = 3
#: Relative difference of the first losses that sums in another order explain. Through 120 layers
#: of relu a neuron that is zero but for rounding may fire in one order and not in another; its
#: gradient then differs, and soon the loss. So the losses before and behind one step are compared.
_AGREE = 2e-3
_AGREEING_STEPS = 2
_SPARE = 1 << 30  # bytes of memory that nobody may have


# What is measured


def square(width: int, density: float) -> str:
    return f"mlp:{width}x{_LAYERS + 1}@{density:g}"


def square_cases(network: str) -> list[Case]:
    ours = [Case(network, "ours", threads=2), Case(network, "ours", threads=1)]
    torch = [Case(network, how, threads=2) for how in _MASKED + _SPARSE]
    # Pair by pair: the two that are compared first are neighbours.
    return [ours[0], *torch[:2], ours[1], Case(network, "ours", ranks=2), *torch[2:]]


def radix_cases(network: str) -> list[Case]:
    cases = []
    for batch in (1, 64):
        base = Case(network, "ours", batch, momentum=0.0, rate=0.01, input_gradient=True)
        cases += [base, replace(base, threads=2)]
        cases += [replace(base, ranks=2, partition=way) for way in ("random", "joint")]
        if batch > 1:
            cases.append(replace(base, ranks=2))
    return cases


def bytes_needed(case: Case, width: int, edges: int) -> int:
    """Roughly the peak of a contender, beside its libraries."""
    match case.how:
        case "masked weights":  # weight, mask, their product, gradient, momentum; two temporaries
            return 4 * (5 * _LAYERS + 2) * width**2
        case "masked gradients":
            return 4 * (4 * _LAYERS + 1) * width**2
        case "sparse COO":  # the gradient of a layer is dense before the pattern is taken
            return 8 * width**2 + 80 * edges
        case _:
            return 80 * edges * case.ranks


def memory_available() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


# Preparing


def prepared(folder: Path, model: str) -> tuple[str, int]:
    """Files of a model, by a process of its own, whose memory goes with it: (name, edges)."""
    network = model.replace(":", "-").replace("@", "-")
    command = [sys.executable, str(_RIVALS), "--prepare", str(folder), model, network]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return network, int(json.loads(done.stdout)["edges"])


def partitions(folder: Path, network: str) -> dict[str, float]:
    """Both partitions for two ranks; seconds that each took."""
    from sparsednn.formats import read_network
    from sparsednn.partitioners import Options, make_partition

    whole = read_network(folder / f"{network}.safetensors")
    seconds = {}
    for name, method, partitioner in (
        ("random", "multiphase", "random"),
        ("joint", "joint", None),
    ):
        start = time.perf_counter()
        made = make_partition(whole, Options(2), method=method, partitioner=partitioner)
        seconds[name] = time.perf_counter() - start
        made.save(folder / f"{network}.{name}.p2.npz")
    return seconds


# Turns


class Rival:
    """A contender's process, or none between its turns."""

    def __init__(self, folder: Path, case: Case, *, stays: bool) -> None:
        self.case, self.turns = case, list[dict[str, Any]]()
        self.error: str | None = None
        self._stays = stays and case.ranks == 1
        self._command = [sys.executable, str(_RIVALS), str(folder), json.dumps(asdict(case))]
        self._process: subprocess.Popen[str] | None = None

    def turn(self, seconds: float) -> None:
        if self.error is not None:
            return
        text = self._on_ranks(seconds) if self.case.ranks > 1 else self._alone(seconds)
        told = json.loads(text) if text else {"error": "it was killed, or crashed"}
        self.error = told.get("error")
        if self.error is None:
            self.turns.append(told)
        if self.error is not None or not self._stays:
            self.stop()

    def _on_ranks(self, seconds: float) -> str:
        from sparsednn.comm.launcher import run_command

        with tempfile.TemporaryFile("w+") as out:
            outcome = run_command(
                self.case.ranks, [*self._command, str(seconds)], stdout=out, timeout=600
            )
            out.seek(0)
            lines = out.read().strip().splitlines()
        if outcome.code:
            return json.dumps({"error": f"exit code {outcome.code} {outcome.failure}"})
        return lines[-1]

    def _alone(self, seconds: float) -> str:
        if self._process is None:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            print(seconds, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()

    def stop(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process = None

    def row(self) -> dict[str, Any]:
        """Figures of all turns."""
        told: dict[str, Any] = {**asdict(self.case), "name": self.case.name}
        if self.error is not None or not self.turns:
            return told | {"error": self.error or "no turn"}
        paces = [turn["seconds"] / turn["steps"] for turn in self.turns]
        # Turns of a process that stays go on where the last one ended.
        last = self.turns[-1]
        memory = last["memory"]
        kept = ("words_per_step", "words_predicted", "gradient_words_per_step", "parameters")
        return told | {
            "seconds_per_step": float(np.median(paces)),
            "images_per_second": self.case.batch / float(np.median(paces)),
            "slowest": self.case.batch / max(paces),
            "fastest": self.case.batch / min(paces),
            "steps": [turn["steps"] for turn in self.turns],
            "first_losses": self.turns[0]["first_losses"],
            "last_loss": last["last_loss"],
            "loss_falls": last["last_loss"] < self.turns[0]["first_losses"][0],
            "memory": memory,
            "beyond_imports_mib": memory["training_peak_mib"] - memory["imported_mib"],
            **{key: last[key] for key in (*kept, "pass_seconds", "torch") if key in last},
        }


def take_turns(
    folder: Path, cases: Iterable[Case], rounds: int, seconds: float, *, stay: bool
) -> list[dict[str, Any]]:
    rivals = [Rival(folder, case, stays=stay) for case in cases]
    try:
        for turn in range(rounds):
            for rival in rivals:
                print(
                    f"round {turn + 1}: {rival.case.network}, batch {rival.case.batch}: "
                    f"{rival.case.name}",
                    file=sys.stderr,
                    flush=True,
                )
                rival.turn(seconds)
    finally:
        for rival in rivals:
            rival.stop()
    rows = [rival.row() for rival in rivals]
    for row in rows:
        if "error" not in row:
            # Ours comes first, and is what all are compared with.
            first = next(r for r in rows if r["batch"] == row["batch"] and "error" not in r)
            own, ours = (r["first_losses"][:_AGREEING_STEPS] for r in (row, first))
            row["losses_agree"] = bool(np.allclose(own, ours, rtol=_AGREE, atol=0))
    return rows


# The three parts


def compare(folder: Path, given: argparse.Namespace) -> Iterable[list[dict[str, Any]]]:
    """Part A, width by width, density by density."""
    for width in given.widths:
        for density in given.densities:
            network, edges = prepared(folder, square(width, density))
            cases = [c for c in square_cases(network) if given.ranks or c.ranks == 1]
            if find_spec("torch") is None:
                cases = [case for case in cases if case.how == "ours"]
            needs = {case: bytes_needed(case, width, edges) + (512 << 20) for case in cases}
            free = memory_available() - _SPARE
            fits = [case for case in cases if needs[case] <= free]
            rows = take_turns(
                folder, fits, given.rounds, _SECONDS["large" if width >= _LARGE else "small"],
                stay=sum(needs[case] for case in fits) <= free,
            )  # fmt: skip
            rows += [
                {**asdict(case), "name": case.name, "error": "does not fit", "needs": needs[case]}
                for case in cases
                if case not in fits
            ]
            rival = max(r.get("images_per_second", 0.0) for r in rows if r["how"] in _MASKED)
            for row in rows:
                row |= {"width": width, "density": density, "edges": edges}
                if rival and "images_per_second" in row:
                    row["against_masked"] = row["images_per_second"] / rival
            report(rows, "against masked", "against_masked")
            for file in folder.glob(f"{network}.*"):
                file.unlink()
            yield rows


def radix(folder: Path, given: argparse.Namespace) -> Iterable[list[dict[str, Any]]]:
    """Part B, network by network."""
    for model in given.radix:
        network, edges = prepared(folder, f"graph-challenge:{model}")
        seconds = partitions(folder, network)
        rows = take_turns(folder, radix_cases(network), given.rounds, _SECONDS["small"], stay=False)
        for row in rows:
            row |= {"edges": edges, "partition_seconds": seconds.get(row["partition"] or "")}
            base = next(r for r in rows if r["batch"] == row["batch"])
            if "seconds_per_step" in row and "seconds_per_step" in base:
                row["speed_up"] = base["seconds_per_step"] / row["seconds_per_step"]
        report(rows, "against 1 thread", "speed_up")
        yield rows


def learn(folder: Path, mnist: Path, epochs: int) -> Iterable[list[dict[str, Any]]]:
    """Part C: ``sparsednn train`` on MNIST."""
    print("\n| how | epoch | seconds | images/s | loss | train accuracy | test accuracy |")
    print("| --- " * 7 + "|")
    for how, arguments in (("2 threads", ("--threads", "2")), ("2 ranks", ("--ranks", "2"))):
        run = folder / how.replace(" ", "-")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "sparsednn", "train", "mlp:784-1024-1024-10@0.05"),
                *("--inputs", "mnist", "--validate", "mnist", "--mnist", str(mnist)),
                *("--epochs", str(epochs), "--batch-size", "64", "--lr", "0.2"),
                *("--optimizer", "sgd", "--momentum", "0.9", "--schedule", "cosine"),
                *("--checkpoint", str(run), "--json", *arguments),
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        lines = (run / "metrics.jsonl").read_text().splitlines()
        metrics = [json.loads(line) for line in lines]
        before = 0.0
        for line in metrics:  # their seconds count from the start
            line["epoch_seconds"], before = line["seconds"] - before, line["seconds"]
            print(
                f"| {how} | {line['epoch']} | {line['epoch_seconds']:.2f} "
                f"| {line['images_per_second']:,.0f} | {line['loss']:.4f} "
                f"| {line['train_accuracy']:.4f} | {line['test_accuracy']:.4f} |",
                flush=True,
            )
        yield [{"how": how, "epochs": metrics, "result": json.loads(done.stdout)}]


def report(rows: Sequence[dict[str, Any]], against: str, key: str) -> None:
    print(
        f"\n| {rows[0]['network']} | batch | images/s | slowest – fastest | steps/s | {against} "
        "| peak MiB: preparing, training | beyond imports | words/step | predicted | gradients "
        "| losses agree, fall |"
    )
    print("| --- " * 12 + "|")
    for row in rows:
        if "error" in row:
            print(f"| {row['name']} | {row['batch']} | {row['error']} |" + " |" * 9)
            continue
        words = [
            f"{row[name]:,.0f}" if name in row else ""
            for name in ("words_per_step", "words_predicted", "gradient_words_per_step")
        ]
        ratio = f"{row[key]:.2f}" if key in row else ""
        print(
            f"| {row['name']} | {row['batch']} | {row['images_per_second']:,.0f} "
            f"| {row['slowest']:,.0f} – {row['fastest']:,.0f} | {1 / row['seconds_per_step']:.3g} "
            f"| {ratio} | {row['memory']['preparing_peak_mib']:,}, "
            f"{row['memory']['training_peak_mib']:,} | {row['beyond_imports_mib']:,} "
            f"| {' | '.join(words)} | {row['losses_agree']}, {row['loss_falls']} |",
            flush=True,
        )


def write(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures as JSON, with the machine and the commit that they are of."""
    if path is None:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    told = {"machine": asdict(machine()), "commit": commit, **figures}
    path.write_text(json.dumps(told, indent=1) + "\n")


def numbers(kind: Any) -> Any:
    return lambda text: [kind(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", type=numbers(str), default=["A", "B", "C"], help="such as A,B")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--widths", type=numbers(int), default=[1024, 4096, 16384])
    parser.add_argument("--densities", type=numbers(float), default=[0.1, 0.05, 0.01])
    parser.add_argument("--no-ranks", dest="ranks", action="store_false", help="A without MPI")
    parser.add_argument("--radix", type=numbers(str), default=["1024-120", "4096-120"])
    parser.add_argument("--mnist", type=Path, help="folder with the MNIST idx files, for C")
    parser.add_argument("--epochs", type=int, default=10, help="of C")
    given = parser.parse_args()
    if find_spec("torch") is None:
        print("not installed, so not measured: PyTorch", file=sys.stderr)
    figures: dict[str, Any] = {"rounds": given.rounds, "peak_scaling": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        parts: dict[str, Iterable[list[dict[str, Any]]]] = {
            "A": compare(folder, given),
            "B": radix(folder, given),
        }
        if given.mnist is not None:
            parts["C"] = learn(folder, given.mnist, given.epochs)
        elif "C" in given.only:
            print("C is left out: it needs --mnist FOLDER", file=sys.stderr)
        for name, part in parts.items():
            if name not in given.only:
                continue
            figures[name] = []
            for rows in part:
                figures[name] += rows
                # What two cores can give at all just now: a virtual machine's may share a real one.
                figures["peak_scaling"].append(fma_lanes_per_second(2) / fma_lanes_per_second(1))
                write(given.json, figures)  # what there is, in case that the next is interrupted
    scaling = ", ".join(f"{ratio:.2f}" for ratio in figures["peak_scaling"])
    print(f"\npeak of two cores over that of one, in turn: {scaling}")
    wrong = [
        f"{row['network']}: {row['name']}"
        for name in ("A", "B")
        for row in figures.get(name, [])
        if not (row.get("losses_agree", True) and row.get("loss_falls", True))
    ]
    if wrong:
        raise SystemExit("losses differ from ours, or do not fall: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
