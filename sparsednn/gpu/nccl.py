"""`NcclGroup`: NCCL's messages between the GPUs of a group of ranks, through CuPy.

Optional, and only used when asked for: NCCL needs a GPU for each rank, which MPI does not. CuPy is
loaded when a group is made. Must not know: what is sent.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsednn.errors import LaunchError, MissingDependencyError
from sparsednn.gpu.device import Array, Stream

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["NcclGroup", "load_nccl"]


def load_nccl() -> Any:
    """Load CuPy's wrapper of NCCL, and NCCL.

    Raises
    ------
    MissingDependencyError
        If one of the two is missing.
    """
    from sparsednn.gpu.cuda import load_cupy

    cupy = load_cupy()
    with warnings.catch_warnings():  # CuPy warns in six lines; we raise one
        warnings.simplefilter("ignore")
        nccl = importlib.import_module(f"{cupy.__name__}.cuda.nccl")
    if not nccl.available:
        raise MissingDependencyError(
            "NCCL is not installed: pip install nvidia-nccl-cu13 (or -cu12, as CuPy's CUDA is)"
        )
    return nccl


class NcclGroup:
    """Ranks that send each other arrays by NCCL; collective, as is `free`.

    Parameters
    ----------
    comm
        The ranks. Each has a GPU of its own, which is the thread's current device.

    Raises
    ------
    MissingDependencyError
        If CuPy or NCCL is missing on any rank: on all of them.
    LaunchError
        If NCCL does not start (two ranks on one GPU are the usual reason).
    """

    def __init__(self, comm: Communicator) -> None:
        from sparsednn.comm.failure import together

        self._comm: Any = None
        with together(comm, "loading NCCL"):
            self._nccl = load_nccl()
            unique = list(self._nccl.get_unique_id()) if comm.rank == 0 else None
        unique = comm.broadcast_json(unique)
        try:
            self._comm = self._nccl.NcclCommunicator(comm.size, tuple(unique), comm.rank)
        except self._nccl.NcclError as error:
            line = " ".join(str(error).split())
            raise LaunchError(f"NCCL does not start ({line}); each rank needs a GPU") from error

    def exchange(
        self, sends: Mapping[int, Array], receives: Mapping[int, Array], stream: Stream
    ) -> None:
        """Start all messages as one group on `stream`; arrays are on the device, contiguous.

        For each rank at most one array each way; they must stay until the stream has come so far.

        Raises
        ------
        LaunchError
            If NCCL reports an error.
        """
        nccl, comm = self._nccl, self._comm
        if not sends and not receives:
            return
        try:
            nccl.groupStart()
            try:
                for peer, array in receives.items():
                    comm.recv(array.data.ptr, array.nbytes, nccl.NCCL_UINT8, peer, stream.ptr)
                for peer, array in sends.items():
                    comm.send(array.data.ptr, array.nbytes, nccl.NCCL_UINT8, peer, stream.ptr)
            finally:
                nccl.groupEnd()
        except nccl.NcclError as error:
            line = " ".join(str(error).split())
            raise LaunchError(f"NCCL reports an error in an exchange: {line}") from error

    def free(self) -> None:
        """Give the communicator back; a second time does nothing."""
        if self._comm is not None:
            self._comm.destroy()
            self._comm = None
