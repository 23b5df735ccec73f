"""What the ranks of a calibration do: ``python -m …rank_program REQUEST.json ANSWER.json``.

Started by `ranks.measure_ranks` under the launcher of the MPI that is installed. Rank 0 writes the
answer. Must not know: platforms, and what the times are for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsednn.costmodel.calibration.timing import Effort, set_pace

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["answer"]


def answer(comm: Communicator, request: dict[str, Any]) -> dict[str, Any]:
    """Measure what is asked for; collective, the same answer on all ranks.

    Parameters
    ----------
    request
        ``effort`` (rounds, visit_seconds, repeats), ``exchange_bytes``, ``collective_bytes``,
        ``overlap_bytes``, ``pack`` (rows and columns) and ``groups`` (whether collectives within
        pairs of ranks are wanted, too); ``pace_seconds``, if times are to be those of the usual
        pace, see `pace.Pace`.

    Returns
    -------
    dict
        ``exchange``: for each number of messages that a rank sends, the seconds of each size;
        ``immediate``: the same of one message with requests that are made each time;
        ``ping_pong``, ``pack``, ``overlap``: seconds, seconds and parts of each entry;
        ``linked``: seconds of whole runs, see `linked.measure_linked`;
        ``overhead``, ``layer``: seconds; ``collectives``, ``pairs``: tables; ``library``: of MPI.
    """
    from sparsednn.comm.mpi import library
    from sparsednn.costmodel.calibration import collectives, exchange, linked

    effort = Effort(**request["effort"])
    if request.get("pace_seconds"):
        from sparsednn.costmodel.calibration.pace import rank_pace

        set_pace(rank_pace(comm, request["pace_seconds"]).slowness)
    sizes = request["exchange_bytes"]
    found: dict[str, Any] = {
        "exchange": {
            str(messages): exchange.measure_exchange(comm, sizes, effort, messages=messages)
            for messages in range(1, comm.size)
        },
        "immediate": exchange.measure_exchange(comm, sizes, effort, persistent=False),
        "ping_pong": exchange.measure_ping_pong(comm, sizes, effort),
        "overhead": exchange.measure_overhead(comm, effort),
        "overlap": exchange.measure_overlap(comm, request["overlap_bytes"], effort),
        "pack": exchange.measure_pack(comm, [tuple(shape) for shape in request["pack"]], effort),
        "layer": exchange.measure_layer(comm, effort),
        "collectives": collectives.measure_collectives(comm, request["collective_bytes"], effort),
        "linked": linked.measure_linked(comm, effort, step=request.get("linked_step", 1)),
        "pairs": [],
        "library": f"{library().name} {library().version}",
    }
    if request["groups"] and comm.size > 2 and comm.size % 2 == 0:
        pair = comm.split(comm.rank // 2)
        assert pair is not None  # every rank has a color
        found["pairs"] = collectives.measure_collectives(
            pair, request["collective_bytes"], effort, within=comm
        )
        pair.free()
    return found


def _main() -> None:
    """Be one of the ranks."""
    from sparsednn.comm import mpi
    from sparsednn.comm.failure import abort
    from sparsednn.comm.launcher import default_signals
    from sparsednn.errors import SparseDNNError

    default_signals()
    request, target = Path(sys.argv[1]), Path(sys.argv[2])
    comm = mpi.world()
    try:
        found = answer(comm, json.loads(request.read_text(encoding="utf-8")))
        if comm.rank == 0:
            target.write_text(json.dumps(found), encoding="utf-8")
    except Exception as error:  # the others wait for this one
        abort(comm, error, error.exit_code if isinstance(error, SparseDNNError) else 1)


if __name__ == "__main__":
    _main()
