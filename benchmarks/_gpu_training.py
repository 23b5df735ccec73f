"""Training steps on a device, on our CPU engine and in PyTorch; a part of `gpu.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _contenders import drawn_anew

from sparsednn import InputSet, SparseNetwork
from sparsednn.comm.alone import Alone
from sparsednn.datasets import graph_challenge_network
from sparsednn.distributed.shard import whole_shard
from sparsednn.errors import DeviceMemoryError
from sparsednn.gpu.device import Device
from sparsednn.machine import available_cores
from sparsednn.training.data import LocalExamples
from sparsednn.training.device_data import DeviceExamples
from sparsednn.training.losses import LOSSES
from sparsednn.training.optimizers import SGD
from sparsednn.training.placed import PlacedNetwork
from sparsednn.training.settings import Settings

__all__ = ["measure_training"]

_BATCHES = (64, 1024)
_NEURONS = (1024, 4096, 16384, 65536)
_CLASSES, _DENSITY = 10, 0.1
_ROUNDS, _RATE = 3, 1e-3


def examples(n_features: int, images: int) -> LocalExamples:
    """Random images, a tenth of which is not zero, and labels."""
    rng = np.random.default_rng(1)
    count = int(_DENSITY * n_features)
    features = np.sort(rng.integers(0, n_features // count, (images, count)), axis=1)
    features = (features + np.arange(count) * (n_features // count)).astype(np.int32)
    inputs = InputSet(
        np.arange(images + 1) * count, features.reshape(-1), None, n_features, check=False
    )
    return LocalExamples(inputs, rng.integers(0, _CLASSES, images), None, "random images")


def pace(step: Callable[[int], Any], seconds: float) -> float:
    """Steps a second, the median of some rounds, behind two steps that nobody times.

    Where one step takes longer than all rounds should, the third is all that is timed.
    """
    step(1), step(2)
    begin = time.perf_counter()
    step(3)
    if (first := time.perf_counter() - begin) > seconds:
        return 1 / first
    number, found = 4, []
    for _ in range(_ROUNDS):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / _ROUNDS or not done:
            step(number)
            number, done = number + 1, done + 1
        found.append(done / (time.perf_counter() - start))
    return statistics.median(found)


def ours(
    network: SparseNetwork, data: LocalExamples, batch: int, device: Device | None, seconds: float
) -> dict[str, Any]:
    """Our stepper on the device, or on all cores of the CPU."""
    settings = Settings(1, loss=LOSSES[0], optimizer=SGD(momentum=0.9), batch_size=batch)
    resident = None if device is None else DeviceExamples(device)
    if resident is not None:
        resident.inputs(data.inputs)
        resident.targets(data, network.n_out)
    alone = Alone()
    placed = PlacedNetwork(
        whole_shard(network), None, alone, alone, settings, kernel="numba",
        threads=available_cores(), columns=batch, device=device, resident=resident,
    )  # fmt: skip
    images = data.inputs.n_images
    losses: list[float] = []

    def step(number: int) -> None:
        ids = (np.arange(batch, dtype=np.int64) + number * batch) % images
        losses.append(placed.stepper.train(data, ids, batch, rate=_RATE, step=number).loss / batch)

    rate = pace(step, seconds)
    placed.free()
    return {"steps_per_second": rate, "first_losses": losses[:3]}


def torch_sparse(
    network: SparseNetwork, data: LocalExamples, batch: int, seconds: float
) -> dict[str, Any]:
    """PyTorch on the same device: COO products, whose backward pass it has; SGD with momentum."""
    import torch

    made = []
    for layer in network:
        rows = np.repeat(np.arange(layer.n_out), np.diff(layer.indptr))
        places = torch.from_numpy(np.stack([rows, layer.indices.astype(np.int64)])).cuda()
        values = torch.from_numpy(layer.values.copy()).cuda().requires_grad_()
        bias = torch.from_numpy(layer.bias.copy()).cuda().requires_grad_()
        made.append((places, values, bias, layer.shape, layer.activation.kind == "relu"))
    parameters = [one for _, values, bias, _, _ in made for one in (values, bias)]
    optimizer = torch.optim.SGD(parameters, lr=_RATE, momentum=0.9)
    whole = torch.from_numpy(data.inputs.to_dense()).cuda()
    assert data.labels is not None
    labels = torch.from_numpy(data.labels).cuda()
    losses: list[float] = []

    def step(number: int) -> None:
        ids = (torch.arange(batch, device="cuda") + number * batch) % labels.numel()
        x = whole[:, ids]
        optimizer.zero_grad()
        for places, values, bias, shape, relu in made:
            matrix = torch.sparse_coo_tensor(places, values, shape, is_coalesced=True)
            x = torch.sparse.mm(matrix, x) + bias[:, None]
            x = torch.relu(x) if relu else x
        loss = torch.nn.functional.cross_entropy(x.T, labels[ids])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.item()))

    rate = pace(step, seconds)
    return {"steps_per_second": rate, "first_losses": losses[:3]}


def measure_training(device: Device, seconds: float, dry_run: bool) -> list[dict[str, Any]]:
    """Steps a second for all sizes that there is time for."""
    end = time.perf_counter() + seconds
    print(f"\n{'training':<12}{'batch':>7}{'GPU steps/s':>13}{'CPU':>9}{'torch COO':>11}")
    found: list[dict[str, Any]] = []
    layers = 3 if dry_run else 120
    for neurons in _NEURONS[:1] if dry_run else _NEURONS:
        edges = 32 * neurons * layers
        if time.perf_counter() + 2e-7 * edges > end:
            print(f"{neurons}-{layers}: left out, no time for it")
            found.append({"neurons": neurons, "layers": layers, "left_out": "no time"})
            continue
        network = drawn_anew(graph_challenge_network(neurons, layers))
        data = examples(neurons, 64 if dry_run else 4096)
        for batch in _BATCHES[:1] if dry_run else _BATCHES:
            brief = 0.1 if dry_run else min(2.0, max(0.5, (end - time.perf_counter()) / 40))
            row: dict[str, Any] = {"neurons": neurons, "layers": layers, "batch": batch}
            row["gpu"] = _or_error(lambda: ours(network, data, batch, device, brief))  # noqa: B023
            # A step of the largest takes the CPU some seconds: one of each round is enough there.
            row["cpu"] = _or_error(lambda: ours(network, data, batch, None, brief))  # noqa: B023
            if not dry_run:
                row["torch"] = _or_error(lambda: torch_sparse(network, data, batch, brief))  # noqa: B023
            row["losses_differ"] = _differ(row["gpu"], row["cpu"])
            found.append(row)
            shown = [row.get(who, {}).get("steps_per_second") for who in ("gpu", "cpu", "torch")]
            print(
                f"{neurons}-{layers:<7}{batch:>7}"
                + "".join(
                    f"{one:>{width}.1f}" if one else f"{'–':>{width}}"
                    for one, width in zip(shown, (13, 9, 11), strict=True)
                ),
                flush=True,
            )
    return found


def _differ(one: dict[str, Any], other: dict[str, Any]) -> float | None:
    """Largest relative difference of the first losses, if both were measured."""
    if "first_losses" not in one or "first_losses" not in other:
        return None
    pairs = zip(one["first_losses"], other["first_losses"], strict=True)
    return float(max(abs(a - b) / abs(b) for a, b in pairs))


def _or_error(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, or why it could not be: a rival without memory ends nobody else's turn."""
    try:
        return work()
    except (DeviceMemoryError, ImportError, RuntimeError) as error:
        return {"error": " ".join(str(error).split())[:200]}
