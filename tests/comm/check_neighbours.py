"""Checks of `NeighbourExchange`: against what every rank knows was sent, and as an operator."""

from __future__ import annotations

import numpy as np
import pytest

from sparsednn.comm.communicator import Communicator
from sparsednn.errors import ShapeError, UsageError


def plan(seed, p):
    """Random elements from each rank to each other, with zeros, the same on every rank."""
    counts = np.random.default_rng(seed).choice([0, 0, 1, 5, 7, 8, 30], (p, p))
    np.fill_diagonal(counts, 0)
    return counts


def buffers(comm, counts, dtype, width=1):
    p, me = comm.size, comm.rank
    others = [rank for rank in range(p) if rank != me]
    sends = {rank: np.zeros((counts[me, rank], width), dtype) for rank in others}
    receives = {rank: np.zeros((counts[rank, me], width), dtype) for rank in others}
    return sends, receives


def content(seed, sender, taker, shape, dtype):
    key = np.random.default_rng([seed, sender, taker])
    return key.integers(0, 200, shape).astype(dtype)


def check_rounds_on_the_same_buffers(world):
    p = world.size
    for limit in (7, 2**31 - 1):
        comm = Communicator(world.raw, limit=limit)
        for dtype in (np.float32, np.float64, np.int32, np.int64, np.uint8):
            counts = plan(p, p)
            sends, receives = buffers(comm, counts, dtype, width=3)
            with comm.neighbour_exchange(sends, receives, layer=4, tag=9) as exchange:
                for seed in range(4):
                    for rank, array in sends.items():
                        array[:] = content(seed, comm.rank, rank, array.shape, dtype)
                    exchange.start()
                    exchange.finish()
                    for rank, array in receives.items():
                        expected = content(seed, rank, comm.rank, array.shape, dtype)
                        assert np.array_equal(array, expected), (limit, dtype, rank)
            row, column = counts[comm.rank] * 3, counts[:, comm.rank] * 3
            assert exchange.words == row.sum()
            assert exchange.nbytes == row.sum() * np.dtype(dtype).itemsize
            assert exchange.messages == np.count_nonzero(row)
            # Words counted are words that came on the other side.
            assert comm.traffic.rows() == [
                ("exchange", 4, 4 * exchange.words, 4 * exchange.nbytes, 4 * exchange.messages, 4)
            ]
            came = 4 * sum(array.size for array in receives.values())
            assert came == 4 * column.sum()
            assert comm.raw.allreduce(comm.traffic.words("exchange")) == comm.raw.allreduce(came)
            partners = 4 * np.count_nonzero(column)
            assert comm.raw.allreduce(comm.traffic.messages()) == comm.raw.allreduce(partners)
            comm.traffic.clear()


def check_requests_are_in_order(world):
    p = world.size
    for limit, per_message in ((7, 3), (100, 1)):
        comm = Communicator(world.raw, limit=limit)
        counts = np.full((p, p), 15)
        sends, receives = buffers(comm, counts, np.float32)
        exchange = comm.neighbour_exchange(sends, receives)
        assert isinstance(exchange.requests, tuple)
        assert len(exchange.requests) == 2 * (p - 1) * per_message
        # Started by hand in this order, as a compiled loop does it.
        for array in sends.values():
            array[:] = np.arange(15)[:, None] + 100 * comm.rank
        for request in exchange.requests:
            request.Start()
        for request in exchange.requests:
            request.Wait()
        for rank, array in receives.items():
            assert np.array_equal(array[:, 0], np.arange(15) + 100 * rank)
        assert comm.traffic.rows() == []
        exchange.free()
        exchange.free()
        assert exchange.requests == ()


def check_empty_messages(world):
    sends, receives = buffers(world, np.zeros((world.size, world.size), int), np.float32)
    before = world.traffic.messages()
    with world.neighbour_exchange(sends, receives) as exchange:
        assert exchange.requests == ()
        exchange.start()
        exchange.finish()
        assert (exchange.words, exchange.nbytes, exchange.messages) == (0, 0, 0)
    assert world.traffic.messages() == before


def check_fold_is_the_transpose_of_expand(world):
    """<E x, y> = <x, Eᵀ y>: the fold is the expand with sends and receives swapped, and sums."""
    p, me = world.size, world.rank
    counts = plan(11 + p, p)
    n = 20
    rng = np.random.default_rng(me)
    x = rng.normal(size=n)
    wanted = {r: rng.integers(0, n, counts[me, r]) for r in range(p) if r != me}
    y = {r: rng.normal(size=counts[r, me]) for r in range(p) if r != me}

    sends, receives = buffers(world, counts, np.float64)
    out = {r: sends[r][:, 0] for r in sends}
    into = {r: receives[r][:, 0] for r in receives}
    with (
        world.neighbour_exchange(out, into, tag=0) as expand,
        world.neighbour_exchange(into, out, tag=1) as fold,
    ):
        for r, places in wanted.items():
            out[r][:] = x[places]
        expand.start()
        expand.finish()
        left = sum(float(into[r] @ y[r]) for r in into)
        for r in into:
            into[r][:] = y[r]
        fold.start()
        fold.finish()
        transposed = np.zeros(n)
        for r, places in wanted.items():
            np.add.at(transposed, places, out[r])
        right = float(x @ transposed)
        assert world.raw.allreduce(fold.words) == world.raw.allreduce(expand.words)
    left, right = world.raw.allreduce(left), world.raw.allreduce(right)
    assert abs(left - right) <= 1e-12 * max(1.0, abs(left))


