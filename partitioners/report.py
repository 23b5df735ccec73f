"""Partitions as a person or a program reads them: one line each, and one document for all.

Knows `Compared` and `PartitionStats`; neither files nor terminals.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sparsednn.network import SparseNetwork
from sparsednn.partitioners.methods import RULES, Compared, Options, make_partition
from sparsednn.partitioners.metrics import PartitionStats, evaluate
from sparsednn.partitioners.partition import Partition

__all__ = [
    "best_of",
    "document",
    "evaluated",
    "layer_rows",
    "layer_table",
    "partitioned",
    "table",
    "training_note",
]

_SHOWN_LAYERS: Final = 12


def partitioned(
    network: SparseNetwork, options: Options, *, method: str, partitioner: str | None
) -> Compared:
    """Partition (`make_partition`), evaluate, and take the time of the former."""
    start = time.perf_counter()
    partition = make_partition(network, options, method=method, partitioner=partitioner)
    return evaluated(network, partition, time.perf_counter() - start)


def evaluated(network: SparseNetwork, partition: Partition, seconds: float = 0.0) -> Compared:
    """Evaluate a partition that is there, as one line of a comparison."""
    meta = partition.meta
    method = "rule" if meta.partitioner in RULES else meta.method
    return Compared(method, meta.partitioner, partition, evaluate(network, partition), seconds)


def best_of(results: Sequence[Compared]) -> Compared:
    """``joint``, if it is there; otherwise the fewest words, the later of equal ones.

    Of what a comparison tries, ``joint`` has the fewest words of all that keep to the balance.
    """
    joint = [result for result in results if result.method == "joint"]
    return (joint or sorted(results, key=lambda result: -result.stats.words_total))[-1]


def document(
    network: SparseNetwork,
    results: Sequence[Compared],
    *,
    timed: bool = True,
    per_layer: bool = False,
) -> dict[str, Any]:
    """All results of one network, with the same parts, imbalance and seed, ready for JSON.

    Parameters
    ----------
    network
        The network.
    results
        At least one.
    timed
        False: ``seconds`` are not known (null).
    per_layer
        Each method also has ``layers``: everything about each of them (`layer_rows`).
    """
    meta = results[0].partition.meta
    return {
        "network": network.name,
        "hash": network.hash,
        "layers": len(network),
        "edges": network.edges,
        "parts": results[0].partition.parts,
        "imbalance": meta.imbalance,
        "seed": meta.seed,
        "threads": meta.threads,
        "methods": [_entry(network, result, timed, per_layer) for result in results],
    }


def _entry(
    network: SparseNetwork, result: Compared, timed: bool, per_layer: bool
) -> dict[str, Any]:
    stats = result.stats
    entry: dict[str, Any] = {
        "method": result.method,
        "partitioner": result.partitioner,
        "version": result.partition.meta.version,
        "preset": result.partition.meta.preset,
        "words_total": stats.words_total,
        "words_per_layer": stats.words_per_layer,
        "words_per_training_step": stats.words_training_step,
        "messages_total": stats.messages_total,
        "max_words_per_rank": stats.max_words_per_rank,
        "max_messages_per_rank": stats.max_messages_per_rank,
        "imbalance_max": stats.imbalance_max,
        "empty_parts_max": stats.empty_parts_max,
        "seconds": result.seconds if timed else None,
        "seconds_per_million_nonzeros": _per_million(network, result) if timed else None,
    }
    if per_layer:
        entry["layers"] = layer_rows(stats)
    return entry


def _per_million(network: SparseNetwork, result: Compared) -> float:
    return result.seconds / (max(network.edges, 1) / 1e6)


def layer_rows(stats: PartitionStats) -> list[dict[str, Any]]:
    """What each layer costs, ready for JSON; layers count from 1."""
    return [
        {
            "layer": number,
            "words": layer.words,
            "messages": layer.messages,
            "max_words_sent": layer.max_words_sent,
            "max_words_received": layer.max_words_received,
            "max_messages": layer.max_messages,
            "imbalance": layer.imbalance,
            "empty_parts": layer.empty_parts,
        }
        for number, layer in enumerate(stats.layers, 1)
    ]


def table(network: SparseNetwork, results: Sequence[Compared], *, timed: bool = True) -> list[str]:
    """Lines of a table for people: the imbalance is the heaviest part's excess over the mean."""
    head = ["method", "partitioner", "words/layer", "words", "messages", "max words/rank",
            "imbalance"]  # fmt: skip
    if timed:
        head += ["seconds", "s/Mnnz"]
    rows = [head]
    for result in results:
        stats = result.stats
        row = [
            result.method,
            _short(result),
            f"{stats.words_total / len(stats.layers):,.1f}",
            f"{stats.words_total:,}",
            f"{stats.messages_total:,}",
            f"{stats.max_words_per_rank:,}",
            _excess(stats.imbalance_max),
        ]
        if timed:
            row += [f"{result.seconds:.3g}", f"{_per_million(network, result):.3g}"]
        rows.append(row)
    return _aligned(rows, left=2)


def training_note(results: Sequence[Compared]) -> str:
    """One line that says how words of training follow from those of the table."""
    words = best_of(results).stats.words_training_step
    what = best_of(results).method if len(results) > 1 else ""
    return (
        "words: of one image, forward; a training step sends twice the words: "
        f"{words:,}{f' ({what})' if what else ''}"
    )


def layer_table(stats: PartitionStats, *, full: bool = False) -> list[str]:
    """Lines of a table of the layers; of many layers only the first and last unless `full`."""
    rows = [["layer", "words", "messages", "max sent", "max received", "imbalance", "empty parts"]]
    rows += [
        [
            str(number),
            f"{layer.words:,}",
            f"{layer.messages:,}",
            f"{layer.max_words_sent:,}",
            f"{layer.max_words_received:,}",
            _excess(layer.imbalance),
            f"{layer.empty_parts:,}",
        ]
        for number, layer in enumerate(stats.layers, 1)
    ]
    lines = _aligned(rows, left=0)
    hidden = len(stats.layers) - _SHOWN_LAYERS
    if full or hidden <= 0:
        return lines
    half = _SHOWN_LAYERS // 2
    return [*lines[: 1 + half], f"    … ({hidden} more; --json lists all)", *lines[-half:]]


def _short(result: Compared) -> str:
    """The partitioner; the candidates of ``joint`` only counted, where there are many."""
    first, *others = result.partitioner.split("+")
    if result.method == "joint" and len(others) > 2:
        return f"{first}+{len(others)} chains"
    return result.partitioner


def _excess(imbalance: float) -> str:
    return f"{max(imbalance - 1.0, 0.0):.1%}"


def _aligned(rows: Iterable[Sequence[str]], *, left: int) -> list[str]:
    """Columns with two blanks between them; the first `left` to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
