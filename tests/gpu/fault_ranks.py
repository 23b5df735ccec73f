"""``fault_ranks.py FOLDER RANK``: a run on the twin; one rank fails between two messages."""

from __future__ import annotations

import sys

from sparsednn.comm.failure import abort
from sparsednn.comm.mpi import world
from sparsednn.distributed import DistributedRun
from sparsednn.distributed.device_links import LineExchange
from sparsednn.gpu.twin import TwinDevice


def main() -> None:
    folder, rank = sys.argv[1], int(sys.argv[2])
    comm = world()
    run = DistributedRun(
        comm, f"{folder}/net", f"{folder}/inputs.npz", partition=f"{folder}/parts.npz",
        device=TwinDevice(),
    )  # fmt: skip
    real, layers = LineExchange.finish, 0

    def finish(self, *arguments):
        nonlocal layers
        layers += 1
        if layers == 2 and comm.rank == rank:
            raise RuntimeError("as the test wants it")
        real(self, *arguments)

    LineExchange.finish = finish
    try:
        run.run()
    except Exception as error:
        abort(comm, error, 1)
    print("ended well")


if __name__ == "__main__":
    main()
