"""A rank's layers packed for training, with the memory of a tile: the compiled engine.

The parameters of a rank are one flat array, `theta`: weights in the order of the packed blocks,
then biases; gradients and an optimizer's arrays have the same order, so the optimizer needs to know
nothing of layers. `layers_of` and `flat` translate to and from the order of the shard's rows. What
`training.reference` does readably, this does fast; the interface is `training.engine.Engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import read_only
from sparsednn.activations import Activation
from sparsednn.comm.alone import Alone
from sparsednn.comm.compiled import calls_of, mpi_error, no_calls, status_bytes
from sparsednn.distributed.layer import Columns, DistributedLayer
from sparsednn.distributed.links import make_link, persistent_everywhere
from sparsednn.distributed.plan import ExchangePlan, offsets, plans_of_all
from sparsednn.distributed.shard import NetworkShard, whole_shard
from sparsednn.errors import InputError, LaunchError, ShapeError
from sparsednn.inputs import InputSet
from sparsednn.kernels.backprop import (
    ADD,
    AT_ONCE,
    COLUMNS,
    GO_BACKWARD,
    GO_FORWARD,
    INPUTS,
    LAST_TILE,
    PASS,
    PASSES,
    STOP,
    Passes,
    Sums,
    go,
    load_columns,
    start_sums,
    wait_for_sums,
)
from sparsednn.kernels.cpu import aligned
from sparsednn.kernels.microkernel import LANES, MAX_VECTORS
from sparsednn.kernels.packing import PackedNetwork, Rows, bounds, divide, pack_rows
from sparsednn.kernels.sizes import row_stride, tile_columns
from sparsednn.kernels.team import Team
from sparsednn.machine import machine
from sparsednn.network import SparseLayer, SparseNetwork

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["CompiledEngine", "warm_up"]

#: Columns of a tile at least, where the batch has so many: fewer would not pay for the weights.
_FEW_COLUMNS = 64
#: Rows of equal pattern that threads divide among themselves, at most.
_GROUP_ROWS = 32


class CompiledEngine:
    """See `training.engine.Engine`; collective over `group`, and over `across` where said.

    Parameters
    ----------
    shard, plans
        The rank's rows, and the messages of all layers.
    group
        The ranks that share the neurons; rank r has part r.
    across
        The ranks of all data groups that have this part: gradients are added over them.
    threads
        Of this rank.
    columns
        Images of a step in this data group, at most.
    input_gradient
        Whether the backward pass goes through the first layer, too (and sends its words): the
        gradient with respect to the inputs is nothing that training needs.
    """

    def __init__(
        self,
        shard: NetworkShard,
        plans: Sequence[ExchangePlan],
        group: Communicator,
        across: Communicator,
        *,
        threads: int,
        columns: int,
        input_gradient: bool,
    ) -> None:
        self.group, self.across = group, across
        self.input_gradient = input_gradient
        self.last_activation = shard.layers[-1].activation
        self._width = [int(np.count_nonzero(owners == shard.part)) for owners in shard.owners]
        self.n_rows = self._width[-1]
        self._stack = ExitStack()
        self._lengths = [layer.nnz for layer in shard.layers]
        self._rows = [layer.bias.size for layer in shard.layers]
        self._check_size()
        net, back = self._pack(shard, plans, threads)
        # Where each packed weight came from, among the shard's weights of all layers in order.
        self._entry = net.weight
        self._row = self._bias_rows(net)
        self._edges = net.weight.size
        self.theta = aligned((self._edges + net.bias.size,), np.float32)
        self.theta[:] = 0
        self.gradient = aligned((self.theta.size,), np.float32)
        self.gradient[:] = 0
        self.tile = self._choose_tile(plans, columns, threads)
        self._passes = self._make_passes(shard, plans, net, back, threads)
        self._team = self._make_team(threads)
        self._columns = 0  # of the last forward pass
        self._counted = [np.zeros((len(plans), 2), np.int64) for _ in range(2)]
        self.theta[:] = self.flat([(layer.values, layer.bias) for layer in shard.layers])

    def _check_size(self) -> None:
        if sum(self._lengths) >= 2**31:
            raise InputError(
                f"a rank can train 2^31 - 1 weights, this one has {sum(self._lengths)}: "
                "use more ranks"
            )

    def _pack(
        self, shard: NetworkShard, plans: Sequence[ExchangePlan], threads: int
    ) -> tuple[PackedNetwork, PackedNetwork]:
        """Both packings; instead of weights, `net` has numbers of the shard's weights for now."""
        group_rows = _GROUP_ROWS if threads > 1 else None
        edges = sum(self._lengths)
        numbers = offsets(np.array(self._lengths, np.int64))
        layers = []
        for k, (layer, plan) in enumerate(zip(shard.layers, plans, strict=True)):
            entries = np.arange(numbers[k], numbers[k + 1], dtype=np.int32)
            layers.append(
                # The split moves values about, whatever they are.
                DistributedLayer.make(
                    replace(layer, values=entries), plan, shard.owners[k], shard.part
                )
            )
        parts = [part for layer in layers for part in layer.packed_parts()]
        net = pack_rows(parts, self._width, edges, dtype=np.int32, group_rows=group_rows)
        place = np.empty(edges, np.int32)
        place[net.weight] = np.arange(edges, dtype=np.int32)
        turned = [
            _transposed(columns, place) for one in layers for columns in (one.received, one.owned)
        ]
        back = pack_rows(turned, self._width, edges, dtype=np.int32, group_rows=group_rows)
        return divide(net, threads), divide(back, threads)

    def _bias_rows(self, net: PackedNetwork) -> NDArray[np.int64]:
        """For each packed bias its number among all layers' rows; -1 for those that are none."""
        rows = np.empty(net.bias.size, np.int64)
        first = offsets(np.array(self._rows, np.int64))
        blocks = net.group_block[net.layer_group]
        ends = net.block_row[blocks]
        per_layer = (net.layer_group.size - 1) // len(self._rows)
        for part in range(net.layer_group.size - 1):
            layer, place = divmod(part, per_layer)
            here = slice(int(ends[part]), int(ends[part + 1]))
            # Rows whose columns come in two parts have their bias in the second.
            unfinished = place // (per_layer // 3) == 1
            rows[here] = -1 if unfinished else first[layer] + net.target[here]
        return rows

    def _choose_tile(self, plans: Sequence[ExchangePlan], columns: int, threads: int) -> int:
        """Columns of a tile that suit every rank of the group."""
        floats = max(
            before + after + plan.words_received
            for before, after, plan in zip(self._width, self._width[1:], plans, strict=False)
        )
        suits, _ = tile_columns(floats, machine(), threads)
        rows = max(1, *(max(plan.words_sent, plan.words_received) for plan in plans))
        wanted = min(max(1, columns), max(suits, _FEW_COLUMNS), max(1, self.group.limit // rows))
        agreed = np.array([wanted], np.int64)
        self.group.allreduce(agreed, "min")
        return int(agreed[0])

    def _make_passes(
        self,
        shard: NetworkShard,
        plans: Sequence[ExchangePlan],
        net: PackedNetwork,
        back: PackedNetwork,
        threads: int,
    ) -> Passes:
        ld = row_stride(self.tile)
        widest = max(self._width)
        received = np.array([plan.words_received for plan in plans], np.int64)
        slack = LANES * MAX_VECTORS
        backwards = [plan.reversed for plan in plans]
        persistent = persistent_everywhere(plans, self.group, 2)
        comm = self.group.duplicate()
        self._stack.callback(comm.free)
        limits = [bounds(_finished_here(layer.activation)) for layer in shard.layers]
        code, low, high = zip(*limits, strict=True)
        longest = max(int(np.diff(packed.group_pattern).max(initial=0)) for packed in (net, back))
        return Passes(
            net=net._replace(weight=self.theta[: self._edges], bias=self.theta[self._edges :]),
            back=back,
            code=np.array(code, np.int64),
            low=np.array(low, np.float32),
            high=np.array(high, np.float32),
            expand=make_link(
                plans, comm, self.tile, self._stack, persistent=persistent, keep=True, tag=0
            ),
            fold=make_link(backwards, comm, self.tile, self._stack, persistent=persistent, tag=1),
            sums=self._make_sums(),
            activations=_zeros(sum(self._width) * ld + slack),
            at=offsets(np.array(self._width, np.int64) * ld),
            received_row=offsets(received),
            deltas=_zeros(2 * (widest * ld + slack)).reshape(2, -1),
            folded=_zeros(int(received.max(initial=0)) * ld + slack),
            alive=np.zeros((threads, ld + slack), np.int32),
            order=np.tile(np.arange(longest + 1, dtype=np.int32), (2, 1)),
            theta=self.theta,
            gradient=self.gradient,
            orders=np.zeros(8, np.int64),
            rate=np.zeros(1, np.float32),
            meeting=np.zeros(16, np.int64),
            error=np.zeros(1, np.int64),
            clock=np.zeros((threads, 2), np.int64),
            seconds=np.zeros((len(plans), len(PASSES))),
            stride=ld,
            threads=threads,
        )

    def _make_team(self, threads: int) -> Team:
        passes = self._passes

        def work(number: int, given: int, ended: int, seen: int) -> int:
            return go(passes, number, given, ended, seen)

        team = Team(threads, work)

        def stop() -> None:
            passes.orders[PASS] = STOP
            team.begin()

        self._stack.callback(stop)
        return team

    def _run(self, kind: int, columns: int, **orders: int) -> None:
        """Let all threads do a pass."""
        p = self._passes
        p.orders[:] = 0
        p.orders[PASS], p.orders[COLUMNS] = kind, columns
        for name, place in (
            ("add", ADD), ("at_once", AT_ONCE), ("inputs", INPUTS), ("last", LAST_TILE)
        ):  # fmt: skip
            p.orders[place] = orders.get(name, 0)
        go(p, 0, 0, self._team.ended, self._team.begin())
        code = int(p.error[0])
        if code:
            raise LaunchError(f"MPI reports an error in an exchange: {mpi_error(code)}")

    def _make_sums(self) -> Sums:
        """One message for each layer's weights, and one for all biases."""
        first = np.append(offsets(np.array(self._lengths, np.int64)), self.theta.size)
        if self.across.size == 1:
            none = np.zeros(0, np.uint8)
            return Sums(no_calls(), 0, first, none, none)
        comm = self.across.duplicate()
        self._stack.callback(comm.free)
        calls = calls_of(comm)
        messages = first.size - 1
        return Sums(
            calls,
            1,
            first,
            np.zeros(messages * calls.handle_bytes, np.uint8),
            np.zeros(messages * status_bytes(), np.uint8),
        )

    # Parameters -----------------------------------------------------------------------------

    def layers_of(
        self, flat: NDArray[np.float32]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Weights (as the shard has them) and biases of each layer, copied out of a flat array."""
        values = np.empty(self._edges, np.float32)
        values[self._entry] = flat[: self._edges]
        bias = np.empty(sum(self._rows), np.float32)
        real = self._row >= 0
        bias[self._row[real]] = flat[self._edges :][real]
        ends = np.cumsum(self._lengths)[:-1], np.cumsum(self._rows)[:-1]
        return list(zip(np.split(values, ends[0]), np.split(bias, ends[1]), strict=True))

    def flat(
        self, layers: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
    ) -> NDArray[np.float32]:
        """The reverse of `layers_of`: an array like `theta`."""
        result = np.zeros(self._edges + self._row.size, np.float32)
        values = np.concatenate([values for values, _ in layers])
        bias = np.concatenate([bias for _, bias in layers])
        if values.size != self._edges or bias.size != sum(self._rows):
            raise ShapeError(
                f"{values.size} weights and {bias.size} biases, this rank has {self._edges} and "
                f"{sum(self._rows)}"
            )
        result[: self._edges] = values[self._entry]
        real = self._row >= 0
        result[self._edges :][real] = bias[self._row[real]]
        return result

    # Passes ---------------------------------------------------------------------------------

    def forward(self, inputs: InputSet, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """See `Engine.forward`."""
        p = self._passes
        if self._width[0] and inputs.n_features != self._width[0]:
            raise ShapeError(
                f"inputs have {inputs.n_features} features, this rank owns {self._width[0]}"
            )
        if ids.size > self.tile:
            raise ShapeError(f"{ids.size} images are more than a tile's {self.tile}")
        if ids.size and not 0 <= ids.min() <= ids.max() < inputs.n_images:
            raise ShapeError(f"images {ids.min()} to {ids.max()} of {inputs.n_images}")
        narrow = inputs.indices.dtype == np.uint16
        load_columns(
            read_only(inputs.indptr),
            read_only(np.asarray(inputs.indices if narrow else (), np.uint16)),
            read_only(np.asarray(() if narrow else inputs.indices, np.int32)),
            read_only(np.asarray(() if inputs.values is None else inputs.values, np.float32)),
            np.ascontiguousarray(ids, np.int64),
            p.activations,
            self._width[0],
            p.stride,
        )
        columns = self._columns = int(ids.size)
        if columns:
            self._run(GO_FORWARD, columns)
        self._count()
        return self.activations_of(len(self._width) - 1)

    def backward(
        self,
        delta: NDArray[np.float32],
        *,
        add: bool = False,
        last: bool = True,
        rate: float | None = None,
    ) -> None:
        """See `Engine.backward`."""
        p = self._passes
        columns = delta.shape[1]
        if delta.shape != (self.n_rows, self._columns):
            raise ShapeError(
                f"delta has shape {delta.shape}, expected {(self.n_rows, self._columns)}"
            )
        if rate is not None and (self.across.size > 1 or add or not last):
            raise ShapeError("a step of one tile alone can go into the weights at once")
        if not columns:
            if not add:
                self.gradient[:] = 0
            if last and p.sums.wanted:
                p.error[0] |= start_sums(p, self.gradient)
                self._check_mpi()
            return
        into = p.deltas[0][: self.n_rows * p.stride].reshape(self.n_rows, p.stride)
        into[:, columns:] = 0
        into[:, :columns] = delta
        p.rate[0] = 0.0 if rate is None else rate
        self._run(
            GO_BACKWARD, columns, add=int(add), at_once=int(rate is not None),
            inputs=int(self.input_gradient), last=int(last),
        )  # fmt: skip
        self._count()

    def finish_gradient(self) -> None:
        """See `Engine.finish_gradient`."""
        if not self._passes.sums.wanted:
            return
        self._passes.error[0] |= wait_for_sums(self._passes)
        self._check_mpi()
        words = np.diff(self._passes.sums.first)
        ranks = self.across.size
        self.across.traffic.count_layers(
            "gradient", -(-2 * words * (ranks - 1) // ranks), np.full(words.size, 2 * (ranks - 1)),
            4,
        )  # fmt: skip

    def input_gradients(self) -> NDArray[np.float32]:
        """See `Engine.input_gradients`."""
        p = self._passes
        side = p.deltas[p.code.size % 2]
        rows = self._width[0]
        return np.array(side[: rows * p.stride].reshape(rows, p.stride)[:, : self._columns])

    def activations_of(self, neuron_layer: int) -> NDArray[np.float32]:
        """See `Engine.activations_of`."""
        p = self._passes
        first, rows = int(p.at[neuron_layer]), self._width[neuron_layer]
        tile = p.activations[first : first + rows * p.stride].reshape(rows, p.stride)
        return tile[:, : self._columns]

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of thread 0 in each kind of pass so far."""
        total = self._passes.seconds.sum(axis=0)
        return dict(zip(PASSES, total.tolist(), strict=True))

    def _check_mpi(self) -> None:
        code = int(self._passes.error[0])
        if code:
            raise LaunchError(f"MPI reports an error in an exchange: {mpi_error(code)}")

    def _count(self) -> None:
        """Tell the group's traffic what the compiled loops have sent."""
        for i, (verb, link) in enumerate(
            (("exchange", self._passes.expand), ("fold", self._passes.fold))
        ):
            total = link.counts[:, :2].copy()
            new = total - self._counted[i]
            self._counted[i] = total
            if new.any():
                self.group.traffic.count_layers(verb, new[:, 0], new[:, 1], 4)

    def free(self) -> None:
        """End the threads, and give requests and communicators back to MPI; collective."""
        self._stack.close()


def _finished_here(activation: Activation) -> Activation:
    """What the compiled loops apply: softmax belongs to the loss."""
    return Activation("identity") if activation.kind == "softmax" else activation


def _zeros(size: int) -> NDArray[np.float32]:
    array = aligned((size,), np.float32)
    array[:] = 0
    return array


def _transposed(columns: Columns, place: NDArray[np.int32]) -> Rows:
    """Columns as rows, with the places of their weights; `columns` has the weights' numbers."""
    from scipy.sparse import csr_array

    n_rows = columns.indptr.size - 1
    shape = (n_rows, columns.width)
    if not columns.width:
        none = np.empty(0, np.int32)
        return Rows(np.zeros(1, np.int64), none, none, np.empty(0, np.float32), none)
    turned = csr_array(
        (place[columns.values], columns.indices, columns.indptr), shape=shape
    ).tocsc()
    return Rows(
        turned.indptr.astype(np.int64),
        turned.indices.astype(np.int32),
        turned.data,
        np.zeros(columns.width, np.float32),
        np.arange(columns.width, dtype=np.int32),
    )


def warm_up() -> None:
    """Compile the passes, or load them from the cache on disk, by training one neuron once."""
    layer = SparseLayer([0, 1], [0], [1.0], 1)
    shard = whole_shard(SparseNetwork([layer], name="warm-up"))
    alone = Alone()
    engine = CompiledEngine(
        shard, plans_of_all([shard])[0], alone, alone, threads=1, columns=1, input_gradient=False
    )
    y = engine.forward(InputSet.from_dense([[1.0]]), np.zeros(1, np.int64))
    engine.backward(np.ones_like(y))
    engine.free()
