"""What ``cnn plan`` does: a plan, and its table."""

from __future__ import annotations

from typing import Any, Final

from sparsednn.amounts import bytes_text
from sparsednn.cli._cnn import network_keys, network_named
from sparsednn.errors import UsageError

__all__ = ["plan_json", "print_plan"]

#: Arrays that an optimizer keeps.
_SLOTS: Final = {"sgd": 0, "momentum": 1, "adam": 2}


def plan_json(
    network: str,
    *,
    ranks: int,
    memory_per_rank: str | None,
    batch: int,
    image: str | None,
    classes: int | None,
    algorithm: str,
    grid: str | None,
    dtype: str,
    optimizer: str,
    training: bool,
) -> dict[str, Any]:
    """Make the plan that the options, as typed, ask for; see `planner.NetworkPlan.as_json`."""
    import numpy as np

    from sparsednn.dense.planning.request import Planning
    from sparsednn.dense.runs.placing import check_dtype

    for name, value in (("--ranks", ranks), ("--batch", batch)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, found {value}")
    if optimizer not in _SLOTS:
        raise UsageError(f"--optimizer is one of {', '.join(_SLOTS)}: '{optimizer}'")
    planning = Planning.parse(algorithm, grid, memory_per_rank)
    itemsize = np.dtype(check_dtype(dtype)).itemsize
    graph = network_named(network, image, classes)
    plan = planning.plan(
        graph, batch, ranks, training=training, itemsize=itemsize,
        slots=_SLOTS[optimizer] if training else 0,
    )  # fmt: skip
    return network_keys(graph) | plan.as_json()


def print_plan(plan: dict[str, Any]) -> None:
    """Print a plan for people."""
    layers, totals = plan["layers"], plan["totals"]
    what = "a training step" if plan["training"] else "a forward pass"
    limit = plan["memory_per_rank"]
    print(
        f"{plan['network']}, images of {plan['image']}, {plan['parameters']:,} parameters: "
        f"{what} of {plan['images']:,} images on {plan['ranks']:,} ranks"
        + ("" if limit is None else f", at most {bytes_text(limit)} a rank")
    )
    head = ("layer", "algorithm", "grid BxHxWxKxC", "words", "memory", "data parallel")
    rows = [
        (
            row["layer"] if row["algorithm"] else f"({row['layer']})",
            row["algorithm"],
            row["grid"],
            f"{row['words']:,}",
            bytes_text(row["memory"]),
            f"{row['data_parallel_words']:,}",
        )
        for row in layers
    ]
    total = (
        "all", "", "", f"{totals['words']:,}", bytes_text(totals["memory"]),
        f"{totals['data_parallel_words']:,}",
    )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(head, *rows, total, strict=True)]
    for row in (head, *rows, total):
        cells = [
            f"{cell:<{width}}" if number < 3 else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
    print(
        f"words: what the busiest rank sends; data parallelism would need "
        f"{bytes_text(totals['data_parallel_memory'])} a rank"
    )