def check_two_exchanges_at_a_time(world):
    p = world.size
    counts = np.full((p, p), 4)
    first = buffers(world, counts, np.int32)
    second = buffers(world, counts, np.int32)
    with (
        world.neighbour_exchange(*first, tag=1) as one,
        world.neighbour_exchange(*second, tag=2) as two,
    ):
        for array in first[0].values():
            array[:] = 1
        for array in second[0].values():
            array[:] = 2
        # In another order on odd ranks: the tags tell them apart.
        for exchange in (one, two) if world.rank % 2 else (two, one):
            exchange.start()
        one.finish()
        two.finish()
    assert all((array == 1).all() for array in first[1].values())
    assert all((array == 2).all() for array in second[1].values())


def check_wrong_order_of_calls(world):
    sends, receives = buffers(world, np.full((world.size, world.size), 2), np.int32)
    exchange = world.neighbour_exchange(sends, receives, layer=7)
    with pytest.raises(UsageError, match="of layer 7: finished but not started"):
        exchange.finish()
    exchange.start()
    with pytest.raises(UsageError, match="of layer 7: started twice"):
        exchange.start()
    with pytest.raises(UsageError, match="freed before finish"):
        exchange.free()
    exchange.finish()
    with pytest.raises(UsageError, match="finished but not started"):
        exchange.finish()
    exchange.free()
    with pytest.raises(UsageError, match="started after free"):
        exchange.start()


def start_and_fail(exchange):
    with exchange:
        exchange.start()
        raise ZeroDivisionError


def round_of(exchange):
    with exchange:
        exchange.start()
        exchange.finish()


def check_an_error_between_start_and_finish_is_told(world):
    sends, receives = buffers(world, np.full((world.size, world.size), 2), np.int32)
    exchange = world.neighbour_exchange(sends, receives)
    with pytest.raises(ZeroDivisionError):
        start_and_fail(exchange)
    exchange.finish()  # the partners are there in this check, so it can be brought to its end
    exchange.free()


def check_wrong_buffers(world):
    p, me = world.size, world.rank
    other = (me + 1) % p
    array = np.zeros(4, np.float32)
    with pytest.raises(UsageError, match=f"send to rank {p}: there are {p} ranks"):
        world.neighbour_exchange({p: array}, {})
    with pytest.raises(UsageError, match=f"receive from rank {me}: that is this rank itself"):
        world.neighbour_exchange({}, {me: array})
    if p == 1:
        return
    with pytest.raises(ShapeError, match=r"of layer 2: send to rank .* not C-contiguous"):
        world.neighbour_exchange({other: np.zeros((4, 4))[:, 1:3]}, {}, layer=2)
    with pytest.raises(UsageError, match="no type for elements of dtype object"):
        world.neighbour_exchange({other: np.array([None])}, {})
    array.flags.writeable = False
    with pytest.raises(UsageError, match="read-only"):
        world.neighbour_exchange({}, {other: array})
    with pytest.raises(UsageError, match="tag"):
        world.neighbour_exchange({}, {}, tag=-1)


def check_a_short_message_is_found(world):
    """Rank 0 sends 3 elements; rank 1 expects 5."""
    if world.size == 1:
        return
    sends = {1: np.ones(3, np.float32)} if world.rank == 0 else {}
    receives = {0: np.zeros(5, np.float32)} if world.rank == 1 else {}
    with world.neighbour_exchange(sends, receives, layer=6) as exchange:
        exchange.start()
        if world.rank == 1:
            with pytest.raises(ShapeError, match=r"of layer 6: 5 .* from rank 0, found 3"):
                exchange.finish()
        else:
            exchange.finish()


def check_a_long_message_is_found(world):
    """Rank 0 sends 9 elements; rank 1 expects 5. The exchange is left, not freed."""
    if world.size == 1:
        return
    own = world.duplicate()
    sends = {1: np.ones(9, np.float32)} if own.rank == 0 else {}
    receives = {0: np.zeros(5, np.float32)} if own.rank == 1 else {}
    exchange = own.neighbour_exchange(sends, receives, layer=6)
    if own.rank == 1:
        with pytest.raises(ShapeError, match="of layer 6: a message for rank 1 is longer"):
            round_of(exchange)
    else:
        round_of(exchange)
    world.barrier()
