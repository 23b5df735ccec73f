"""Checks of the verbs of `Communicator` against NumPy, on any number of ranks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsednn.comm.communicator import Communicator
from sparsednn.comm.traffic import Traffic
from sparsednn.errors import ShapeError, UsageError

DTYPES = (np.float32, np.float64, np.int32, np.int64, np.uint8)
SIZES = (0, 1, 5, 7, 8, 23)
OPS = {"sum": np.add, "max": np.maximum, "min": np.minimum, "or": np.bitwise_or}


def data(seed, size, dtype):
    """Random integers in any dtype: sums are exact, so results can be compared bit by bit."""
    return np.random.default_rng(seed).integers(0, 50, size).astype(dtype)


def sizes_of(seed, ranks):
    """Random sizes with zeros, some more than the small limit, different from rank to rank."""
    return [int(n) for n in np.random.default_rng(seed).choice([0, 0, 1, 3, 7, 8, 19], ranks)]


def both(world):
    """The communicator as it is, and one whose every larger call goes in pieces."""
    small = Communicator(world.raw, limit=7)
    return [(Communicator(world.raw), "whole"), (small, "pieces")]


def total(comm, number):
    """Sum over ranks, around the verbs that are being checked."""
    return comm.raw.allreduce(number)


def check_broadcast(world):
    for comm, how in both(world):
        for root in range(comm.size):
            for dtype in DTYPES:
                for size in SIZES:
                    expected = data(root, size, dtype)
                    array = expected.copy() if comm.rank == root else np.zeros(size, dtype)
                    comm.traffic.clear()
                    comm.broadcast(array, root, layer=3)
                    assert np.array_equal(array, expected), (how, root, dtype, size)
                    assert total(comm, comm.traffic.words("broadcast", 3)) == size * (comm.size - 1)
    matrix = np.full((3, 5), world.rank, np.float32)
    world.broadcast(matrix, world.size - 1)
    assert (matrix == world.size - 1).all()
    constant = np.ones(4)
    constant.flags.writeable = False
    if world.rank == 0:  # the root only reads
        world.broadcast(constant)
    else:
        world.broadcast(np.zeros(4))


def check_allreduce(world):
    p = world.size
    for comm, how in both(world):
        for dtype in DTYPES:
            for op, function in OPS.items():
                if op == "or" and np.dtype(dtype).kind == "f":
                    continue
                for size in SIZES:
                    parts = [data(rank, size, dtype) for rank in range(p)]
                    array = parts[comm.rank].copy()
                    comm.traffic.clear()
                    comm.allreduce(array, op)
                    expected = function.reduce(parts).astype(dtype)
                    assert np.array_equal(array, expected), (how, dtype, op, size)
                    words = -(-2 * size * (p - 1) // p)
                    messages = 2 * (p - 1) if size and p > 1 else 0
                    assert comm.traffic.rows() == [
                        ("allreduce", None, words, words * array.itemsize, messages, 1)
                    ]
    flags = np.array([world.rank == p - 1, False, True])
    world.allreduce(flags, "or")
    assert flags.tolist() == [True, False, True]
    reals = np.random.default_rng(world.rank).normal(size=100)
    expected = sum(np.random.default_rng(rank).normal(size=100) for rank in range(p))
    world.allreduce(reals)
    np.testing.assert_allclose(reals, expected, rtol=1e-12, atol=1e-12)


def check_reduce_scatter(world):
    p = world.size
    for comm, how in both(world):
        for seed, dtype in enumerate(DTYPES * 3):
            counts = sizes_of(seed, p)
            parts = [data(rank, sum(counts), dtype) for rank in range(p)]
            for op in ("sum", "max"):
                comm.traffic.clear()
                piece = comm.reduce_scatter(parts[comm.rank], counts, op, layer=1)
                expected = np.split(OPS[op].reduce(parts).astype(dtype), np.cumsum(counts)[:-1])[
                    comm.rank
                ]
                assert piece.dtype == dtype
                assert np.array_equal(piece, expected), (how, dtype, op, counts)
                assert comm.traffic.words() == sum(counts) - counts[comm.rank]
                assert np.array_equal(parts[comm.rank], data(comm.rank, sum(counts), dtype))


def check_allgather(world):
    p = world.size
    for comm, how in both(world):
        for seed, dtype in enumerate(DTYPES * 3):
            counts = sizes_of(seed, p)
            parts = [data(rank, counts[rank], dtype) for rank in range(p)]
            for given in (None, counts, np.array(counts)):
                comm.traffic.clear()
                result = comm.allgather(parts[comm.rank], given)
                assert result.dtype == dtype
                assert np.array_equal(result, np.concatenate(parts)), (how, dtype, counts)
                assert comm.traffic.words() == counts[comm.rank] * (p - 1)
                assert total(comm, comm.traffic.words()) == sum(counts) * (p - 1)


def check_all_to_all(world):
    p = world.size
    for comm, how in both(world):
        for seed, dtype in enumerate(DTYPES * 3):
            counts = [sizes_of(100 * seed + rank, p) for rank in range(p)]
            parts = [
                [data(100 * sender + taker, counts[sender][taker], dtype) for taker in range(p)]
                for sender in range(p)
            ]
            comm.traffic.clear()
            received, sizes = comm.all_to_all(
                np.concatenate(parts[comm.rank]), counts[comm.rank], layer=2
            )
            assert received.dtype == dtype
            assert sizes.dtype == np.int64
            assert sizes.tolist() == [counts[sender][comm.rank] for sender in range(p)]
            expected = np.concatenate([parts[sender][comm.rank] for sender in range(p)])
            assert np.array_equal(received, expected), (how, dtype, counts)
            # What is counted is what came at other ranks.
            came = received.size - counts[comm.rank][comm.rank]
            assert total(comm, comm.traffic.words("all_to_all", 2)) == total(comm, came)
            partners = sum(1 for rank, n in enumerate(sizes) if n and rank != comm.rank)
            assert total(comm, comm.traffic.messages()) == total(comm, partners)


def check_send_and_receive(world):
    p = world.size
    for comm, how in both(world):
        if p == 1:
            continue
        for dtype in DTYPES:
            for size in SIZES:
                # A ring: the first rank sends first, the others receive first.
                array = data(comm.rank, size, dtype)
                into = np.zeros(size, dtype)
                comm.traffic.clear()
                if comm.rank == 0:
                    comm.send(array, 1 % p, tag=5)
                comm.receive(into, (comm.rank - 1) % p, tag=5)
                if comm.rank > 0:
                    comm.send(array, (comm.rank + 1) % p, tag=5)
                assert np.array_equal(into, data((comm.rank - 1) % p, size, dtype)), (how, size)
                assert comm.traffic.words("send") == size
                assert comm.traffic.messages("send") == (size > 0)


def check_receive_says_when_less_comes(world):
    if world.size == 1:
        return
    if world.rank == 0:
        world.send(np.zeros(3, np.float32), 1)
    if world.rank == 1:
        with pytest.raises(ShapeError, match="5 float32 expected from rank 0, found 3"):
            world.receive(np.zeros(5, np.float32), 0)


def check_gather(world):
    p = world.size
    for comm, how in both(world):
        for seed, dtype in enumerate(DTYPES):
            sizes = sizes_of(seed, p)
            for root in range(p):
                mine = data(comm.rank, sizes[comm.rank], dtype)
                comm.traffic.clear()
                gathered = comm.gather(mine, root)
                assert comm.traffic.words() == (0 if comm.rank == root else mine.size)
                if comm.rank != root:
                    assert gathered is None
                    continue
                assert len(gathered) == p
                for rank, array in enumerate(gathered):
                    assert array.dtype == dtype
                    assert np.array_equal(array, data(rank, sizes[rank], dtype)), (how, rank)
                mine[:] = 77  # its own is a copy
                assert np.array_equal(gathered[root], data(root, sizes[root], dtype))


def check_json_and_texts(world):
    for comm, _ in both(world):
        value = {"name": "größe ×", "layers": [1, 2.5, None, True], "shape": (2, 3)}
        for root in range(comm.size):
            mine = value if comm.rank == root else None
            assert comm.broadcast_json(mine, root) == json.loads(json.dumps(value))
        with pytest.raises(UsageError, match="value of rank 0 is not JSON"):
            comm.broadcast_json(np.zeros(3) if comm.rank == 0 else None)
        texts = ["", "größe", "a\nb" * 20, "\udce4.txt"]
        expected = [texts[rank % 4] for rank in range(comm.size)]
        assert comm.allgather_text(expected[comm.rank]) == expected
        assert comm.allgather_text("") == [""] * comm.size
        assert comm.any_rank(comm.rank == comm.size - 1)
        assert not comm.any_rank(False)
        assert comm.traffic.rows() == []


def check_split_and_duplicate(world):
    before = world.traffic.words()
    half = world.split(world.rank % 2, -world.rank)
    ranks = [rank for rank in range(world.size) if rank % 2 == world.rank % 2][::-1]
    assert half.size == len(ranks)
    assert half.rank == ranks.index(world.rank)
    assert half.allgather(np.array([world.rank])).tolist() == ranks
    assert half.traffic is world.traffic
    assert world.traffic.words() - before == len(ranks) - 1
    own = Traffic()
    alone = world.split(0 if world.rank == 0 else None, traffic=own)
    assert (alone is None) == (world.rank != 0)
    if alone is not None:
        assert alone.size == 1
        assert alone.traffic is own
        alone.free()
    copy = Communicator(world.raw, limit=7).duplicate()
    assert (copy.rank, copy.size, copy.limit) == (world.rank, world.size, 7)
    assert copy.traffic is not world.traffic
    copy.barrier()
    for comm in (half, copy):
        comm.free()
        comm.free()
    with pytest.raises(UsageError, match="color -1 is negative"):
        world.split(-1)


def check_wrong_calls(world):
    """Every rank makes the same mistake, so nobody waits."""
    p = world.size
    array = np.zeros(6, np.float32)
    with pytest.raises(ShapeError, match=r"broadcast: array of shape .* is not C-contiguous"):
        world.broadcast(np.zeros((4, 4))[:, ::2])
    with pytest.raises(UsageError, match=f"broadcast: root {p} is none of {p} ranks"):
        world.broadcast(array, p)
    with pytest.raises(UsageError, match="an array is needed, found list"):
        world.allreduce([1, 2])
    with pytest.raises(UsageError, match="no type for elements of dtype object"):
        world.allgather(np.array([None]))
    with pytest.raises(UsageError, match="no type for elements of dtype >f4"):
        world.allreduce(np.zeros(3, ">f4"))
    with pytest.raises(UsageError, match="operation 'mean' is none of"):
        world.allreduce(array, "mean")
    with pytest.raises(UsageError, match=r"operation 'or' is not defined for .* float32"):
        world.allreduce(array, "or")
    with pytest.raises(UsageError, match=r"operation 'sum' is not defined for .* bool"):
        world.allreduce(np.zeros(3, bool), "sum")
    array.flags.writeable = False
    with pytest.raises(UsageError, match="read-only"):
        world.allreduce(array)
    with pytest.raises(ShapeError, match="6 elements, but counts that add up to"):
        world.reduce_scatter(array, [7] * p)
    with pytest.raises(ShapeError, match=f"counts of shape .* for {p} ranks"):
        world.all_to_all(array, [1] * (p + 1))
    with pytest.raises(ShapeError, match="counts must be integers from 0"):
        world.all_to_all(array, [-1] * p)
    with pytest.raises(ShapeError, match="counts must be integers from 0"):
        world.all_to_all(array, [6.0] * p)
    with pytest.raises(ShapeError, match="has 6 elements, its count says 5"):
        world.allgather(array, [5] * p)
    with pytest.raises(UsageError, match="is this rank itself"):
        world.send(array, world.rank)
    with pytest.raises(UsageError, match="tag -1 is not in 0 to"):
        world.send(array, (world.rank + 1) % p, -1) if p > 1 else world._check_tag(-1)
    for limit in (0, 2**31):
        with pytest.raises(UsageError, match="limit of elements"):
            Communicator(world.raw, limit=limit)
