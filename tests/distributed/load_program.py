"""A program as users have one: it loads its part, and ends in one line of error if it cannot."""

from __future__ import annotations

import sys

from sparsednn.comm.failure import abort
from sparsednn.comm.mpi import world
from sparsednn.distributed.loading import load_shard
from sparsednn.errors import SparseDNNError
from sparsednn.partitioners.partition import read_partition


def main() -> int:
    comm = world()
    model, file = sys.argv[1:]
    try:
        shard = load_shard(model, read_partition(file), comm.rank, comm, file=file)
    except SparseDNNError as error:
        if comm.rank == 0:
            print(f"sparsednn: error: {error}", file=sys.stderr)
        return error.exit_code
    except BaseException as error:
        abort(comm, error, 1)
    if comm.rank == 0:
        print(f"loaded {shard.parts} parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
