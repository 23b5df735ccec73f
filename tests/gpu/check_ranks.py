"""Checks of the engine for several devices, with the NumPy twin as every rank's device."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from gpu.rank_setting import Setting

from networks import ACTIVATIONS
from row_wise import by_hand, dying_network, make_inputs, make_network, tolerance
from sparsednn.distributed import DistributedRun
from sparsednn.distributed.device_links import LineExchange
from sparsednn.errors import DeviceMemoryError, SparseDNNError, UsageError
from sparsednn.formats import write_inputs, write_network
from sparsednn.gpu.storage import TILE
from sparsednn.gpu.twin import TwinDevice
from sparsednn.kernels.linked import COMPUTE, PHASES
from sparsednn.kernels.reference import ReferencePlan as SerialReference
from sparsednn.partitioners import evaluate


def check_random_networks_and_parts_without_rows(world):
    for seed in range(8 if world.size < 4 else 4):
        network = make_network(seed, last=(*ACTIVATIONS, "softmax"))
        images = int(np.random.default_rng(seed).integers(1, 80))
        setting = Setting(world, network, images, seed)
        for drop in (False, True):
            setting.check(times=1, drop=drop)


def check_columns_that_die(world):
    words = []
    setting = Setting(world, dying_network(0), 230, 0)
    for columns in (230, 100):  # one chunk, two
        for drop in (False, True):
            before = world.traffic.words("exchange")
            setting.check(drop=drop, columns=columns)
            words.append(world.traffic.words("exchange") - before)
    total = np.array(words)
    world.allreduce(total)
    if world.size > 1:  # or the test shows nothing
        assert np.all(total[1::2] < total[::2])


def check_the_real_kernels(world):
    """The same with the PTX that NVRTC makes, interpreted: it sees reads of what nobody wrote."""
    from ptx import EmulatedDevice
    from ptx.nvrtc import available

    if not available() or world.size != 2:
        return
    device = EmulatedDevice(multiprocessors=1)
    network = make_network(1, most=12, last=("relu", "sigmoid", "softmax"))
    Setting(world, network, 41, 1).check(device=device, drop=False, times=1)
    setting = Setting(world, dying_network(0), 70, 0)
    setting.check(device=device, columns=64, times=1)
    assert device.statistics["keep_living"].launches, "no column was dropped: another seed"
    folded = LineExchange(
        device, setting.plans, world, tiles=1, own_lines=setting.own, fold=True, store=1
    )
    columns = device.upload(np.array([20], np.int32))
    for k, plan in enumerate(setting.plans):
        lines = setting.own[k] + plan.words_received
        x = device.upload(np.ones((1, max(1, lines), TILE), np.float16))
        folded.start(k, x, lines, columns, 20, None)
        folded.finish(k, x, lines, columns, 20, None)
        times = 1 + np.bincount(plan.send_rows, minlength=setting.own[k])
        assert np.all(device.download(x)[0, : setting.own[k]] == times[:, None])
    folded.free()


def check_no_images_and_waiting_first(world):
    Setting(world, make_network(11), 0, 1).check()
    setting = Setting(world, make_network(9), 40, 9)
    setting.check(drop=False, overlap=False)
    plan = setting.plan(outputs=False)
    flags = plan.run(setting.mine).astype(np.uint8)
    world.allreduce(flags, "or")
    assert np.array_equal(flags != 0, setting.truth.any(axis=0))
    with pytest.raises(UsageError, match="made without"):
        plan.run(setting.mine, np.zeros((setting.own[-1], 40), np.float32))


def check_half_precision(world):
    """Sums are rounded on the way, and what travels is two bytes a word."""
    for store, unit in ((1, 1e-3), (2, 1e-2)):
        network = make_network(3, last=("sigmoid",), bias="mixed")
        Setting(world, network, 50, 3).check(store=store, rtol=0, atol=30 * unit, times=1)


def check_chunks_that_memory_allows(world):
    """One rank has less memory than the others: all take its chunks; or all are told."""
    network = make_network(5, most=50)
    setting = Setting(world, network, 2000, 5)
    chunks = []
    for spare in (1 << 28, 600_000, 150_000):
        spare = spare if world.rank == world.size - 1 else 1 << 28
        chunks.append(setting.check(spare=spare, drop=False, times=1).chunk)
    assert chunks[0] == 2016
    assert chunks[0] > chunks[1] > chunks[2] >= TILE, chunks
    everywhere = world.allgather(np.array(chunks)).reshape(-1, 3)
    assert np.all(everywhere == chunks)
    with pytest.raises(DeviceMemoryError, match="divide the network among more GPUs"):
        setting.plan(spare=3000 if world.rank == 0 else 1 << 28)


def check_seconds_of_phases(world):
    plan = Setting(world, make_network(7), 50, 7).check(drop=False)
    seconds = plan.timing.seconds
    assert seconds.shape == (len(plan._plans), len(PHASES))
    assert np.all(seconds >= 0)
    assert np.all(seconds[:, COMPUTE] > 0)
    plan.reset()
    assert not plan.timing.seconds.any()


def check_whole_runs_on_every_grid(world):
    folder = Path(world.broadcast_json(tempfile.mkdtemp() if world.rank == 0 else None))
    network = make_network(21, most=50, last=("relu", "softmax"))
    inputs = make_inputs(network, 83, 2)
    truth = np.zeros((network.n_out, inputs.n_images), np.float32)
    SerialReference(network).run(inputs, truth)
    if world.rank == 0:
        write_network(network, folder / "net.safetensors")
        write_inputs(inputs, folder / "inputs.npz")
    for parts in (m for m in range(1, world.size + 1) if world.size % m == 0):
        partition = by_hand(network, parts, parts)
        words = evaluate(network, partition).words_total * inputs.n_images
        if world.rank == 0:
            partition.save(folder / f"net.p{parts}.npz")
        world.barrier()
        files = (str(folder / "net.safetensors"), str(folder / "inputs.npz"))
        divided = {
            "partition": None if parts == 1 else folder / f"net.p{parts}.npz",
            "grid": (world.size // parts, parts),
            "device": TwinDevice(),
        }
        for drop, transport in ((False, "auto"), (True, "gpu-aware")):
            run = DistributedRun(
                world, *files, drop=drop, outputs=True, transport=transport, **divided
            )
            found = np.full(truth.shape, np.nan, np.float32)

            def sink(first, block, found=found):
                found[:, first : first + block.shape[1]] = block

            result = run.run(sink if world.rank == 0 else None)
            if world.rank == 0:
                np.testing.assert_allclose(found, truth, rtol=1e-4, atol=tolerance(network))
                assert np.array_equal(result.categories, np.flatnonzero(truth.any(axis=0)))
            used = "mpi staged" if transport == "auto" else "mpi gpu-aware"
            assert run.transport == (used if parts > 1 else "")
            assert result.words_predicted == words
            if drop:
                assert result.words_sent <= words
            else:
                assert result.words_sent == words
                assert result.messages_sent == result.messages_predicted
            run.free()
        if parts > 1:
            with pytest.raises(UsageError, match="'nccl' needs GPUs, not the NumPy twin") as told:
                DistributedRun(world, *files, transport="nccl", **divided)
            assert told.value.everywhere
    if world.size > 1:
        with pytest.raises(UsageError, match="some ranks have a GPU") as told:
            DistributedRun(
                world, str(folder / "net.safetensors"), str(folder / "inputs.npz"),
                device=TwinDevice() if world.rank else None,
            )  # fmt: skip
        assert told.value.everywhere
    with pytest.raises(SparseDNNError, match=r"fit|are wanted") as told:  # one rank's memory
        DistributedRun(
            world, str(folder / "net.safetensors"), str(folder / "inputs.npz"),
            partition=folder / f"net.p{world.size}.npz" if world.size > 1 else None,
            device=TwinDevice(memory=1000 if world.rank == 0 else 1 << 28),
        )  # fmt: skip
    assert told.value.everywhere or world.size == 1
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(folder)
