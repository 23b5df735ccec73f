"""`Planning`: how a person wants grids to be chosen; the planner does it.

Must not know: ranks that run, files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sparsednn.dense.grids import ALGORITHMS, Grid, make_placement
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.dense.graph import OperationGraph
    from sparsednn.dense.planning.planner import NetworkPlan

__all__ = ["Planning", "memory_bytes"]

_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}


@dataclass(frozen=True, slots=True)
class Planning:
    """What is wished of the grids.

    Parameters
    ----------
    algorithm
        One of `grids.ALGORITHMS` for all layers; None: the cheapest for each.
    grid
        For all layers; None: the cheapest for each.
    memory_per_rank
        Bytes that a rank may use; None: no limit.

    Raises
    ------
    UsageError
        If the algorithm is unknown, or does not run on the grid.
    """

    algorithm: str | None = None
    grid: Grid | None = None
    memory_per_rank: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a network."""
        if self.algorithm is not None and self.algorithm not in ALGORITHMS:
            raise UsageError(
                f"--algorithm is one of auto, {', '.join(ALGORITHMS)}: '{self.algorithm}'"
            )
        if self.algorithm is not None and self.grid is not None:
            make_placement(self.grid, self.algorithm)

    @staticmethod
    def parse(
        algorithm: str = "auto", grid: str | None = None, memory_per_rank: str | None = None
    ) -> Planning:
        """Read what a person types.

        >>> Planning.parse("2d", "2x1x1x2x1", "1.5G").memory_per_rank
        1610612736
        """
        return Planning(
            None if algorithm == "auto" else algorithm,
            None if grid is None else Grid.parse(grid),
            None if memory_per_rank is None else memory_bytes(memory_per_rank),
        )

    def plan(
        self,
        graph: OperationGraph,
        images: int,
        ranks: int,
        *,
        training: bool = True,
        itemsize: int = 4,
        slots: int = 0,
    ) -> NetworkPlan:
        """Choose a grid for every layer; see `planner.plan_network`.

        Parameters
        ----------
        graph, images, ranks
            The network, images of a batch, ranks.
        training
            Whether there is a backward pass.
        itemsize
            Bytes of a number.
        slots
            Arrays of the optimizer, each as long as the parameters.

        Raises
        ------
        UsageError
            If the grid does not fit the ranks, or the memory is too little for any.
        """
        from sparsednn.dense.planning.planner import plan_network

        return plan_network(
            graph, images, ranks, memory_per_rank=self.memory_per_rank, algorithm=self.algorithm,
            grid=self.grid, training=training, itemsize=itemsize, optimizer_slots=slots,
        )  # fmt: skip


def memory_bytes(text: str) -> int:
    """Read an amount of memory: a number with K, M, G or T (binary), an iB or B behind it or not.

    >>> memory_bytes("2G"), memory_bytes("512MiB"), memory_bytes("1000")
    (2147483648, 536870912, 1000)

    Raises
    ------
    UsageError
        If it is something else, or less than a byte.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgt]?)(?:i?b)?", text.strip(), re.I)
    if match is None:
        raise UsageError(f"--memory-per-rank: an amount such as 2G or 512M is needed: '{text}'")
    count = int(float(match[1]) * (1 << _UNITS[match[2].lower()]))
    if count < 1:
        raise UsageError(f"--memory-per-rank must be at least a byte, found '{text}'")
    return count
