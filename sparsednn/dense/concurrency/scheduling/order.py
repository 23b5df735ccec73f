"""What is certain to have ended before what starts: by lanes and waits, not by predicted times.

Items are numbered in an order that respects lanes and waits, so waits only ever point backwards
and nothing can wait for itself. What is before each item is a set of bits in an integer.

Must not know: what items are, times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Order"]


class Order:
    """Happens-before of the items of a schedule.

    Parameters
    ----------
    lanes
        Lane of each item, in order.
    waits
        Items that each one awaits, of any lane; all of them in front of it.

    Attributes
    ----------
    before : list[int]
        Of each item, a bit for each other that has ended when it starts. One more than there are
        items: behind the last one comes whoever wanted the pass.
    version : int
        Counts changes.
    """

    def __init__(self, lanes: Sequence[int], waits: Sequence[Iterable[int]]) -> None:
        self.lanes = list(lanes)
        self.version = 0
        self.before: list[int] = []
        self._needed = [set(each) for each in waits]
        self._previous: list[int] = []
        last: dict[int, int] = {}
        for item, lane in enumerate(self.lanes):
            previous = last.get(lane, -1)
            self._previous.append(previous)
            last[lane] = item
            known = self._through(previous) if previous >= 0 else 0
            for other in self._needed[item]:
                assert 0 <= other < item
                known |= self._through(other)
            self.before.append(known)
        self.before.append((1 << len(self.lanes)) - 1)

    def __len__(self) -> int:
        """How many items there are."""
        return len(self.lanes)

    def _through(self, item: int) -> int:
        return self.before[item] | 1 << item

    def is_before(self, first: int, later: int) -> bool:
        """Whether an item has certainly ended when another starts."""
        return bool(self.before[later] >> first & 1)

    def add(self, first: int, later: int) -> None:
        """Let an item await another one, in front of it."""
        assert first < later < len(self.lanes)
        self._needed[later].add(first)
        more = self._through(first)
        self.before[later] |= more
        for item in range(later + 1, len(self.lanes)):
            if self.before[item] >> later & 1:
                self.before[item] |= more
        self.version += 1

    def waits(self, item: int) -> tuple[int, ...]:
        """Items of other lanes that one must await: those that nothing else makes certain."""
        previous = self._previous[item]
        known = self._through(previous) if previous >= 0 else 0
        found = []
        for other in sorted(self._needed[item], reverse=True):
            if not known >> other & 1:
                found.append(other)
                known |= self._through(other)
        return tuple(sorted(found))
