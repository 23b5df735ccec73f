"""A rank's layers on a GPU: the device engine.

The interface is `training.engine.Engine`; what is computed is what `training.reference` does, by
the kernels that `device_passes` starts. All of it stays on the device: parameters, gradient,
optimizer's arrays, activations of a tile of images, and the images themselves. Of the methods of
the interface `forward` and `backward` take and give host arrays, and so wait for copies; training
goes through `passes` (`device_stepper`), which only starts kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.comm.traffic import Traffic
from sparsednn.distributed.device_links import LineExchange, line_bytes
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.shard import NetworkShard
from sparsednn.errors import ShapeError, UsageError
from sparsednn.gpu.device import Array, Device
from sparsednn.gpu.launcher import THREADS
from sparsednn.gpu.orders import Order
from sparsednn.gpu.storage import TILE
from sparsednn.inputs import InputSet
from sparsednn.kernels.packing import bounds
from sparsednn.training.device_data import DeviceExamples
from sparsednn.training.device_memory import DeviceParameters, fit_tiles
from sparsednn.training.device_packed import DevicePacking, finished_here
from sparsednn.training.device_passes import DevicePasses
from sparsednn.training.engine import Layer

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["DeviceEngine"]


class DeviceEngine:
    """See `training.engine.Engine`; collective over `group`, and over `across` where said.

    Parameters
    ----------
    device
        This rank's.
    shard, plans, group, across, columns, input_gradient
        As for `compiled.CompiledEngine`.
    slots
        Names of the optimizer's arrays, which are kept here.
    examples
        What is on the device already.
    transport
        How lines travel between ranks, see `LineExchange`.

    Attributes
    ----------
    device, stream
        All work is on this stream.
    parameters, tiles
        What is on the device. Kernels have their addresses: both stay.
    limits
        Code and bounds of each layer's activation, as kernels know it; softmax is identity.
    passes
        What starts kernels.
    examples
        Images on the device.
    graphs
        What the stepper has captured of these buffers.
    transport
        How lines do travel; "" for one rank.
    seconds
        "device" and "copies" (between host and device): seconds so far; filled in by the stepper.

    Raises
    ------
    DeviceMemoryError
        If weights and one tile do not fit; on all ranks.
    """

    def __init__(
        self,
        device: Device,
        shard: NetworkShard,
        plans: Sequence[ExchangePlan],
        group: Communicator,
        across: Communicator,
        *,
        columns: int,
        input_gradient: bool,
        slots: Sequence[str] = (),
        examples: DeviceExamples | None = None,
        transport: str = "auto",
    ) -> None:
        self.device, self.group, self.across = device, group, across
        self.input_gradient = input_gradient
        self.last_activation = shard.layers[-1].activation
        self.examples = DeviceExamples(device) if examples is None else examples
        self.seconds: dict[str, float] = {"device": 0.0, "copies": 0.0}
        self._stack = ExitStack()
        exchanged = 0 if group.size == 1 else 2 * line_bytes(plans, 0)
        with together(across, "placing a network"), together(group, "placing a network"):
            self._packing = packing = DevicePacking(shard, plans)
            self.n_rows = packing.widths[-1]
            self.parameters = DeviceParameters(device, packing, slots)
            self.tiles = fit_tiles(device, packing.lines, max(1, columns), extra=exchanged)
        self.tile = self._agreed_tile()
        expand, fold = self._links(plans, transport)
        self.transport = "" if expand is None else expand.transport
        self.limits = [bounds(finished_here(layer.activation)) for layer in shard.layers]
        self.passes = DevicePasses(
            device, packing, self.parameters, self.tiles, limits=self.limits, tile=self.tile,
            expand=expand, fold=fold, input_gradient=input_gradient,
        )  # fmt: skip
        packing.parts, packing.backs = [], []  # on the device now
        self._find_functions()
        self._sums: Communicator | None = None
        if across.size > 1:
            self._sums = across.duplicate(traffic=Traffic())
            self._stack.callback(self._sums.free)
        self.graphs: dict[Any, Any] = {}
        self._columns = 0  # of the last forward pass
        self._dense: Array | None = None
        self.stream = device.stream()
        self.theta = self.flat([(layer.values, layer.bias) for layer in shard.layers])

    def _agreed_tile(self) -> int:
        """Columns of a tile that fit on every rank of the group."""
        agreed = np.array([self.tiles.columns], np.int64)
        self.group.allreduce(agreed, "min")
        return int(agreed[0])

    def _links(
        self, plans: Sequence[ExchangePlan], transport: str
    ) -> tuple[LineExchange | None, LineExchange | None]:
        """Expand and fold."""
        if self.group.size == 1:
            return None, None
        comm = self.group.duplicate(traffic=self.group.traffic)
        self._stack.callback(comm.free)
        made = []
        for verb, fold in (("exchange", False), ("fold", True)):
            with together(self.group, "placing messages"):
                link = LineExchange(
                    self.device, plans, comm, tiles=-(-self.tile // TILE),
                    own_lines=self._packing.widths[:-1], verb=verb, fold=fold, transport=transport,
                )  # fmt: skip
            self._stack.callback(link.free)
            made.append(link)
        return made[0], made[1]

    def _find_functions(self) -> None:
        macros = {"THREADS": THREADS, "STORE": 0, "INDEX_BITS": self._packing.index_bits}
        self._load_dense, self._store_dense = (
            self.device.function("columns", name, **macros)
            for name in ("load_dense", "store_dense")
        )
        self._plain_sgd = self.device.function("updates", "update_sgd", **macros)

    # Parameters -----------------------------------------------------------------------------

    @property
    def theta(self) -> NDArray[np.float32]:
        """See `Engine.theta`: a copy. Assigning one uploads it."""
        return self.device.download(self.parameters.theta)

    @theta.setter
    def theta(self, flat: NDArray[np.float32]) -> None:
        self.device.upload(np.asarray(flat, np.float32), out=self.parameters.theta)
        self.passes.refresh(self.stream)
        self.device.synchronize(self.stream)

    @property
    def gradient(self) -> NDArray[np.float32]:
        """See `Engine.gradient`: a copy. Assigning one uploads it."""
        return self.device.download(self.parameters.gradient)

    @gradient.setter
    def gradient(self, flat: NDArray[np.float32]) -> None:
        self.device.upload(np.asarray(flat, np.float32), out=self.parameters.gradient)

    def layers_of(self, flat: NDArray[np.float32]) -> list[Layer]:
        """See `Engine.layers_of`."""
        return self._packing.layers_of(flat)

    def flat(self, layers: Sequence[Layer]) -> NDArray[np.float32]:
        """See `Engine.flat`."""
        return self._packing.flat(layers)

    def give_orders(self, ids: NDArray[np.int64], add: bool, **numbers: float) -> None:
        """Upload the orders of a piece, on the stream; see `gpu.orders`.

        Parameters
        ----------
        ids
            Its images.
        add
            Whether it is added to the pieces before it.
        numbers
            Values of float orders, by their names in lower case; 0 for those that are not given.
        """
        orders, first = self.tiles.host_orders, int(Order.FIRST_PICK)
        self.device.synchronize(self.stream)  # the last copy out of this memory
        orders[:first] = 0
        orders[Order.COUNT], orders[Order.ADD_PIECE] = ids.size, add
        floats = orders[:first].view(np.float32)
        for name, number in numbers.items():
            floats[Order[name.upper()]] = number
        orders[first : first + ids.size] = ids
        end = first + ids.size
        self.device.upload(orders[:end], out=self.tiles.orders[:end], stream=self.stream)

    # Passes with arrays of the host -----------------------------------------------------------

    def forward(self, inputs: InputSet, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Engine.forward`."""
        width = self._packing.widths[0]
        if width and inputs.n_features != width:
            raise ShapeError(f"inputs have {inputs.n_features} features, this rank owns {width}")
        if ids.size > self.tile:
            raise ShapeError(f"{ids.size} images are more than a tile's {self.tile}")
        if ids.size and not 0 <= ids.min() <= ids.max() < inputs.n_images:
            raise ShapeError(f"images {ids.min()} to {ids.max()} of {inputs.n_images}")
        self._columns = int(ids.size)
        images = self.examples.inputs(inputs)
        self.give_orders(ids, False)
        if self._columns:
            self.passes.forward(images, self._columns, self.stream)
        return self.outputs(self._columns)

    def outputs(self, count: int) -> NDArray[np.float32]:
        """``(own outputs, count)`` of the last forward pass, which this waits for."""
        self._columns = count
        if not count or not self.n_rows:
            return np.zeros((self.n_rows, count), np.float32)
        dense, tiles = self._room(), self.tiles
        self.passes.start(
            self._store_dense, self.tile * self.n_rows,
            (
                tiles.activations[-1], dense, np.int32(self.n_rows), tiles.orders,
                np.int64(count), np.int32(self.n_rows), None,
            ), self.stream,
        )  # fmt: skip
        self.device.synchronize(self.stream)
        found = self.device.download(dense[: self.n_rows * count])
        return found.reshape(self.n_rows, count)

    def load_delta(self, delta: NDArray[np.float32]) -> None:
        """Put ``(own outputs, count)`` where `DevicePasses.backward` wants it."""
        count = delta.shape[1]
        if not self.n_rows or not count:
            return
        dense = self._room()
        host = np.ascontiguousarray(delta, np.float32).reshape(-1)
        self.device.synchronize(self.stream)
        self.device.upload(host, out=dense[: host.size])
        self.passes.start(
            self._load_dense, self.tile * self.n_rows,
            (
                self.tiles.deltas[0], dense, np.int32(self.n_rows), np.int32(count),
                np.int64(count), np.int32(self.n_rows), self.tiles.orders,
            ), self.stream,
        )  # fmt: skip

    def _room(self) -> Array:
        """Own outputs of a tile as dense columns."""
        if self._dense is None:
            self._dense = self.device.empty(max(1, self.n_rows * self.tile), np.float32)
        return self._dense

    def backward(
        self,
        delta: NDArray[np.float32],
        *,
        add: bool = False,
        last: bool = True,
        rate: float | None = None,
    ) -> None:
        """See `Engine.backward`."""
        if delta.shape != (self.n_rows, self._columns):
            raise ShapeError(
                f"delta has shape {delta.shape}, expected {(self.n_rows, self._columns)}"
            )
        if rate is not None and (self.across.size > 1 or add or not last):
            raise ShapeError("a step of one tile alone can go into the weights at once")
        if not self._columns:
            if not add:
                self.device.fill_zero(self.parameters.gradient, self.stream)
            self.device.synchronize(self.stream)
            return
        self.give_orders(np.zeros(self._columns, np.int64), add, scale=1.0, rate=rate or 0.0)
        self.load_delta(delta)
        self.passes.backward(self._columns, self.stream)
        if rate is not None:
            p = self.parameters
            vectors = p.theta.size // 4
            self.device.fill_zero(self.tiles.results, self.stream)
            self.passes.start(
                self._plain_sgd, vectors,
                (
                    p.theta, p.gradient, None, self.tiles.orders, self.tiles.results,
                    np.int64(vectors), np.float32(0), np.float32(0), np.int32(0),
                ), self.stream,
            )  # fmt: skip
            self.passes.refresh(self.stream)
        self.device.synchronize(self.stream)

    def finish_gradient(self) -> None:
        """See `Engine.finish_gradient`: through the host, words counted as on the CPU.

        Padding travels, too, but is not counted as words.
        """
        if self._sums is None:
            return
        self.device.synchronize(self.stream)
        host = self.gradient
        self._sums.allreduce(host)
        self.gradient = host
        words, ranks = self._packing.words, self.across.size
        self.across.traffic.count_layers(
            "gradient", -(-2 * words * (ranks - 1) // ranks), np.full(words.size, 2 * (ranks - 1)),
            4,
        )  # fmt: skip

    def input_gradients(self) -> NDArray[np.float32]:
        """See `Engine.input_gradients`."""
        if not self.input_gradient:
            raise UsageError("the backward pass did not go through the first layer")
        s = self.tiles.deltas[(len(self._packing.widths) - 1) % 2]
        return self._lines(s, self._packing.lines[0], self._packing.widths[0])

    def activations_of(self, neuron_layer: int) -> NDArray[np.float32]:
        """See `Engine.activations_of`; a copy."""
        packing = self._packing
        return self._lines(
            self.tiles.activations[neuron_layer],
            packing.lines[neuron_layer],
            packing.widths[neuron_layer],
        )

    def _lines(self, memory: Array, lines: int, own: int) -> NDArray[np.float32]:
        """Own lines of the last images' tiles."""
        self.device.synchronize(self.stream)
        tiles = -(-self._columns // TILE)
        here = self.device.download(memory[: tiles * lines * TILE]).reshape(tiles, lines, TILE)
        columns = here[:, :own].transpose(1, 0, 2).reshape(own, tiles * TILE)
        return np.ascontiguousarray(columns[:, : self._columns])

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.limits)

    def note_columns(self, count: int) -> None:
        """Tell how many images the last pass had, for `activations_of`."""
        self._columns = count

    def free(self) -> None:
        """Give the device's memory back, and messages and communicators to MPI; collective."""
        self.device.synchronize()
        self._stack.close()
        # Graphs hold arrays, too. Whoever places the next network needs the room now.
        self.graphs.clear()
        self._dense = None
        del self.passes, self.tiles, self.parameters
