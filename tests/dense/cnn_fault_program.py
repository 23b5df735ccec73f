"""`sparsednn` with a fault in one rank: ``cnn_fault_program.py PLACE:KIND:RANK:CALLS cnn train …``.

After so many calls of the function that PLACE stands for, that rank raises an exception (KIND is
its name) or is killed (KILL); see `distributed.fault_program.strike`.
"""

from __future__ import annotations

import sys

from distributed.fault_program import instead

from sparsednn.cli.main import main


def _own_rank() -> int:
    from sparsednn.comm.mpi import world

    return world().rank


def step(kind: str, calls: int) -> None:
    """In a step: where this rank's layers begin their backward pass."""
    from sparsednn.dense.model import PlacedBatch

    instead(PlacedBatch, "backward", kind, calls=calls)


def saving(kind: str, calls: int) -> None:
    """While rank 0 writes a checkpoint."""
    from sparsednn.dense.runs import trainer

    instead(trainer, "write_cnn_checkpoint", kind, calls=calls)


if __name__ == "__main__":
    place, kind, rank, calls = sys.argv.pop(1).split(":")
    if _own_rank() == int(rank):
        {"step": step, "saving": saving}[place](kind, int(calls))
    main()
