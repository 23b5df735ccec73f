"""Checks of `reduce` and of the verbs that only start, against NumPy, on any number of ranks."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from sparsednn.comm import pending
from sparsednn.comm.communicator import Communicator
from sparsednn.comm.pending import Pending
from sparsednn.errors import ShapeError, UsageError

DTYPES = (np.float32, np.float64, np.int32, np.int64, np.uint8)
#: The last is cut by libraries themselves, which take other algorithms for it.
SIZES = (0, 1, 7, 8, 23, 100_003)
OPS = {"sum": np.add, "max": np.maximum, "min": np.minimum, "or": np.bitwise_or}


def data(seed, size, dtype):
    """Random integers in any dtype: sums are exact, so results can be compared bit by bit."""
    return np.random.default_rng(seed).integers(0, 50, size).astype(dtype)


def reals(seed, shape):
    return np.random.default_rng(seed).normal(size=shape)


def both(world):
    """The communicator as it is, and one whose every larger call goes in pieces.

    The second has no large arrays: 100,003 elements are 14,287 requests.
    """
    small = Communicator(world.raw, limit=7)
    return [(Communicator(world.raw), SIZES), (small, SIZES[:-1])]


def ops_of(dtype):
    return [op for op in OPS if op != "or" or np.dtype(dtype).kind != "f"]


def expect_row(comm, verb, layer, words, messages, dtype):
    """What the only call since the last `clear` counted."""
    nbytes = words * np.dtype(dtype).itemsize
    assert comm.traffic.rows() == [(verb, layer, words, nbytes, messages if words else 0, 1)]


def check_reduce(world):
    """The result is on the root, other ranks' arrays are as they were; blocking, and started."""
    p = world.size
    for comm, sizes in both(world):
        for seed, (dtype, size) in enumerate((d, s) for d in DTYPES for s in sizes):
            parts = [data(rank, size, dtype) for rank in range(p)]
            op = ops_of(dtype)[seed % len(ops_of(dtype))]
            expected = OPS[op].reduce(parts).astype(dtype)
            for root in range(p):
                for starts in (False, True):
                    array = parts[comm.rank].copy()
                    comm.traffic.clear()
                    if starts:
                        comm.start_reduce(array, root, op, layer=2).wait()
                    else:
                        comm.reduce(array, root, op, layer=2)
                    found = expected if comm.rank == root else parts[comm.rank]
                    assert np.array_equal(array, found), (comm.limit, starts, dtype, op, size, root)
                    words = 0 if comm.rank == root else size
                    expect_row(comm, "reduce", 2, words, 1, dtype)
    matrix = reals(world.rank, (3, 5))
    world.reduce(matrix)
    if world.rank == 0:
        whole = sum(reals(rank, (3, 5)) for rank in range(p))
        np.testing.assert_allclose(matrix, whole, rtol=1e-12, atol=1e-12)
    else:
        assert np.array_equal(matrix, reals(world.rank, (3, 5)))


def check_start_broadcast(world):
    for comm, sizes in both(world):
        for dtype in DTYPES:
            for size in sizes:
                for root in range(comm.size):
                    expected = data(root, size, dtype)
                    array = expected.copy() if comm.rank == root else np.zeros(size, dtype)
                    comm.traffic.clear()
                    started = comm.start_broadcast(array, root, layer=3)
                    last = (comm.rank - root) % comm.size == comm.size - 1
                    expect_row(comm, "broadcast", 3, 0 if last else size, 1, dtype)
                    started.wait()
                    started.wait()  # a second time does nothing
                    assert np.array_equal(array, expected), (comm.limit, dtype, size, root)


