"""Checks of messages between devices: `LineExchange`, its transports, the order of streams."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
from gpu.lazy_device import LazyDevice
from gpu.rank_setting import Setting

from row_wise import dying_network, make_network
from sparsednn.comm.communicator import Communicator
from sparsednn.distributed import device_columns
from sparsednn.distributed.device_links import LineExchange
from sparsednn.distributed.shard import shard_network
from sparsednn.errors import MissingDependencyError, UsageError
from sparsednn.gpu.storage import TILE
from sparsednn.gpu.twin import TwinDevice


def check_lines_placed_and_added(world):
    """`LineExchange` against sums made by hand from all ranks' numbers, which every rank knows."""
    for seed, count in ((0, 45), (1, 32), (2, 64), (3, 1)):
        network = make_network(seed)
        setting = Setting(world, network, 1, seed)
        tiles = -(-count // TILE)
        device, own = TwinDevice(), setting.own
        links = {
            fold: LineExchange(
                device, setting.plans, world, tiles=2, own_lines=own, fold=fold,
                verb="fold" if fold else "exchange", transport=transport,
            )
            for fold, transport in ((False, "staged"), (True, "gpu-aware"))
        }  # fmt: skip
        columns = np.array([count], np.int32)
        for k, plan in enumerate(setting.plans):
            owners = setting.partition.owners[k]
            x_lines = own[k] + plan.words_received + 2  # buffers may have more lines than that

            def numbers(rank, k=k, owners=owners, tiles=tiles):
                rng = np.random.default_rng([k, rank])
                return rng.standard_normal((tiles, owners.size, TILE)).astype(np.float32)

            mine = owners == world.rank
            x = np.full((tiles, x_lines, TILE), np.nan, np.float32)
            x[:, : own[k]] = numbers(0)[:, mine]
            before = world.traffic.words("exchange", k), world.traffic.words("fold", k)
            links[False].start(k, x, x_lines, columns, count, None)
            links[False].finish(k, x, x_lines, columns, count, None)
            received = plan.receive_columns
            assert np.array_equal(x[:, own[k] : x_lines - 2], numbers(0)[:, received])
            # The way back: each rank has numbers of its own for what it received.
            x[:, own[k] : x_lines - 2] = numbers(world.rank)[:, received]
            links[True].start(k, x, x_lines, columns, count, None)
            links[True].finish(k, x, x_lines, columns, count, None)
            wanted = numbers(0)
            for rank in range(world.size):  # in this order
                shard = shard_network(network, setting.partition, rank)
                needed = np.zeros(owners.size, np.bool_)
                needed[shard.layers[k].indices] = True
                needed &= owners != rank
                wanted[:, needed] += numbers(rank)[:, needed]
            assert np.array_equal(x[:, : own[k]], wanted[:, mine])
            assert np.isnan(x[:, x_lines - 2 :]).all()
            after = world.traffic.words("exchange", k), world.traffic.words("fold", k)
            assert np.array_equal(
                np.subtract(after, before), (plan.words_sent * count, plan.words_received * count)
            )
        for link in links.values():
            link.free()
            link.free()


def check_misuse_is_told(world):
    setting = Setting(world, make_network(4), 1, 4)
    device = TwinDevice()
    link = LineExchange(device, setting.plans, world, tiles=1, own_lines=setting.own)
    x, columns = device.zeros(1000, np.float32), np.array([0], np.int32)
    with pytest.raises(UsageError, match="finished but not started"):
        link.finish(0, x, 10, columns, 0, None)
    with pytest.raises(UsageError, match="2 tiles, room for 1"):
        link.start(0, x, 10, columns, 33, None)
    link.start(0, x, 10, columns, 0, None)
    with pytest.raises(UsageError, match="layer 0 is under way"):
        link.start(1, x, 10, columns, 0, None)


def check_transports(world):
    setting = Setting(world, make_network(2, most=60), 70, 2)
    names = [
        setting.check(transport=transport, drop=False).transport
        for transport in ("auto", "staged", "gpu-aware")
    ]
    expected = ["mpi staged", "mpi staged", "mpi gpu-aware"]
    assert names == (expected if world.size > 1 else ["none"] * 3)
    with pytest.raises(UsageError, match="is none of auto, staged"):
        setting.plan(transport="pigeons")
    if world.size > 1:
        with pytest.raises((UsageError, MissingDependencyError), match="needs GPUs"):
            setting.plan(transport="nccl")


def check_streams_wait_for_each_other(world):
    """Work is done as late as it may be, and in random orders."""
    setting = Setting(world, dying_network(0), 150, 0)
    room, device_columns._PIECE = device_columns._PIECE, 1  # inputs come in pieces of a tile
    try:
        for seed in (None, 1, 2):
            for transport in ("staged", "gpu-aware"):
                device = LazyDevice(seed)
                setting.check(device=device, transport=transport, columns=128)
                assert device.late
        setting = Setting(world, make_network(2, most=60), 70, 2)
        setting.check(device=LazyDevice(), drop=False, overlap=False)
    finally:
        device_columns._PIECE = room


class _MessagesOnAStream:
    """In the place of `NcclGroup`: what it starts on a stream of a `LazyDevice` is done by MPI."""

    device = None

    def __init__(self, comm):
        self.comm = comm

    def exchange(self, sends, receives, stream):
        def work():
            with self.comm.neighbour_exchange(sends, receives, verb="inside") as exchange:
                exchange.start()
                exchange.finish()

        self.device._later(work, stream)

    def free(self):
        pass


def check_messages_on_a_stream(world):
    """The host never waits, so only events keep the streams in order."""
    from sparsednn.distributed import transports
    from sparsednn.gpu import nccl

    setting = Setting(world, dying_network(0), 150, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nccl, "NcclGroup", _MessagesOnAStream)
        patch.setattr(nccl, "load_nccl", lambda: None)
        patch.setattr(transports, "_in_host_memory", lambda device: False)
        for drop in (False, True):
            _MessagesOnAStream.device = LazyDevice()
            plan = setting.check(
                device=_MessagesOnAStream.device, transport="nccl", drop=drop, columns=128
            )
            assert plan.transport == ("nccl" if world.size > 1 else "none")


class _Nccl:
    """What `NcclGroup` asks of CuPy's wrapper, with memory of the host, through MPI."""

    NCCL_UINT8, NcclError = 1, RuntimeError

    def __init__(self, world):
        self.world, self.calls = world, None

    def get_unique_id(self):
        return tuple(range(-64, 64))

    def NcclCommunicator(self, size, unique, rank):  # noqa: N802  (CuPy's name)
        assert (size, rank) == (self.world.size, self.world.rank)
        assert unique == self.get_unique_id()
        return self

    def groupStart(self):  # noqa: N802
        self.calls = {"send": {}, "recv": {}}

    def groupEnd(self):  # noqa: N802
        with self.world.neighbour_exchange(self.calls["send"], self.calls["recv"]) as exchange:
            exchange.start()
            exchange.finish()
        self.calls = None

    def _bytes(self, verb, pointer, size, kind, peer, stream):
        assert kind == self.NCCL_UINT8
        assert stream == 77
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
        self.calls[verb][peer] = array

    def send(self, *call):
        self._bytes("send", *call)

    def recv(self, *call):
        self._bytes("recv", *call)

    def destroy(self):
        self.world = None


def check_nccl_is_asked_rightly(world):
    from sparsednn.gpu import nccl

    def array(numbers):
        pointer = SimpleNamespace(ptr=numbers.ctypes.data)
        return SimpleNamespace(data=pointer, nbytes=numbers.nbytes)

    with pytest.MonkeyPatch.context() as patch:
        fake = _Nccl(world)
        patch.setattr(nccl, "load_nccl", lambda: fake)
        group = nccl.NcclGroup(world)
        others = [rank for rank in range(world.size) if rank != world.rank]
        sent = {rank: np.full(rank + 1, 10.0 * world.rank + rank) for rank in others}
        got = {rank: np.zeros(world.rank + 1) for rank in others}
        group.exchange(
            {rank: array(numbers) for rank, numbers in sent.items()},
            {rank: array(numbers) for rank, numbers in got.items()},
            SimpleNamespace(ptr=77),
        )
        for rank, numbers in got.items():
            assert np.array_equal(numbers, np.full(world.rank + 1, 10.0 * rank + world.rank))
        group.free()
        group.free()
        assert fake.world is None

        def missing():
            if world.rank == world.size - 1:
                raise MissingDependencyError("NCCL is not installed")
            return fake

        patch.setattr(nccl, "load_nccl", missing)
        with pytest.raises(MissingDependencyError, match="NCCL is not installed"):
            nccl.NcclGroup(world)


class _DeviceMemory:
    """An array that only its address tells MPI of, as CuPy's are; in truth memory of the host."""

    def __init__(self, host):
        self.host = host
        self.dtype, self.size, self.nbytes = host.dtype, host.size, host.nbytes
        self.shape, self.flags = host.shape, SimpleNamespace(c_contiguous=True)

    @property
    def __cuda_array_interface__(self):
        return self.host.__array_interface__ | {"strides": None, "version": 3}

    def __getitem__(self, key):
        return _DeviceMemory(self.host[key])

    def reshape(self, *shape):
        return _DeviceMemory(self.host.reshape(*shape))


def check_device_memory_goes_to_mpi(world):
    """Also in pieces, where there are more elements than one call takes."""
    short = Communicator(world.raw, limit=7)
    others = [rank for rank in range(world.size) if rank != world.rank]
    for comm in (world, short):
        for kind in (np.float32, np.uint16):
            sent = {rank: np.full((4, 5), 10 * world.rank + rank, kind) for rank in others}
            got = {rank: np.zeros((4, 5), kind) for rank in others}
            with comm.neighbour_exchange(
                {rank: _DeviceMemory(array) for rank, array in sent.items()},
                {rank: _DeviceMemory(array) for rank, array in got.items()},
            ) as exchange:
                exchange.start()
                exchange.finish()
            for rank, array in got.items():
                assert np.all(array == 10 * rank + world.rank)
