"""`Wire`: α, β and γ of a collective's ranks, and the time of one of its steps.

Must not know: platforms, verbs, algorithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsednn.errors import UsageError

__all__ = ["Wire", "check_call", "power_below", "steps_of"]


@dataclass(frozen=True, slots=True)
class Wire:
    """What one message costs: α + nβ, and nγ where what arrives is added to what is there.

    Attributes
    ----------
    latency
        α, seconds per message, both processors' time included.
    per_byte
        β, seconds per byte, when ranks send to their next neighbours: on several nodes, of the
        part of the network card that one group of ranks has.
    reduction
        γ, seconds per byte that is added up.
    members
        Ranks of this collective on each node, where it spans several: in a step in which all of
        them exchange with other nodes they share the card. 1: nobody shares.
    near
        The wire of steps that stay within nodes; None: the same.
    """

    latency: float
    per_byte: float
    reduction: float = 0.0
    members: int = 1
    near: Wire | None = None

    def step(
        self, distance: int, nbytes: float, *, reduced: bool = False, all_send: bool = True
    ) -> float:
        """Return the seconds of one step: messages of `nbytes` between ranks `distance` apart.

        α + nβ (+ nγ). With several `members` on a node, steps of a lesser distance stay within
        nodes (exact where partners differ in one bit of the rank and `members` is a power of two),
        and in the others each has the card for itself only if it alone sends: else β·members.

        Parameters
        ----------
        distance
            Between a rank and its partner, in ranks of the collective.
        nbytes
            Of each message.
        reduced
            Whether what arrives is added up.
        all_send
            Whether all ranks of a node send in this step; else one does.
        """
        within = distance < self.members
        wire = self.near if within and self.near is not None else self
        sharing = self.members if all_send and not within else 1
        added = nbytes * self.reduction if reduced else 0.0
        return wire.latency + nbytes * wire.per_byte * sharing + added

    def along(self, nbytes: float, *, reduced: bool = False) -> float:
        """Return α + nβ (+ nγ): every rank sends to the next one of a ring or a chain.

        On several nodes one message of each node goes to the next node, and all wait for it.
        """
        return self.latency + nbytes * (self.per_byte + (self.reduction if reduced else 0.0))


def check_call(ranks: int, nbytes: float) -> bool:
    """Return whether there is anything to do: more than one rank, and more than no bytes.

    Raises
    ------
    UsageError
        If there is no rank, or the bytes are negative or not finite.
    """
    if ranks < 1:
        raise UsageError(f"a collective needs at least 1 rank, found {ranks}")
    if not (math.isfinite(nbytes) and nbytes >= 0):
        raise UsageError(f"a collective needs a number of bytes from 0, found {nbytes}")
    return ranks > 1 and nbytes > 0


def steps_of(ranks: int) -> int:
    """Return ⌈log2 p⌉: steps in which what one rank has reaches all.

    >>> [steps_of(ranks) for ranks in (1, 2, 3, 4, 5)]
    [0, 1, 2, 2, 3]
    """
    return (ranks - 1).bit_length()


def power_below(ranks: int) -> int:
    """Return q, the largest power of two that is not above p.

    >>> [power_below(ranks) for ranks in (1, 3, 4, 7)]
    [1, 2, 4, 4]
    """
    return 1 << (ranks.bit_length() - 1)
