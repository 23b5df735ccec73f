"""`Move`: blocks go from those who own them to those who need them, and gradients back.

Redistribution between two layouts and the exchange of halos are the same thing: each rank sends to
each other rank the boxes that it owns and the other one needs. Planned once: which boxes, buffers,
persistent messages. The way back is the adjoint: what came from an owner goes back to it and is
added up there.

Forward, step by step: pack a box for each rank that needs one; start the messages; copy what this
rank has itself; wait; unpack. No other collective. Words: what others need of what this rank owns;
backward, what this rank needs of what others own.

Must not know: what the tensor is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.communicator import Communicator
from sparsednn.comm.neighbours import NeighbourExchange
from sparsednn.comm.staged import HostCopies
from sparsednn.dense.layout import Layout, overlaps
from sparsednn.errors import ShapeError

__all__ = ["Move", "contiguous", "moved_words"]

_Boxes = list[tuple[slice, ...]]
_Slices = tuple[slice, ...]


class Move:
    """A planned move of one tensor's blocks.

    Parameters
    ----------
    world
        All ranks; as many as the layouts have.
    owned
        Who has what before; every element has one owner.
    needed
        Who wants what; blocks may overlap, and need not cover everything.
    dtype
        Of the elements.
    layer, verb, tag
        What forward messages are counted under (backward ones under ``verb + "-back"``), and MPI's
        tag: tag and tag + 1 must not be those of another move that may be under way.
    adjoint
        Whether `backward` will be called; without it, it has no messages planned.
    overlapping
        Whether an element may be needed by several ranks, or by none, as with halos; if not,
        `needed` is a division of the whole tensor, too.
    copies
        Copies arrays to the host and back, if they are not there; messages are.

    Attributes
    ----------
    needs_messages
        Whether any rank of the world has to send anything (the same on all ranks).
    unchanged
        Whether every rank needs exactly what it owns; then arrays are passed on as they are.
    """

    def __init__(
        self,
        world: Communicator,
        owned: Layout,
        needed: Layout,
        dtype: Any,
        *,
        layer: int | None = None,
        verb: str = "redistribute",
        tag: int = 0,
        adjoint: bool = True,
        overlapping: bool = False,
        copies: HostCopies | None = None,
    ) -> None:
        if owned.shape != needed.shape or not owned.ranks == needed.ranks == world.size:
            raise ShapeError(
                f"{verb}: from {owned!r} to {needed!r} on {world.size} ranks: shapes and ranks "
                "must be the same"
            )
        me = world.rank
        self._own_block, self._need_block = owned.block(me), needed.block(me)
        self.dtype, self._copies = np.dtype(dtype), copies
        self.unchanged = owned.same_as(needed)
        self.needs_messages = not np.array_equal(needed.common(owned), needed.sizes())
        self._exact = not overlapping
        self._exchanges: list[NeighbourExchange] = []
        self._kept: list[tuple[_Slices, _Slices]] = []
        if self.unchanged:
            return
        self._kept = list(overlaps(self._own_block, self._need_block))
        outgoing: dict[int, _Boxes] = {}
        incoming: dict[int, _Boxes] = {}
        for rank in range(world.size):
            if rank != me:
                sent = [own for own, _ in overlaps(self._own_block, needed.block(rank))]
                got = [need for need, _ in overlaps(self._need_block, owned.block(rank))]
                outgoing.update({rank: sent} if sent else {})
                incoming.update({rank: got} if got else {})
        self._sends = _Packed(outgoing, self.dtype, copies)
        self._receives = _Packed(incoming, self.dtype, copies)
        if self.needs_messages:
            out, into = self._sends.buffers, self._receives.buffers
            self._exchanges.append(
                world.neighbour_exchange(out, into, layer=layer, tag=tag, verb=verb)
            )
            if adjoint:
                self._exchanges.append(
                    world.neighbour_exchange(
                        into, out, layer=layer, tag=tag + 1, verb=f"{verb}-back"
                    )
                )

    def forward(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return what this rank needs, of what all own.

        `array` has the owned block's shape. Returns a new array of the needed block's shape, or
        `array` itself if nothing changes. Collective over the world if messages are needed.
        """
        self._check(array, self._own_block.shape, "owned")
        if self.unchanged:
            return _shaped(array, self._need_block.shape)
        if self._exchanges:
            self._sends.pack(array)
            self._exchanges[0].start()
        result = np.empty_like(array, shape=self._need_block.shape)
        for own, need in self._kept:
            result[need] = array[own]
        if self._exchanges:
            self._exchanges[0].finish()
            self._receives.unpack(result)
        return result

    def backward(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the adjoint: for all that this rank owns, the sum over those who needed it.

        Sums are made in the order: own part, then ranks 0, 1, …
        """
        self._check(array, self._need_block.shape, "needed")
        if self.unchanged:
            return _shaped(array, self._own_block.shape)
        if self._exchanges:
            if len(self._exchanges) < 2:
                raise AssertionError("a move that was planned without its adjoint")
            self._receives.pack(array)
            self._exchanges[1].start()
        # Where everything is needed once, there is nothing to add to.
        like = np.empty_like if self._exact else np.zeros_like
        result = like(array, shape=self._own_block.shape)
        for own, need in self._kept:
            result[own] = array[need]
        if self._exchanges:
            self._exchanges[1].finish()
            self._sends.unpack(result, add=not self._exact)
        return result

    def _check(self, array: NDArray[Any], shape: tuple[int, ...], which: str) -> None:
        if array.shape != shape or array.dtype != self.dtype:
            raise ShapeError(
                f"the {which} block is {self.dtype} {shape}, found {array.dtype} {array.shape}"
            )

    def free(self) -> None:
        """Free the messages; a second time does nothing."""
        for exchange in self._exchanges:  # they stay: what is used afterwards says so
            exchange.free()


class _Packed:
    """Boxes of a local array, for each other rank one after the other in a buffer of its own."""

    def __init__(self, boxes: dict[int, _Boxes], dtype: Any, copies: HostCopies | None) -> None:
        self._copies = copies
        self.buffers: dict[int, NDArray[Any]] = {}
        self._views: list[tuple[_Slices, NDArray[Any]]] = []
        for rank, some in boxes.items():
            shapes = [tuple(part.stop - part.start for part in box) for box in some]
            sizes = [int(np.prod(one)) for one in shapes]
            buffer = self.buffers[rank] = np.empty(sum(sizes), dtype)
            at = 0
            for box, one, size in zip(some, shapes, sizes, strict=True):
                self._views.append((box, buffer[at : at + size].reshape(one)))
                at += size

    def pack(self, array: NDArray[Any]) -> None:
        for box, view in self._views:
            part = array[box]
            view[...] = part if self._copies is None else self._copies.to_host(part)

    def unpack(self, array: NDArray[Any], *, add: bool = False) -> None:
        for box, view in self._views:
            part = view if self._copies is None else self._copies.from_host(view)
            if add:
                array[box] += part
            else:
                array[box] = part


def moved_words(owned: Layout, needed: Layout) -> NDArray[np.int64]:
    """Return ``(ranks,)``: words that each rank sends in `Move.forward`, by formula.

    Exact where every element is needed at most once (a redistribution): all that a rank owns
    leaves it, but for what it needs itself. Halos are counted by `volume`.
    """
    return owned.sizes() - owned.common(needed)


def _shaped(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The array itself; blocks without elements are the same, but may be empty along other axes."""
    return array if array.shape == shape else array.reshape(shape)


def contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array itself, or a C-contiguous copy, of NumPy's or another library's arrays."""
    return array if array.flags.c_contiguous else array.copy()
