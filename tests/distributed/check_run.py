"""Checks of whole runs on the ranks: files in, outputs on rank 0, for every grid that fits."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from row_wise import by_hand, make_inputs, make_network, tolerance
from sparsednn.distributed import DistributedRun
from sparsednn.errors import InputError, UsageError
from sparsednn.formats import write_inputs, write_network
from sparsednn.inference import infer
from sparsednn.partitioners import evaluate


def shared_folder(world):
    path = tempfile.mkdtemp() if world.rank == 0 else None
    return Path(world.broadcast_json(path))


def finished(world, folder):
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(folder)


def check_outputs_do_not_depend_on_the_grid(world):
    folder = shared_folder(world)
    network = make_network(21, most=50, last=("relu", "softmax"))
    inputs = make_inputs(network, 43, 2)
    outputs = np.zeros((network.n_out, inputs.n_images), np.float32)

    def fill(first, block):
        outputs[:, first : first + block.shape[1]] = block

    truth = infer(network, inputs, kernel="reference", sink=fill)
    if world.rank == 0:
        write_network(network, folder / "net.safetensors")
        write_inputs(inputs, folder / "inputs.npz")
    for parts in (m for m in range(1, world.size + 1) if world.size % m == 0):
        partition = by_hand(network, parts, parts)
        words = evaluate(network, partition).words_total * inputs.n_images
        if world.rank == 0:
            partition.save(folder / f"net.p{parts}.npz")
        world.barrier()
        for kernel in ("numba", "reference"):
            for drop in (False, True):
                run = DistributedRun(
                    world,
                    str(folder / "net.safetensors"),
                    str(folder / "inputs.npz"),
                    partition=None if parts == 1 else folder / f"net.p{parts}.npz",
                    grid=(world.size // parts, parts),
                    kernel=kernel,
                    drop=drop,
                    outputs=True,
                )
                found = np.full(outputs.shape, np.nan, np.float32)
                starts = []

                def sink(first, block, found=found, starts=starts):
                    starts.append(first)
                    found[:, first : first + block.shape[1]] = block

                result = run.run(sink if world.rank == 0 else None)
                again = run.run(sink if world.rank == 0 else None)
                if world.rank == 0:
                    np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=tolerance(network))
                    assert np.array_equal(result.categories, truth.categories)
                    assert np.array_equal(again.categories, truth.categories)
                    assert starts == sorted(starts)
                assert result.words_predicted == words
                assert (result.words_sent, result.messages_sent) == (
                    again.words_sent,
                    again.messages_sent,
                )
                if drop:
                    assert result.words_sent <= words
                else:
                    assert result.words_sent == words
                    assert result.messages_sent == result.messages_predicted
                run.free()
    finished(world, folder)


def check_blocks_of_outputs_come_in_order(world):
    """Outputs of more images than are held at a time."""
    import sparsednn.distributed.inference as module

    folder = shared_folder(world)
    network = make_network(22, last=("relu",))
    inputs = make_inputs(network, 31, 3)
    partition = by_hand(network, world.size, 4)
    if world.rank == 0:
        write_network(network, folder / "net", format="npz")
        write_inputs(inputs, folder / "inputs.safetensors")
        partition.save(folder / "parts.npz")
    world.barrier()
    outputs = np.zeros((network.n_out, inputs.n_images), np.float32)

    def fill(first, block):
        outputs[:, first : first + block.shape[1]] = block

    infer(network, inputs, kernel="reference", sink=fill)
    limit, module._OUTPUT_BYTES = module._OUTPUT_BYTES, 4 * network.n_out * 7
    try:
        for parts in ("parts.npz", None):
            run = DistributedRun(
                world,
                str(folder / "net"),
                str(folder / "inputs.safetensors"),
                partition=None if parts is None else folder / parts,
                outputs=True,
            )
            blocks = []

            def sink(first, block, blocks=blocks):
                blocks.append((first, block))

            run.run(sink if world.rank == 0 else None)
            if world.rank == 0:
                assert [first for first, _ in blocks] == [0, 7, 14, 21, 28]
                found = np.hstack([block for _, block in blocks])
                np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=tolerance(network))
            run.free()
    finally:
        module._OUTPUT_BYTES = limit
    finished(world, folder)


def check_what_does_not_fit_is_told_on_all_ranks(world):
    folder = shared_folder(world)
    network, other = make_network(23), make_network(24)
    if world.rank == 0:
        write_network(network, folder / "net.safetensors")
        write_inputs(make_inputs(network, 5, 1), folder / "inputs.npz")
        by_hand(other, world.size, 1).save(folder / "other.npz")
        by_hand(network, world.size + 1, 1).save(folder / "many.npz")
    world.barrier()
    model, inputs = str(folder / "net.safetensors"), str(folder / "inputs.npz")

    def refused(kind, says, **given):
        with pytest.raises(kind, match=says) as told:
            DistributedRun(world, model, inputs, **given)
        assert told.value.everywhere

    refused(InputError, "made for network", partition=folder / "other.npz")
    refused(InputError, "no such file", partition=folder / "missing.npz")
    refused(UsageError, f"has {world.size + 1} parts", partition=folder / "many.npz")
    refused(UsageError, "needs", grid=(world.size + 1, 1))
    refused(UsageError, "give DxM", grid=(world.size,))
    if world.size > 1:
        refused(UsageError, "give --partition FILE", grid=(1, world.size))
    finished(world, folder)