def check_start_allreduce(world):
    p = world.size
    for comm, sizes in both(world):
        for dtype in DTYPES:
            for op in ops_of(dtype):
                for size in sizes:
                    parts = [data(rank, size, dtype) for rank in range(p)]
                    array = parts[comm.rank].copy()
                    comm.traffic.clear()
                    started = comm.start_allreduce(array, op, layer=1, verb="gradients")
                    words = -(-2 * size * (p - 1) // p)
                    expect_row(comm, "gradients", 1, words, 2 * (p - 1), dtype)
                    started.wait()
                    expected = OPS[op].reduce(parts).astype(dtype)
                    assert np.array_equal(array, expected), (comm.limit, dtype, op, size)
    flags = np.array([world.rank == p - 1, False, True])
    world.start_allreduce(flags, "or").wait()
    assert flags.tolist() == [True, False, True]


def start_three(comm, which, root, size):
    """One of each verb; (what is under way, verb, number of the communicator, array)."""
    arrays = [reals([comm.rank, which, k], size) for k in range(3)]
    return [
        (comm.start_broadcast(arrays[0], root), "broadcast", which, arrays[0]),
        (comm.start_reduce(arrays[1], root), "reduce", which, arrays[1]),
        (comm.start_allreduce(arrays[2]), "allreduce", which, arrays[2]),
    ]


def check_many_under_way(world):
    """On two communicators at once, started in another order on each rank, waited for in any.

    Blocking verbs on the same communicators come in between.
    """
    p, rank = world.size, world.rank
    order = np.random.default_rng(rank)
    for limit in (2**31 - 1, 7):
        comms = [Communicator(world.raw.Dup(), limit=limit) for _ in range(2)]
        halves = Communicator(world.raw, limit=limit).split(rank % 2)
        members = [other for other in range(p) if other % 2 == rank % 2]
        for number in range(5):
            size, root = 11 + 10 * number, number % p
            first = int(order.integers(2))
            begun = start_three(comms[first], first, root, size)
            half = reals([rank, 2, 0], size)
            begun.append((halves.start_allreduce(half, "max"), "half", 2, half))
            begun += start_three(comms[1 - first], 1 - first, root, size)
            assert comms[0].allgather(np.array([rank])).tolist() == list(range(p))
            assert len(pending._under_way) == 6 * (p > 1) + (len(members) > 1)
            for index in order.permutation(len(begun)):
                begun[index][0].wait()
            assert not pending._under_way
            for _, verb, which, array in begun:
                if verb == "broadcast":
                    assert np.array_equal(array, reals([root, which, 0], size))
                elif verb == "half":
                    parts = [reals([other, 2, 0], size) for other in members]
                    assert np.array_equal(array, np.maximum.reduce(parts))
                elif verb == "reduce" and rank != root:
                    assert np.array_equal(array, reals([rank, which, 1], size))
                else:
                    k = 1 if verb == "reduce" else 2
                    whole = sum(reals([other, which, k], size) for other in range(p))
                    np.testing.assert_allclose(array, whole, rtol=1e-12, atol=1e-12)
        for comm in (*comms, halves):
            comm.free()


def check_what_only_sends_may_be_read_only(world):
    root = world.size - 1
    constant = reals(world.rank, 9)
    constant.flags.writeable = False
    array = constant if world.rank == root else np.zeros(9)
    world.start_broadcast(array, root).wait()
    assert np.array_equal(array, reals(root, 9))
    array = constant.copy() if world.rank == root else constant
    world.start_reduce(array, root).wait()
    if world.rank != root:
        assert np.array_equal(array, reals(world.rank, 9))


def check_an_abandoned_one_keeps_its_memory(world):
    """Rank 0 lets it go before the others begin; what comes then must find memory."""
    array = np.full(1000, world.rank, np.float64)
    seen = weakref.ref(array)
    other = world.duplicate()  # its barrier is in no order with what goes on in `world`
    if world.rank > 0:
        other.barrier()
    started = world.start_allreduce(array)
    assert repr(started) == ("Pending(under way)" if world.size > 1 else "Pending(over)")
    del started, array
    gc.collect()
    if world.rank == 0:
        assert (seen() is not None) == (world.size > 1)
        other.barrier()
    other.free()
    for lost in list(pending._under_way):  # the ranks of a program that fails would leave it
        array = seen()
        lost.wait()
        assert (array == sum(range(world.size))).all()
        assert repr(lost) == "Pending(over)"
        del lost, array
    assert not pending._under_way
    gc.collect()
    assert seen() is None


def check_one_that_does_not_start_keeps_those_before(world):
    """An array in pieces of which the second fails: the first is under way, into its memory."""
    array = np.zeros(3)

    def requests():
        yield world.raw.Irecv(array, world.rank, 1)
        raise RuntimeError("no second one")

    with pytest.raises(RuntimeError, match="no second one"):
        Pending(requests(), array)
    (kept,) = pending._under_way
    world.raw.Isend(np.arange(3.0), world.rank, 1).Wait()
    kept.wait()
    assert array.tolist() == [0, 1, 2]
    assert not pending._under_way


def check_wrong_starts(world):
    """Every rank makes the same mistake, so nobody waits; nothing is started or counted."""
    p = world.size
    comm = Communicator(world.raw)
    array = np.zeros(6, np.float32)
    for verb, name in (
        (comm.start_broadcast, "broadcast"),
        (comm.reduce, "reduce"),
        (comm.start_reduce, "reduce"),
    ):
        for root in (p, -1):
            with pytest.raises(UsageError, match=f"{name}: root {root} is none of {p} ranks"):
                verb(array, root)
    for verb, name in (
        (comm.start_broadcast, "broadcast"),
        (comm.reduce, "reduce"),
        (comm.start_reduce, "reduce"),
        (comm.start_allreduce, "allreduce"),
    ):
        with pytest.raises(ShapeError, match=rf"{name}: array of shape .* is not C-contiguous"):
            verb(np.zeros((4, 4))[:, ::2])
        with pytest.raises(UsageError, match=f"{name}: an array is needed, found list"):
            verb([1, 2])
        with pytest.raises(UsageError, match=f"{name}: MPI has no type for .* dtype object"):
            verb(np.array([None]))
    for verb in (comm.reduce, comm.start_reduce, comm.start_allreduce):
        with pytest.raises(UsageError, match="operation 'mean' is none of"):
            verb(array, op="mean")
        with pytest.raises(UsageError, match=r"operation 'or' is not defined for .* float32"):
            verb(array, op="or")
    array.flags.writeable = False
    with pytest.raises(UsageError, match="allreduce: the array that receives is read-only"):
        comm.start_allreduce(array)
    for verb in (comm.reduce, comm.start_reduce):  # each rank is a root of its own
        with pytest.raises(UsageError, match="reduce: the array that receives is read-only"):
            verb(array, comm.rank)
    if p > 1:
        with pytest.raises(UsageError, match="broadcast: the array that receives is read-only"):
            comm.start_broadcast(array, (comm.rank + 1) % p)
    assert not pending._under_way
    assert comm.traffic.rows() == []
