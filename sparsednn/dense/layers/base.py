"""What an operation on ranks is: arrays of this rank's tiles in, arrays out, and the way back.

Must not know: the network around it, optimizers.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.dense.flow import Step
from sparsednn.dense.local.base import Array
from sparsednn.dense.moves import Move
from sparsednn.dense.operations import Parameter
from sparsednn.dense.pool import GridPool

if TYPE_CHECKING:
    from sparsednn.dense.layout import Layout
    from sparsednn.dense.local.base import LocalBackend

__all__ = ["Array", "ParameterTile", "PlacedOperation", "Setting", "parameter_tiles"]


@dataclass(frozen=True, slots=True)
class ParameterTile:
    """A parameter of the network, and which block of it each rank has.

    Attributes
    ----------
    parameter
        With its full name.
    layout
        Of `parameter.shape`; blocks of several ranks may be the same.
    """

    parameter: Parameter
    layout: Layout


@dataclass(frozen=True, slots=True)
class Setting:
    """What all operations of a placed network share.

    Attributes
    ----------
    pool
        The ranks, and their grids.
    local
        Computes on this rank.
    dtype
        Of activations and parameters.
    """

    pool: GridPool
    local: LocalBackend
    dtype: np.dtype[Any]


class PlacedOperation(abc.ABC):
    """An operation on this rank's tiles.

    Parameters
    ----------
    setting
        Ranks, backend, dtype.
    step
        What it does, and how its inputs and its output lie.
    number
        Of the operation in its network, from 0: what messages are counted under and told apart by.

    Notes
    -----
    All ranks call `forward`, and then `backward` or `forget`, in the same order. Between them an
    operation keeps what it needs. Arrays that are given to it are not changed, unless
    `overwrite_input` or `overwrite_gradient` says so; arrays that it returns are the caller's, or
    are what it was given.
    """

    #: May be set by the network: inputs and gradients that nobody else will look at again.
    overwrite_input = False
    overwrite_gradient = False

    def __init__(self, setting: Setting, step: Step, number: int) -> None:
        self.step, self.number = step, number
        self.local, self.dtype = setting.local, setting.dtype
        # Two tags for a move; a product has one move more, for its halo (see `distributed`).
        verb = "halo" if step.halo else "redistribute"
        self._moves = [
            Move(
                setting.pool.world, source.layout, need, setting.dtype, layer=number, verb=verb,
                tag=_tag(number, index), adjoint=step.input_gradient, overlapping=step.halo,
                copies=setting.pool.copies,
            )
            for index, (source, need) in enumerate(zip(step.sources, step.needs, strict=True))
        ]  # fmt: skip

    @property
    def parameter_size(self) -> int:
        """Trained numbers of this rank's tiles."""
        return 0

    @property
    def buffer_size(self) -> int:
        """Numbers that are kept, but not trained (running statistics)."""
        return 0

    def forward(
        self, inputs: list[Array], parameters: Array, buffers: Array, *, training: bool
    ) -> Array:
        """Return this rank's tile of the output.

        Parameters
        ----------
        inputs
            This rank's tiles, as `step.sources` lie.
        parameters, buffers
            ``(parameter_size,)`` and ``(buffer_size,)``; buffers are changed by a training pass.
        training
            Whether a backward pass will follow.
        """
        brought = [move.forward(x) for move, x in zip(self._moves, inputs, strict=True)]
        return self._forward(brought, parameters, buffers, training)

    def backward(self, dy: Array, parameters: Array, gradient: Array) -> list[Array | None]:
        """Return the gradients of the inputs' tiles, as `step.sources` lie.

        None for all, if nothing in front is trained. `gradient` is filled; it is complete when
        `finish` has returned.
        """
        gradients = self._backward(dy, parameters, gradient)
        if not self.step.input_gradient:
            return [None] * len(self._moves)
        return [
            None if one is None else move.backward(one)
            for move, one in zip(self._moves, gradients, strict=True)
        ]

    def fresh(self, index: int) -> bool:
        """Whether an input has been moved, so that nobody else has the array."""
        return not self._moves[index].unchanged

    @abc.abstractmethod
    def _forward(
        self, inputs: list[Array], parameters: Array, buffers: Array, training: bool
    ) -> Array: ...

    @abc.abstractmethod
    def _backward(self, dy: Array, parameters: Array, gradient: Array) -> list[Array | None]: ...

    def finish(self) -> None:
        """Wait until the gradient of the parameters is complete."""
        return

    @abc.abstractmethod
    def forget(self) -> None:
        """Drop what was kept for a backward pass that will not come."""

    def free(self) -> None:
        """Free planned messages; a second time does nothing."""
        self.finish()
        self.forget()
        for move in self._moves:
            move.free()


def _tag(number: int, index: int) -> int:
    """Tag of a move, which takes this and the next one; a product's halo has the two in front.

    MPI promises tags up to 32767 at least. Operations may share one: all ranks do them in the same
    order, and messages between two ranks arrive in order.
    """
    return 4 * ((number + index) % 8000) + 2


def parameter_tiles(step: Step, parameters: tuple[Parameter, ...]) -> list[ParameterTile]:
    """Return the tiles of an operation's parameters, in their order.

    Kernels as the distribution says; per-channel arrays as the channels of the output.
    """
    from sparsednn.dense.layout import Layout

    tiles = []
    for parameter in parameters:
        if len(parameter.shape) == 1:
            layout = Layout(parameter.shape, (step.output.layout.intervals[1],))
        else:
            assert step.distribution is not None  # only products have kernels
            layout = step.distribution.kernel
        tiles.append(ParameterTile(parameter, layout))
    return tiles
