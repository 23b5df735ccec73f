"""MPI from compiled loops: the few calls that a layer needs, by the address of the function.

A layer of a tile takes some ten microseconds, so a loop over layers that went back to Python for
each exchange would spend more time there than in MPI. The functions are those of the library that
mpi4py has loaded, handles are mpi4py's own objects' handles (and so belong to them), and requests
are the persistent ones that `Communicator.neighbour_exchange` has made.

Addresses and handles are plain int64 arguments, so compiled code can be cached on disk. Every
function returns MPI's error code (communicators of mpi4py return errors, they do not abort).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from sparsednn._jit import intrinsic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sparsednn.comm.communicator import Communicator

__all__ = ["Calls", "calls_of", "handles", "mpi_error", "no_calls"]

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


class Calls(NamedTuple):
    """Addresses of MPI functions, and handles, for one communicator, which must outlive this."""

    startall: int
    waitall: int
    isend: int
    irecv: int
    allreduce: int
    iallreduce: int
    wtime: int
    comm: int
    float32: int
    int32: int
    bitwise_or: int
    add: int
    in_place: int
    handle_bytes: int


def handles(objects: Iterable[Any]) -> NDArray[np.uint8]:
    """Return the handles of mpi4py objects, one behind another, as the C library stores them."""
    import ctypes

    from sparsednn.comm.mpi import load_mpi

    MPI = load_mpi()
    found = [ctypes.string_at(MPI._addressof(one), MPI._sizeof(one)) for one in objects]
    return np.frombuffer(b"".join(found), np.uint8).copy()


def _handle(one: Any) -> int:
    return int.from_bytes(handles([one]).tobytes(), "little", signed=False)


def status_bytes() -> int:
    """Bytes of one MPI_Status."""
    from sparsednn.comm.mpi import load_mpi

    MPI = load_mpi()
    return int(MPI._sizeof(MPI.Status))


def calls_of(comm: Communicator) -> Calls:
    """Look the functions up in the library that mpi4py has loaded.

    Raises
    ------
    LaunchError
        If they cannot be found there (mpi4py linked in a way that hides them).
    """
    import ctypes

    from sparsednn.comm.mpi import load_mpi
    from sparsednn.errors import LaunchError

    MPI = load_mpi()
    library = ctypes.CDLL(MPI.__file__)

    def address(name: str) -> int:
        try:
            return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
        except AttributeError:
            raise LaunchError(
                f"{name} is not found in the MPI library that {MPI.__file__} loads: use "
                "--kernel reference, or another build of mpi4py"
            ) from None

    return Calls(
        startall=address("MPI_Startall"),
        waitall=address("MPI_Waitall"),
        isend=address("MPI_Isend"),
        irecv=address("MPI_Irecv"),
        allreduce=address("MPI_Allreduce"),
        iallreduce=address("MPI_Iallreduce"),
        wtime=address("MPI_Wtime"),
        comm=_handle(comm.raw),
        float32=_handle(MPI.FLOAT),
        int32=_handle(MPI.INT32_T),
        bitwise_or=_handle(MPI.BOR),
        add=_handle(MPI.SUM),
        in_place=int(MPI.IN_PLACE),
        handle_bytes=int(MPI._sizeof(MPI.Request)),
    )


def no_calls() -> Calls:
    """Return addresses for a rank that is alone: nothing may be called, and nothing is."""
    return Calls._make([0] * (len(Calls._fields) - 1) + [8])


def mpi_error(code: int) -> str:
    """Return MPI's words for an error code."""
    from sparsednn.comm.mpi import load_mpi

    return str(load_mpi().Get_error_string(code))


def _function(result: ir.Type, arguments: int, narrow: tuple[int, ...] = ()) -> Any:
    """Make an intrinsic that calls a C function: its address first, then int64 arguments.

    Arguments at the places in `narrow` are C ints. Handles are passed in 64 bits: where the library
    has 32-bit ones (MPICH), it looks at the lower half of the register.
    """

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kinds = [_I32 if place in narrow else _I64 for place in range(arguments)]
        pointer = b.inttoptr(args[0], ir.FunctionType(result, kinds).as_pointer())
        given = [
            b.trunc(value, _I32) if place in narrow else value
            for place, value in enumerate(args[1:])
        ]
        return b.call(pointer, given)

    return generate


@intrinsic
def _startall(typing_context: Any, function: Any, count: Any, requests: Any) -> Any:
    return types.int32(*[types.int64] * 3), _function(_I32, 2, (0,))


@intrinsic
def _waitall(typing_context: Any, function: Any, count: Any, requests: Any, statuses: Any) -> Any:
    return types.int32(*[types.int64] * 4), _function(_I32, 3, (0,))


@intrinsic
def _transfer(
    typing_context: Any,
    function: Any,
    buffer: Any,
    count: Any,
    kind: Any,
    rank: Any,
    tag: Any,
    comm: Any,
    request: Any,
) -> Any:
    """MPI_Isend and MPI_Irecv."""
    return types.int32(*[types.int64] * 8), _function(_I32, 7, (1, 3, 4))


@intrinsic
def _allreduce(
    typing_context: Any,
    function: Any,
    source: Any,
    target: Any,
    count: Any,
    kind: Any,
    operation: Any,
    comm: Any,
) -> Any:
    return types.int32(*[types.int64] * 7), _function(_I32, 6, (2,))


@intrinsic
def _iallreduce(
    typing_context: Any,
    function: Any,
    source: Any,
    target: Any,
    count: Any,
    kind: Any,
    operation: Any,
    comm: Any,
    request: Any,
) -> Any:
    return types.int32(*[types.int64] * 8), _function(_I32, 7, (2,))


@intrinsic
def _wtime(typing_context: Any, function: Any) -> Any:
    return types.float64(types.int64), _function(ir.DoubleType(), 0)


@intrinsic
def _copy(typing_context: Any, target: Any, source: Any, nbytes: Any) -> Any:
    """Copy bytes between addresses that do not overlap."""
    signature = types.void(types.int64, types.int64, types.int64)

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        target, source = (b.inttoptr(arg, _I8.as_pointer()) for arg in args[:2])
        cgutils.raw_memcpy(b, target, source, args[2], 1)
        return context.get_dummy_value()

    return signature, generate


# What compiled code calls; the types are told here, once.
startall: Callable[[int, int, int], int] = _startall
waitall: Callable[[int, int, int, int], int] = _waitall
transfer: Callable[[int, int, int, int, int, int, int, int], int] = _transfer
allreduce: Callable[[int, int, int, int, int, int, int], int] = _allreduce
iallreduce: Callable[[int, int, int, int, int, int, int, int], int] = _iallreduce
wtime: Callable[[int], float] = _wtime
copy: Callable[[int, int, int], None] = _copy
