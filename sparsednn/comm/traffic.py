"""`Traffic`: words, bytes and messages that left this rank, for each verb and layer.

A *word* is one array element that leaves this rank; what a rank keeps for itself is none. A
*message* is all that one rank sends to another in one call, however many pieces it travels in; an
empty one is none. Point-to-point verbs count what they send. Collectives count what leaves this
rank in a bandwidth-optimal algorithm, which `Communicator` names for each: what the library does
inside is its own affair and cannot be seen. Metadata (sizes, JSON, texts, flags, barriers) is not
counted. Summed over all ranks, words sent are words received.

Must not know: MPI, arrays, networks.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from sparsednn.errors import ShapeError

__all__ = ["Traffic"]

Row = tuple[str, int | None, int, int, int, int]


class Traffic:
    """Counters of one rank; a communicator, its children and its exchanges share one.

    Not for several threads at once.
    """

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        # (verb, layer) -> [words, bytes, messages, calls]
        self._rows: dict[tuple[str, int | None], list[int]] = {}

    def count(self, verb: str, layer: int | None, words: int, nbytes: int, messages: int) -> None:
        """Add one call that sent `words` array elements of `nbytes` bytes in `messages`."""
        self._add(verb, layer, words, nbytes, messages, 1)

    def _add(
        self, verb: str, layer: int | None, words: int, nbytes: int, messages: int, calls: int
    ) -> None:
        row = self._rows.setdefault((verb, layer), [0, 0, 0, 0])
        row[0] += words
        row[1] += nbytes
        row[2] += messages
        row[3] += calls

    def count_layers(
        self,
        verb: str,
        words: NDArray[Any],
        messages: NDArray[Any],
        itemsize: int,
        *,
        calls: int = 1,
    ) -> None:
        """Add what a compiled loop has counted itself.

        Parameters
        ----------
        verb
            The name to count under.
        words, messages
            ``(L,)`` int64: what this rank sent in layers 0 to L - 1.
        itemsize
            Bytes of a word.
        calls
            How many calls these are, in each layer.
        """
        if words.ndim != 1 or words.shape != messages.shape:
            raise ShapeError(
                f"traffic of '{verb}': words of shape {words.shape} and messages of shape "
                f"{messages.shape} are not one number for each layer"
            )
        for layer, (word, message) in enumerate(
            zip(words.tolist(), messages.tolist(), strict=True)
        ):
            self._add(verb, layer, word, word * itemsize, message, calls)

    def _sum(self, column: int, verb: str | None, layer: int | None) -> int:
        return sum(
            row[column]
            for (of_verb, of_layer), row in self._rows.items()
            if verb in (None, of_verb) and layer in (None, of_layer)
        )

    def words(self, verb: str | None = None, layer: int | None = None) -> int:
        """Words sent; of one verb, of one layer, or of all (None)."""
        return self._sum(0, verb, layer)

    def nbytes(self, verb: str | None = None, layer: int | None = None) -> int:
        """Bytes sent; of one verb, of one layer, or of all (None)."""
        return self._sum(1, verb, layer)

    def messages(self, verb: str | None = None, layer: int | None = None) -> int:
        """Messages sent; of one verb, of one layer, or of all (None)."""
        return self._sum(2, verb, layer)

    def rows(self) -> list[Row]:
        """All counters: ``(verb, layer, words, bytes, messages, calls)``, by verb, then layer."""
        ordered = sorted(self._rows.items(), key=lambda item: (item[0][0], _order(item[0][1])))
        return [(verb, layer, *row) for (verb, layer), row in ordered]  # type: ignore[misc]

    def clear(self) -> None:
        """Set all counters to zero."""
        self._rows.clear()

    def __repr__(self) -> str:
        """Return the sums."""
        return f"Traffic(words={self.words()}, bytes={self.nbytes()}, messages={self.messages()})"


def _order(layer: int | None) -> int:
    """What belongs to no layer comes first."""
    return -1 if layer is None else layer
