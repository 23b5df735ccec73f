"""A rank's layers with the memory of a tile: the compiled engine.

What `training.reference` does readably, this does fast; the interface is `training.engine.Engine`.
The order of parameters is that of `packed`; the loops are in `kernels.backprop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import read_only
from sparsednn.activations import Activation
from sparsednn.comm.compiled import calls_of, mpi_error, no_calls, status_bytes
from sparsednn.distributed.links import make_link, persistent_everywhere
from sparsednn.distributed.plan import ExchangePlan, offsets
from sparsednn.distributed.shard import NetworkShard
from sparsednn.errors import LaunchError, ShapeError
from sparsednn.inputs import InputSet
from sparsednn.kernels.backprop import go, start_sums, wait_for_sums
from sparsednn.kernels.cpu import aligned
from sparsednn.kernels.microkernel import LANES, MAX_VECTORS
from sparsednn.kernels.packing import bounds
from sparsednn.kernels.passes import (
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
)
from sparsednn.kernels.sizes import row_stride, tile_columns
from sparsednn.kernels.team import Team
from sparsednn.kernels.tile_loops import load_columns
from sparsednn.machine import machine
from sparsednn.training.engine import Layer
from sparsednn.training.packed import PackedParameters

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["CompiledEngine"]

#: Columns of a tile at least, where the batch has so many: fewer would not pay for the weights.
_FEW_COLUMNS = 64


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
        self._packed = PackedParameters(shard, plans, threads)
        self.theta, self.gradient = _zeros(self._packed.size), _zeros(self._packed.size)
        self.tile = self._choose_tile(plans, columns, threads)
        self._passes = self._make_passes(shard, plans, threads)
        self._team = self._make_team(threads)
        self._columns = 0  # of the last forward pass
        self._counted = [np.zeros((len(plans), 2), np.int64) for _ in range(2)]
        self.theta[:] = self.flat([(layer.values, layer.bias) for layer in shard.layers])

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
        threads: int,
    ) -> Passes:
        net, back = self._packed.net, self._packed.back
        edges = net.weight.size
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
            net=net._replace(weight=self.theta[:edges], bias=self.theta[edges:]),
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
        self._check_mpi()

    def _make_sums(self) -> Sums:
        """One message for each layer's weights, and one for all biases."""
        first = np.append(self._packed.first, self.theta.size)
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

    def layers_of(self, flat: NDArray[np.float32]) -> list[Layer]:
        """See `Engine.layers_of`."""
        return self._packed.layers_of(flat)

    def flat(self, layers: Sequence[Layer]) -> NDArray[np.float32]:
        """See `Engine.flat`."""
        return self._packed.flat(layers)

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
