"""Words of every layer of ResNet-50 and VGG-16: data parallelism, 2D, 2.5D, 3D, and the theory.

``python benchmarks/cnn_volume.py [--json FILE]`` prints one line for each network, batch and number
of ranks: words that the busiest rank sends in one training step, summed over all convolutions and
fully connected layers, each alone (without moves between layers). ``--layers`` prints every layer.

The columns 2d, 2.5d and 3d are the best grid of that algorithm (2.5d: with any number of c-layers,
so 2d, too) that leaves no rank without work, where a layer may take so many times its share of
memory: the share is 1/P of the input, the kernel, the output and the gradients of all three.
``-``: no grid meets the limit for some layer. ``best`` has the cheapest of all algorithms for each
layer, data and spatial parallelism included, without a limit; ``bound`` is the memory-independent
lower bound of `sparsednn.dense.planning.lower_bounds`, which data parallelism (with its copies of
kernels) need not keep. With fewer images than ranks, data parallelism leaves ranks without work:
``*``.

``--plan`` adds the plan of the whole network (`plan_network`): moves between layers, halos of
pooling, statistics and the loss included, and what data parallelism sends then.

``--measure`` runs small instances of some layers on 2, 4 and 8 ranks under mpirun and holds the
counted words of every rank against the formula.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import inf, prod
from pathlib import Path
from typing import Any

import numpy as np

from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.distribution import Distribution
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, Placement, legal_placements
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import Convolution, FullyConnected
from sparsednn.dense.planning.candidates import mean_memory
from sparsednn.dense.planning.lower_bounds import words_at_least
from sparsednn.dense.planning.placement_costs import mean_words
from sparsednn.dense.planning.planner import plan_network
from sparsednn.dense.planning.product_memory import product_memory
from sparsednn.dense.volume import convolution_volume

_NETWORKS = ("resnet50", "vgg16")
_BATCHES = (32, 128, 1024)
_RANKS = (16, 64, 256, 1024)
#: Limits of memory, in shares.
_LIMITS = (3.0, 8.0, inf)
_FAMILY = ("2d", "2.5d", "3d")
#: Grids that are looked at in full for one algorithm and limit, in the order of their mean words.
_LOOKS = 90
#: Layers that are measured, made smaller: images, channels, height, width, filters, taps, stride.
_MEASURED = (
    ("resnet50 layer1 3x3", ConvolutionShape(8, 16, 14, 14, 16, (3, 3), padding=(1, 1))),
    ("resnet50 layer4 1x1", ConvolutionShape(8, 64, 4, 4, 32, (1, 1))),
    ("resnet50 stride 2", ConvolutionShape(8, 32, 14, 14, 32, (3, 3), (2, 2), (1, 1))),
    ("vgg16 fully connected", ConvolutionShape(8, 64, 3, 3, 128, (3, 3))),
)


@dataclass(frozen=True)
class Layer:
    """A product, and how often a network has it."""

    name: str
    shape: ConvolutionShape
    bias: bool
    first: bool
    times: int = 1


def layers_of(graph: OperationGraph, images: int) -> list[Layer]:
    """Return the different products of a network, each with its number."""
    found: list[Layer] = []
    for operation in graph:
        if isinstance(operation, (Convolution, FullyConnected)):
            sources = graph.predecessors(operation.name)
            shape = operation.geometry(images, graph.shape(sources[0]))
            found.append(Layer(operation.name, shape, operation.bias, sources[0] == graph.input))
    number = Counter(replace(each, name="") for each in found)
    different = {replace(each, name=""): each for each in reversed(found)}
    return [replace(each, times=number[key]) for key, each in reversed(different.items())]


def words_and_memory(layer: Layer, placement: Placement) -> tuple[int, int]:
    """Return the words of the busiest rank in a step, and the words of memory of the fullest."""
    distribution = Distribution.of(layer.shape, placement)
    how = {"has_bias": layer.bias, "input_gradient": not layer.first}
    words = int(convolution_volume(distribution, **how).total().max())
    memory = product_memory(distribution, **how)
    tiles = distribution.input.sizes() + distribution.output.sizes()
    work = np.maximum(memory.forward, memory.backward)
    return words, int((memory.parameters + memory.buffers + tiles + work).max())


def share_of_memory(layer: Layer, ranks: int) -> float:
    """Words of input, kernel, output and their gradients, for one of so many ranks."""
    shape = layer.shape
    return 2 * sum(map(prod, (shape.input_shape, shape.kernel_shape, shape.output_shape))) / ranks


def best_of(layer: Layer, ranks: int, algorithm: str) -> list[dict[str, Any] | None]:
    """Return the cheapest grid of an algorithm under each limit; None where none meets it."""
    shape, share = layer.shape, share_of_memory(layer, ranks)
    every = []
    legal = legal_placements(shape, ranks, algorithm)
    if algorithm == "2.5d":
        legal = legal + legal_placements(shape, ranks, "2d")
    for placement in legal:
        key = placement.grid, placement.mode
        mean = mean_words(shape, *key, has_bias=layer.bias, input_gradient=not layer.first)
        about = sum(mean_memory(shape, *key, training=True, optimizer_slots=0))
        every.append((mean, about, placement))
    every.sort(key=lambda one: (one[0], one[1]))
    known: dict[Placement, tuple[int, int]] = {}
    found: list[dict[str, Any] | None] = []
    for limit in _LIMITS:
        best: dict[str, Any] | None = None
        # Means are no more than what the busiest rank sends; about the memory they may be wrong.
        hopeful = [one for one in every if one[1] <= 1.5 * limit * share][:_LOOKS]
        frugal = sorted(every, key=lambda one: one[1])[: _LOOKS // 4] if limit < inf else []
        for mean, _, placement in [*hopeful, *frugal]:
            if best is not None and mean >= best["words"]:
                continue
            if placement not in known:
                known[placement] = words_and_memory(layer, placement)
            words, memory = known[placement]
            if memory <= limit * share and (best is None or words < best["words"]):
                best = {"words": words, "grid": str(placement.grid), "shares": memory / share}
        found.append(best)
    return found


def row_of(network: str, layer: Layer, ranks: int) -> dict[str, Any]:
    """Return the figures of one layer."""
    data = Placement(Grid(b=ranks), "data")
    words, memory = words_and_memory(layer, data)
    row: dict[str, Any] = {
        "network": network, "layer": layer.name, "times": layer.times,
        "batch": layer.shape.images, "ranks": ranks, "shape": asdict(layer.shape),
        "data": {"words": words, "shares": memory / share_of_memory(layer, ranks)},
        "bound": words_at_least(
            layer.shape, ranks, training=True, input_gradient=not layer.first
        ),
    }  # fmt: skip
    row |= {name: best_of(layer, ranks, name) for name in _FAMILY}
    spatial = best_of(layer, ranks, "spatial")[-1]
    others = [spatial, *(row[name][-1] for name in _FAMILY)]
    idle = layer.shape.images < ranks
    row["best"] = min([one["words"] for one in others if one], default=inf)
    row["best"] = row["best"] if idle else min(row["best"], words)
    return row


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a network: words of all its layers."""
    found = {key: rows[0][key] for key in ("network", "batch", "ranks")}
    for key in ("bound", "best"):
        found[key] = sum(row[key] * row["times"] for row in rows)
    found["data"] = sum(row["data"]["words"] * row["times"] for row in rows)
    for name in _FAMILY:
        found[name] = [
            None
            if any(row[name][at] is None for row in rows)
            else sum(row[name][at]["words"] * row["times"] for row in rows)
            for at in range(len(_LIMITS))
        ]
    return found


