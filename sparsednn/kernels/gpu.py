"""The GPU kernel: `cupy` behind the kernel interface.

Holds what belongs to a run — chunks of columns, copies of inputs beside the kernels, results by
image, time. What is computed is in `sparsednn.gpu`: layout (`packing`), memory (`network`),
launches (`cascade`), memory of a chunk (`slots`), CUDA sources.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import DeviceMemoryError, ShapeError
from sparsednn.gpu.cascade import Cascade, Part, bytes_per_column
from sparsednn.gpu.device import Array, Device
from sparsednn.gpu.launcher import Launcher
from sparsednn.gpu.network import DeviceNetwork
from sparsednn.gpu.slots import Slot
from sparsednn.gpu.storage import TILE, store_of, stored_dtype
from sparsednn.inputs import InputSet
from sparsednn.network import SparseNetwork

__all__ = ["GpuKernel", "GpuPlan", "precision_error"]

#: Columns of a chunk at most; otherwise chunks are as wide as memory allows. A wide chunk is
#: better: late layers, in which few columns are left, are run once for each chunk.
_MOST_COLUMNS = 1 << 20

#: Share of the free memory that buffers may take: the rest is for inputs, and for others.
_SHARE = 0.8


class GpuPlan:
    """A network on a device; see `sparsednn.kernels.base.NetworkPlan`.

    Parameters
    ----------
    device, network
        Where, and what.
    precision
        How weights and activations are stored: fp32, fp16 or bf16; sums are float32.
    drop, merge
        Whether dead columns are dropped, and equal columns computed once. Neither changes a result.
    columns
        Columns of a chunk at most; by default what memory allows.

    Attributes
    ----------
    streamed
        Whether the network leaves too little of the device's memory for columns, and so is copied
        layer by layer each time.
    device_seconds, copy_seconds
        Of all runs so far: seconds in which kernels ran (from the first to the last of each chunk),
        and seconds of copies of inputs, outputs and streamed weights, which run beside them.
    merged_columns
        Of all runs so far: images whose column was equal to another one's at some layer.

    Raises
    ------
    DeviceMemoryError
        If the device has no room for 32 columns and two layers; the message says how much is
        missing.
    """

    def __init__(
        self,
        device: Device,
        network: SparseNetwork,
        *,
        precision: str = "fp32",
        drop: bool = True,
        merge: bool = True,
        columns: int | None = None,
    ) -> None:
        self.device = device
        self.store = store_of(precision)
        self._drop, self._merge = drop, merge
        self._limit = min(columns or _MOST_COLUMNS, _MOST_COLUMNS)
        widest = max(network.n_in, *(layer.n_out for layer in network))
        # A resident network should leave room for a decent chunk, or streaming is the better way.
        room = 8 * TILE * widest * np.dtype(stored_dtype(self.store)).itemsize
        try:
            self.network = DeviceNetwork(device, network, self.store, room)
        except DeviceMemoryError as error:
            raise self._too_large(network.name, error) from None
        self._name = network.name
        self.streamed = self.network.streamed
        self.device_seconds = self.copy_seconds = 0.0
        self.merged_columns = 0
        self._compute, self._copies = device.stream(), device.stream()
        self._cascade: Cascade | None = None
        self._slots: list[Slot] = []
        self._outputs: Array | None = None

    def _too_large(self, name: str, error: DeviceMemoryError) -> DeviceMemoryError:
        return DeviceMemoryError(
            f"{self.device.name}: network '{name}' does not fit, not even layer by layer with "
            f"{TILE} columns: {error.wanted:,} bytes more are wanted, {error.free:,} of "
            f"{self.device.total_bytes():,} are free; divide it among several GPUs (--partition, "
            "--ranks), or use --device cpu",
            error.wanted,
            error.free,
        )

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Run all layers on all columns; see `NetworkPlan.run`."""
        n_in, n_out = self.network.widths[0], self.network.widths[-1]
        if inputs.n_features != n_in:
            raise ShapeError(f"inputs have {inputs.n_features} features, the network takes {n_in}")
        if outputs is not None and outputs.shape != (n_out, inputs.n_images):
            raise ShapeError(
                f"outputs have shape {outputs.shape}, expected {(n_out, inputs.n_images)}"
            )
        nonzero = np.zeros(inputs.n_images, np.bool_)
        if not inputs.n_images:
            return nonzero
        self.reserve(inputs, outputs is not None)
        assert self._cascade is not None
        step = self._step
        waiting: list[tuple[int, int, Slot]] = []
        for turn, first in enumerate(range(0, inputs.n_images, step)):
            last = min(first + step, inputs.n_images)
            slot = self._slots[turn % len(self._slots)]
            if len(waiting) == len(self._slots):  # its results are still to be taken
                self._collect(*waiting.pop(0), nonzero, outputs)
            self._start(slot, inputs, first, last, outputs is not None)
            waiting.append((first, last, slot))
        for one in waiting:
            self._collect(*one, nonzero, outputs)
        self.copy_seconds += self.network.take_copy_seconds()
        return nonzero

    @property
    def columns(self) -> int:
        """Columns of a chunk, as far as a run or `reserve` has chosen; 0 before."""
        return 0 if self._cascade is None else self._step

    def reserve(self, inputs: InputSet, outputs: bool) -> None:
        """Allocate what a run of these inputs needs, unless it is there: outside of what is timed.

        Parameters
        ----------
        inputs
            Of a run, or of its largest part.
        outputs
            Whether outputs will be wanted.

        Raises
        ------
        DeviceMemoryError
            As the class does.
        """
        wanted = min(inputs.n_images, self._limit)
        if (
            self._cascade is None
            or self._wanted < wanted
            or (outputs and self._outputs is None)
            or not self._slots[0].holds(
                self._most_nonzeros(inputs, self._step), values=inputs.values is not None
            )
        ):
            self._reserve(inputs, outputs, wanted)

    def _reserve(self, inputs: InputSet, outputs: bool, wanted: int) -> None:
        """Make cascade and slots for as many columns as fit."""
        self._cascade, self._slots, self._outputs = None, [], None
        n_out = self.network.widths[-1]
        each = bytes_per_column(self.network) + (4 * n_out if outputs else 0)
        fitting = int(_SHARE * self.device.free_bytes()) // each // TILE * TILE
        columns = max(TILE, min(-(-wanted // TILE) * TILE, fitting))
        while True:
            try:
                self._cascade = Cascade(
                    self.device, self.network, columns, drop=self._drop, merge=self._merge
                )
                self._step = min(columns, wanted)
                slots = 1 if self._step >= inputs.n_images else 2
                self._slots = [
                    Slot(
                        self.device,
                        self._cascade.columns,
                        self._most_nonzeros(inputs, self._step),
                        index=np.uint16 if self.network.index_bits == 16 else np.uint32,
                        values=inputs.values is not None,
                        outputs=n_out if outputs else 0,
                    )
                    for _ in range(slots)
                ]
                if outputs:
                    self._outputs = self.device.empty((n_out, columns), np.float32)
                break
            except DeviceMemoryError as error:
                self._cascade, self._slots, self._outputs = None, [], None
                if columns <= TILE:
                    raise self._too_large(self._name, error) from None
                columns = max(TILE, columns // 2 // TILE * TILE)
        self._wanted = wanted

    @staticmethod
    def _most_nonzeros(inputs: InputSet, step: int) -> int:
        """Nonzeros of the fullest chunk."""
        ends = np.append(np.arange(0, inputs.n_images, max(1, step)), inputs.n_images)
        return int(np.diff(inputs.indptr[ends]).max(initial=0))

    def _start(self, slot: Slot, inputs: InputSet, first: int, last: int, outputs: bool) -> None:
        """Start copies and kernels of one chunk; the host goes on at once."""
        device, cascade, compute, copies = self.device, self._cascade, self._compute, self._copies
        assert cascade is not None
        count = last - first
        slot.send(device, inputs.columns(first, last), copies)
        device.wait(slot.copied, compute)
        device.record(slot.start, compute)
        cascade.load_images(*slot.arrays, count, compute)
        cascade.run(compute)
        if outputs and self._outputs is not None:
            device.fill_zero(self._outputs, compute)
            cascade.store_outputs(self._outputs, self._outputs.shape[1], compute)
        device.record(slot.finished, compute)
        # On the stream of the kernels, as the next chunk overwrites what is read here.
        device.download(cascade.flags, slot.flags, compute)
        device.download(cascade.merged, slot.merged, compute)
        if slot.outputs is not None and outputs:
            device.download(self._outputs, slot.outputs, compute)
        device.record(slot.done, compute)

    def _collect(
        self,
        first: int,
        last: int,
        slot: Slot,
        nonzero: NDArray[np.bool_],
        outputs: NDArray[np.float32] | None,
    ) -> None:
        """Take the results of a chunk."""
        device, count = self.device, last - first
        self.device_seconds += device.seconds(slot.start, slot.finished)  # waits, too
        self.copy_seconds += device.seconds(slot.copy_start, slot.copied)
        self.copy_seconds += device.seconds(slot.finished, slot.done)
        root = _roots(slot.merged[:count])
        nonzero[first:last] = slot.flags[:count][root] != 0
        self.merged_columns += int(np.count_nonzero(slot.merged[:count]))
        if outputs is not None and slot.outputs is not None:
            outputs[:, first:last] = slot.outputs[:, root]

    def profile(self, inputs: InputSet) -> list[Part]:
        """Run up to one chunk of images, and tell how long each part of it took on the device."""
        self.reserve(inputs, False)
        assert self._cascade is not None
        part = inputs.columns(0, min(self._step, inputs.n_images))
        self._start(self._slots[0], part, 0, part.n_images, False)  # loads, and warms up
        self.device.synchronize(self._compute)
        self._cascade.load_images(*self._slots[0].arrays, part.n_images, self._compute)
        return self._cascade.profile(self._compute)

    def forget_times(self) -> None:
        """Forget seconds and merged columns so far (a warm-up's)."""
        self.device_seconds = self.copy_seconds = 0.0
        self.merged_columns = 0

    def forward_layer(self, layer: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One layer on dense columns; see `NetworkPlan.forward_layer`."""
        device, network = self.device, self.network
        n_in, n_out = network.widths[layer], network.widths[layer + 1]
        if x.ndim != 2 or x.shape[0] != n_in:
            raise ShapeError(f"layer {layer} takes ({n_in}, batch) columns, found {x.shape}")
        y = np.empty((n_out, x.shape[1]), np.float32)
        size = np.dtype(stored_dtype(self.store)).itemsize
        each = TILE * (n_in + n_out) * (size + 4)
        step = TILE * max(1, int(_SHARE * device.free_bytes()) // each)
        for first in range(0, x.shape[1], step):
            part = np.ascontiguousarray(x[:, first : first + step], np.float32)
            y[:, first : first + step] = self._forward_layer(layer, part)
        return y

    def _forward_layer(self, layer: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        device, network, stream = self.device, self.network, self._compute
        n_in, n_out = network.widths[layer], network.widths[layer + 1]
        count = x.shape[1]
        tiles = max(1, -(-count // TILE))
        dtype = stored_dtype(self.store)
        before, after = (device.empty(tiles * n * TILE, dtype) for n in (n_in, n_out))
        columns = device.zeros(1, np.int32)
        dense, out = device.upload(x), device.empty((n_out, count), np.float32)
        launch = Launcher(device, network.index_bits, network.store)
        lines = np.int32(n_in), np.int32(n_out)
        launch(
            "columns",
            "load_dense",
            (before, dense, lines[0], np.int32(count), np.int64(count), lines[0], columns),
            stream,
        )
        arrays = network.layer(layer, stream)
        launch(
            "layer",
            "layer",
            (
                before, after, *arrays[:-1], np.int32(arrays.number), columns, None, *lines,
                np.int32(0),
            ),
            stream,
        )  # fmt: skip
        network.used(layer, stream)
        if network.softmax_at(layer):
            launch("layer", "softmax", (after, lines[1], columns, None, lines[1]), stream)
        launch(
            "columns",
            "store_dense",
            (after, out, lines[1], columns, np.int64(count), lines[1], None),
            stream,
        )
        device.synchronize(stream)
        return device.download(out)


def _roots(merged: NDArray[np.int32]) -> NDArray[np.int64]:
    """For each image the one whose column stands for it, through all mergers.

    `merged` has the number + 1 of the image that an image was merged into, or 0.

    >>> _roots(np.array([0, 1, 2, 0], np.int32)).tolist()
    [0, 0, 0, 3]
    """
    own = np.arange(merged.size)
    root = np.where(merged > 0, merged.astype(np.int64) - 1, own)
    while True:
        further = root[root]
        if np.array_equal(further, root):
            return root
        root = further


def precision_error(
    device: Device, network: SparseNetwork, inputs: InputSet, precision: str
) -> float | None:
    """Try what half-width storage costs: outputs of some images against those in fp32.

    Returns
    -------
    The largest difference of an output over the largest output in fp32; None if one of the two is
    not finite, or all outputs are zero, so that there is nothing to compare.
    """
    found = []
    for one in ("fp32", precision):
        outputs = np.zeros((network.n_out, inputs.n_images), np.float32)
        GpuPlan(device, network, precision=one).run(inputs, outputs)
        found.append(outputs)
    largest = float(np.abs(found[0]).max(initial=0.0))
    difference = float(np.abs(found[1] - found[0]).max(initial=0.0))
    if not largest or not np.isfinite(difference):
        return None
    return difference / largest


class GpuKernel:
    """Our CUDA kernels on a device, through CuPy."""

    name = "cupy"

    def __init__(self, device: Device, *, precision: str = "fp32", merge: bool = True) -> None:
        self.device, self.precision, self.merge = device, precision, merge

    def plan(self, network: SparseNetwork, *, threads: int = 1) -> GpuPlan:
        """Pack the network and copy it to the device; `threads` of the host are not used."""
        return GpuPlan(self.device, network, precision=self.precision, merge=self.merge)
