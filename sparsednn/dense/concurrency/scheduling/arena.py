"""Places in memory for tensors and workspaces that are not all needed at one time.

Blocks are placed by size, the largest first, each into the smallest gap that fits (greedy by size
with best fit: Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
arXiv 2001.03288). Two may share memory if all users of the one have certainly ended when the first
of the other starts. Where lanes and waits do not make that so already, a wait may be added; that is
done only where the memory would have to grow otherwise, and where by the predicted times nobody
will wait. Where memory must not grow, nothing is left but waits that cost time, and the ones that
cost least are taken.

Must not know: tasks, what is in a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from sparsednn.dense.concurrency.scheduling.order import Order
from sparsednn.dense.concurrency.scheduling.problem import aligned

__all__ = ["Block", "place"]

#: Predicted times are not kept exactly: between two that only a new wait orders, there must be this
#: share of the whole pass.
_SLACK: Final = 0.01


@dataclass(slots=True, eq=False)
class Block:
    """Memory that some items use.

    Attributes
    ----------
    size
        Bytes.
    users
        Items, in order; as many as the order has (one behind its last) for who wanted the pass.
    start, end
        Predicted seconds, of the first and the last user.
    offset
        The result; a multiple of 64.
    """

    size: int
    users: Sequence[int]
    start: float
    end: float
    offset: int = -1
    _mask: int = 0
    _before: int = 0
    _version: int = -1

    def __post_init__(self) -> None:
        """Gather the users."""
        for user in self.users:
            self._mask |= 1 << user

    def certainly_behind(self, other: Block, order: Order) -> bool:
        """Whether all users of another block end before any of this one's starts."""
        if self._version != order.version:
            self._version, self._before = order.version, -1
            for user in self.users:
                self._before &= order.before[user]
        return other._mask & ~self._before == 0


@dataclass
class _Placing:
    order: Order
    wait: float
    slack: float
    limit: int | None
    placed: list[Block] = field(default_factory=list)
    size: int = 0

    def conflicts(self, block: Block, waits: bool) -> list[Block]:
        """Blocks that one must not overlap; with `waits` only those that no wait could order."""
        return [
            other
            for other in self.placed
            if not block.certainly_behind(other, self.order)
            and not other.certainly_behind(block, self.order)
            and not (waits and (self._may_wait(block, other) or self._may_wait(other, block)))
        ]

    def _may_wait(self, later: Block, first: Block) -> bool:
        return (
            first.end + self.wait + self.slack <= later.start and first.users[-1] < later.users[0]
        )

    def put(self, block: Block) -> None:
        """Find the place of a block."""
        extended = 0
        for waits in (False, True):
            found, extended = _best_fit(block.size, self.conflicts(block, waits), self.size)
            if found is not None:
                return self._fix(block, found)
        if self.limit is None or extended + block.size <= self.limit:
            return self._fix(block, extended)
        return self._fix(block, self._quickest(block, self.limit))

    def _fix(self, block: Block, offset: int) -> None:
        block.offset = offset
        for other in self._below(block, offset):
            pair = (other, block) if other.users[0] < block.users[0] else (block, other)
            if not pair[1].certainly_behind(pair[0], self.order):
                _let_wait(*pair, self.order)
        self.placed.append(block)
        self.size = max(self.size, offset + block.size)

    def _below(self, block: Block, offset: int) -> list[Block]:
        """Blocks that share memory with one at an offset."""
        return [
            other
            for other in self.placed
            if other.offset < offset + block.size and offset < other.offset + other.size
        ]

    def _quickest(self, block: Block, limit: int) -> int:
        """The offset below the limit where the block's user, or others, lose least time."""
        candidates = {0, *(aligned(other.offset + other.size) for other in self.placed)}

        def lost(offset: int) -> float:
            seconds = 0.0
            for other in self._below(block, offset):
                first, later = (other, block) if other.users[0] < block.users[0] else (block, other)
                if not later.certainly_behind(first, self.order):
                    seconds += max(first.end + self.wait - later.start, 0.0)
            return seconds

        fitting = sorted(each for each in candidates if each + block.size <= limit)
        return min(fitting, key=lambda offset: (lost(offset), offset))


def _let_wait(first: Block, later: Block, order: Order) -> None:
    for user in later.users:
        for other in reversed(first.users):
            if not order.is_before(other, user):
                order.add(other, user)


def _best_fit(size: int, taken: list[Block], end: int) -> tuple[int | None, int]:
    """Offset of the smallest gap below `end` that fits, if any; and of what is behind all."""
    best, best_gap, at = None, -1, 0
    for block in sorted(taken, key=lambda block: block.offset):
        gap = block.offset - at
        if size <= gap and (best is None or gap < best_gap):
            best, best_gap = at, gap
        at = max(at, aligned(block.offset + block.size))
    if size <= end - at and (best is None or end - at < best_gap):
        best = at
    return best, at


def place(
    blocks: Sequence[Block],
    order: Order,
    *,
    seconds: float,
    wait: float,
    limit: int | None = None,
) -> int:
    """Set the offsets of blocks, and return the bytes that they need together.

    Parameters
    ----------
    order
        Of their users; waits are added to it.
    seconds
        Predicted time of the pass.
    wait
        Seconds from the end of an item to the start of one that waits for it.
    limit
        Bytes that they must not exceed; then each block has one user, and fits.
    """
    placing = _Placing(order, wait, _SLACK * seconds, limit)
    for block in sorted(blocks, key=lambda block: (-block.size, block.start, block.users)):
        placing.put(block)
    return placing.size