def _text(words: float | None) -> str:
    return "-" if words is None else f"{words / 1e6:.2f}"


def _line(first: str, batch: int, ranks: int, figures: dict[str, Any]) -> str:
    data = _text(figures["data"]) + ("*" if batch < ranks else "")
    cells = [data, *(_text(one) for name in _FAMILY for one in figures[name])]
    cells += [_text(figures["best"]), _text(figures["bound"])]
    if "plan" in figures:
        cells += [_text(figures["plan"]["words"]), _text(figures["plan"]["data_parallel_words"])]
    return f"{first:<24}{batch:>6}{ranks:>6}" + "".join(f"{cell:>10}" for cell in cells)


def _header(plan: bool) -> str:
    limits = ["" if limit == inf else f" ≤{limit:g}" for limit in _LIMITS]
    columns = ["data", *(name + limit for name in _FAMILY for limit in limits), "best", "bound"]
    columns += ["plan", "data, all"] if plan else []
    return f"{'million words':<24}{'batch':>6}{'ranks':>6}" + "".join(f"{c:>10}" for c in columns)


def volumes(options: argparse.Namespace) -> dict[str, Any]:
    """Print the table and return all figures."""
    print(_header(options.plan))
    layers, totals = [], []
    for network in options.networks:
        graph = make_network(network)
        for batch in options.batches:
            for ranks in options.ranks:
                rows = [row_of(network, layer, ranks) for layer in layers_of(graph, batch)]
                total = summed(rows)
                if options.plan:
                    start = time.perf_counter()
                    plan = plan_network(graph, batch, ranks)
                    total["plan"] = asdict(plan.totals) | {
                        "seconds": time.perf_counter() - start,
                        "algorithms": Counter(one.algorithm for one in plan.placements.values()),
                    }
                if options.layers:
                    for row in rows:
                        flat = row | {"data": row["data"]["words"]}
                        flat |= {
                            name: [one and one["words"] for one in row[name]] for name in _FAMILY
                        }
                        print(_line(f"  {row['times']} × {row['layer']}", batch, ranks, flat))
                print(_line(network, batch, ranks, total), flush=True)
                layers += rows
                totals.append(total)
    limits = [None if limit == inf else limit for limit in _LIMITS]
    return {"limits": limits, "totals": totals, "layers": layers}


