"""The communicator layer: MPI, counted. Knows arrays and ranks, nothing of networks."""

from sparsednn.comm.alone import Alone
from sparsednn.comm.communicator import Communicator
from sparsednn.comm.failure import abort, together
from sparsednn.comm.grid import ProcessGrid
from sparsednn.comm.mpi import launched, library, world
from sparsednn.comm.neighbours import NeighbourExchange
from sparsednn.comm.pending import Pending
from sparsednn.comm.traffic import Traffic

__all__ = [
    "Alone",
    "Communicator",
    "NeighbourExchange",
    "Pending",
    "ProcessGrid",
    "Traffic",
    "abort",
    "launched",
    "library",
    "together",
    "world",
]