# --- measured -----------------------------------------------------------------------------------


def work() -> None:
    """What every rank of a started program does; rank 0 prints the figures."""
    from sparsednn.comm import world
    from sparsednn.dense.distributed import DistributedConvolution
    from sparsednn.dense.local.reference import ReferenceBackend
    from sparsednn.dense.pool import GridPool

    ranks = world()
    pool, local, rows = GridPool(ranks), ReferenceBackend(), []
    for name, shape in _MEASURED:
        for algorithm in ("data", *_FAMILY):
            layer = Layer(name, shape, bias=True, first=False)
            every = legal_placements(shape, ranks.size, algorithm)
            placement = min(every, key=lambda one: words_and_memory(layer, one))
            distribution = Distribution.of(shape, placement)
            op = DistributedConvolution(pool, distribution, local, np.float32, has_bias=True)
            parameters = np.zeros(op.parameter_size, np.float32)
            x, dy = (
                np.ones(each.block(ranks.rank).shape, np.float32)
                for each in (distribution.input, distribution.output)
            )
            ranks.traffic.clear()
            op.forward(x, parameters)
            op.backward(dy, parameters, np.empty_like(parameters))
            op.finish()
            counted = ranks.traffic.words()
            op.free()
            formula = convolution_volume(distribution, has_bias=True).total()
            found = ranks.allgather(np.array([counted], np.int64))
            rows.append(
                {
                    "layer": name, "algorithm": algorithm, "grid": str(placement.grid),
                    "ranks": ranks.size, "counted": found.tolist(), "formula": formula.tolist(),
                }
            )  # fmt: skip
    pool.free()
    if ranks.rank == 0:
        print(json.dumps(rows))


def measure() -> list[dict[str, Any]]:
    """Start the ranks, print the table, and end the program if a word is missing."""
    from sparsednn.comm.launcher import run_command

    found: list[dict[str, Any]] = []
    print(
        f"\n{'measured':<24}{'ranks':>6}  {'algorithm':<10}{'grid':<12}{'counted':>9}{'formula':>9}"
    )
    for ranks in (2, 4, 8):
        with tempfile.TemporaryFile("w+") as out:
            outcome = run_command(
                ranks, [sys.executable, __file__, "--work"], stdout=out, timeout=300
            )
            out.seek(0)
            text = out.read()
        if outcome.code:
            raise SystemExit(f"{ranks} ranks: exit code {outcome.code} {outcome.failure}")
        rows = json.loads(text.strip().splitlines()[-1])
        for row in rows:
            print(
                f"{row['layer']:<24}{ranks:>6}  {row['algorithm']:<10}{row['grid']:<12}"
                f"{max(row['counted']):>9}{max(row['formula']):>9}",
                flush=True,
            )
            if row["counted"] != row["formula"]:
                raise SystemExit(f"not the formula's words: {row}")
        found += rows
    print("every rank sent exactly the formula's words")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="*", default=_NETWORKS)
    parser.add_argument("--batches", nargs="*", type=int, default=_BATCHES)
    parser.add_argument("--ranks", nargs="*", type=int, default=_RANKS)
    parser.add_argument("--layers", action="store_true", help="print every layer, too")
    parser.add_argument("--plan", action="store_true", help="plan whole networks, too (minutes)")
    parser.add_argument("--measure", action="store_true", help="run small layers on 2, 4, 8 ranks")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work()
        return
    figures = volumes(options)
    if options.measure:
        figures["measured"] = measure()
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
