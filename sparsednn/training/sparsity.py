"""Dynamic sparsity: now and then drop the smallest connections of a layer, and grow as many others.

`replace_connections` is pure: rows of one layer that one rank owns go in, their new pattern comes
out. Two methods choose what grows:

``set``
    at random: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse
    connectivity inspired by network science", Nature Communications 9:2383, 2018. That paper drops
    the same share of the positive and of the negative weights; here, as in RigL's paper, the
    smallest magnitudes of both together.
``rigl``
    where the gradient of the loss is largest: Evci et al., "Rigging the lottery: making all tickets
    winners", arXiv 1911.11134, 2020, algorithm 1.

Both grow among all positions that were not kept, as the papers do (RigL: ``i ∉ θ \\ I_drop``): a
connection that was dropped a moment ago may be chosen again. It then simply stays, with its weight
and its momentum, as in RigL's own program; only what was not there before starts anew.

Knows NumPy only: no rank, no optimizer, no loss. Where weights and momenta go is `carry`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.errors import InputError, ShapeError, UsageError

__all__ = ["METHODS", "Drift", "DynamicSparsity", "Replacement", "carry", "replace_connections"]

METHODS: Final = ("set", "rigl")

Scores = Callable[[int, int], NDArray[np.floating[Any]]]
"""``scores(first, last)``: the dense gradient of rows ``first <= row < last`` (counted among the
own rows), or its magnitude, ``(last - first, n_in)``. Called once per block, rows ascending; the
array is only read. Typically ``delta[first:last] @ x.T``."""

Scalar = TypeVar("Scalar", bound=np.generic)

_BLOCK_BYTES = 64 << 20  # of float32 gradients at a time; one row at least


@dataclass(frozen=True)
class DynamicSparsity:
    """When a pattern changes, how, and by how much.

    Written ``rigl``, or ``rigl:every=100,fraction=0.3,until=0.75``, which is the same.

    Parameters
    ----------
    method
        ``"set"`` or ``"rigl"``.
    every
        Steps from one change to the next, at least 1.
    fraction
        Share of a layer's connections that is dropped at the start of training, above 0, at most 1.
    until
        Share of all steps after which the pattern stays as it is, above 0, at most 1.

    Raises
    ------
    UsageError
        If a value is none of these.
    """

    method: str
    every: int = 100
    fraction: float = 0.3
    until: float = 0.75

    def __post_init__(self) -> None:
        """Reject what is out of range."""
        if self.method not in METHODS:
            raise UsageError(
                f"unknown dynamic sparsity '{self.method}': known are {', '.join(METHODS)}"
            )
        if self.every < 1:
            raise UsageError(f"dynamic sparsity: every must be at least 1 step, found {self.every}")
        for name, value in (("fraction", self.fraction), ("until", self.until)):
            if not 0.0 < value <= 1.0:
                raise UsageError(
                    f"dynamic sparsity: {name} must be above 0 and at most 1, found {value}"
                )

    @classmethod
    def parse(cls, text: str) -> DynamicSparsity:
        """Read the written form; what is left out has its default.

        Raises
        ------
        UsageError
            If it cannot be read, names something twice or something unknown, or a value is out of
            range.

        Examples
        --------
        >>> DynamicSparsity.parse("set:every=50")
        DynamicSparsity(method='set', every=50, fraction=0.3, until=0.75)
        """
        method, colon, rest = text.partition(":")
        given: dict[str, Any] = {}
        kinds: dict[str, type] = {"every": int, "fraction": float, "until": float}
        for item in rest.split(",") if colon else ():
            name, _, value = item.partition("=")
            if name not in kinds or name in given:
                problem = "is there twice" if name in given else "is not known"
                raise UsageError(
                    f"dynamic sparsity '{text}': '{name}' {problem}; "
                    "write METHOD:every=STEPS,fraction=F,until=F"
                )
            try:
                given[name] = kinds[name](value)
            except ValueError:
                raise UsageError(
                    f"dynamic sparsity '{text}': {name} must be "
                    f"{'a whole number' if kinds[name] is int else 'a number'}, found '{value}'"
                ) from None
        return cls(method, **given)

    def __str__(self) -> str:
        """Return the written form, which `parse` reads back exactly."""
        return f"{self.method}:every={self.every},fraction={self.fraction!r},until={self.until!r}"

    def due(self, step: int, steps_total: int) -> bool:
        """Whether the pattern changes after `step` steps are done, of `steps_total` in all.

        >>> [step for step in range(13) if DynamicSparsity("set", 2).due(step, 12)]
        [2, 4, 6, 8]
        """
        return 0 < step < self.until * steps_total and step % self.every == 0

    def share(self, step: int, steps_total: int) -> float:
        """Return the share of connections to drop after `step` steps; it falls as a cosine to 0.

        ``fraction / 2 · (1 + cos(π · step / (until · steps_total)))``, RigL's ``f_decay``; 0
        afterwards. For ``set`` too, whose own paper keeps the share constant.
        """
        end = self.until * steps_total
        if step >= end:
            return 0.0
        return self.fraction * (1.0 + math.cos(math.pi * step / end)) / 2.0


class Replacement(NamedTuple):
    """A new pattern of the same number of entries.

    Attributes
    ----------
    indptr, indices
        ``(rows + 1,)`` int64, ``(nnz,)`` int32, columns ascending within a row.
    source
        ``(nnz,)`` int64: for each entry the number that it had in the old pattern, or -1 if it has
        grown. What is not -1 ascends.
    dropped
        How many of the smallest connections had to compete with all inactive positions.
    grown
        How many entries are new; the other ``dropped - grown`` were chosen again and have stayed.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    source: NDArray[np.int64]
    dropped: int
    grown: int


def replace_connections(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[np.floating[Any]],
    n_in: int,
    share: float,
    *,
    rng: np.random.Generator | None = None,
    scores: Scores | None = None,
) -> Replacement:
    """Drop the smallest connections of some rows together, and grow as many elsewhere in them.

    ``floor(share · nnz)`` connections are dropped, though no more than there are inactive
    positions: a full layer stays as it is. Rows compete with each other, so they may gain and lose
    connections, and end empty. Deterministic: of equal magnitudes the earlier one (row, then
    column) stays, of equal gradients the earlier position grows.

    Parameters
    ----------
    indptr, indices, values
        ``(rows + 1,)``, ``(nnz,)``, ``(nnz,)``: the rows in CSR form, columns ascending. Not
        changed. If nothing is dropped, the result shares the first two.
    n_in
        Number of columns.
    share
        ``0 <= share <= 1``.
    rng
        Given for SET: new positions are drawn uniformly, without replacement. Ranks (and layers)
        need generators of their own.
    scores
        Given for RigL: the dense gradient, asked for in blocks of rows of at most 64 MiB of float32
        (but one row at least); it is not asked for where nothing is dropped. Data groups must be
        given the same sums, or their patterns part.

    Returns
    -------
    Replacement
        New entries have no values yet: see `carry`.

    Raises
    ------
    UsageError
        If not exactly one of `rng` and `scores` is given, or `share` is out of range.
    ShapeError
        If a block of gradients has another shape than asked for.
    InputError
        If a weight or gradient is NaN or infinite.

    Notes
    -----
    Memory is proportional to ``nnz``, plus a few blocks for RigL.

    Examples
    --------
    >>> import numpy as np
    >>> gradient = np.array([[0, 0, 1, 5], [3, 0, 2, 0]], np.float32)
    >>> new = replace_connections(
    ...     np.array([0, 2, 4]), np.array([0, 1, 1, 2], np.int32), np.array([1.0, 9, 8, 2]), 4, 0.5,
    ...     scores=lambda first, last: gradient[first:last],
    ... )
    >>> new.indptr.tolist(), new.indices.tolist(), new.source.tolist()
    ([0, 2, 4], [1, 3, 0, 1], [1, -1, -1, 2])
    """
    if (rng is None) == (scores is None):
        raise UsageError("connections grow at random or by scores: give exactly one of the two")
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"the share of dropped connections must be in [0, 1], found {share}")
    rows, nnz = indptr.size - 1, values.size
    count = min(int(share * nnz), rows * n_in - nnz)
    if count == 0:
        return Replacement(indptr, indices, np.arange(nnz, dtype=np.int64), 0, 0)
    magnitudes = np.abs(values)
    if not np.isfinite(magnitudes.max()):
        raise InputError("a weight is NaN or infinite: connections cannot be compared")
    stay = _largest(magnitudes, nnz - count)
    # An entry's position, row · n_in + column, ascends with its number.
    positions = np.repeat(np.arange(rows, dtype=np.int64) * n_in, np.diff(indptr))
    positions += indices
    kept = positions[stay]
    if rng is not None:
        chosen = _at_random(kept, rows * n_in, count, rng)
    else:
        assert scores is not None  # exactly one is given
        chosen = _by_scores(kept, rows, n_in, count, scores)

    before = np.minimum(np.searchsorted(positions, chosen), nnz - 1)
    source = np.concatenate(
        (np.flatnonzero(stay), np.where(positions[before] == chosen, before, -1))
    )
    positions = np.concatenate((kept, chosen))
    order = np.argsort(positions, kind="stable")  # two ascending runs: merged, not sorted
    positions, source = positions[order], source[order]
    row = positions // n_in
    new_indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=rows), out=new_indptr[1:])
    return Replacement(
        new_indptr,
        (positions - row * n_in).astype(np.int32),
        source,
        count,
        int(np.count_nonzero(source < 0)),
    )


def carry(
    array: NDArray[Scalar], source: NDArray[np.int64], fill: ArrayLike = 0
) -> NDArray[Scalar]:
    """Move an array of one number per connection (weights, momenta) to the new pattern.

    Parameters
    ----------
    array
        ``(nnz,)``, in the old order; not changed.
    source
        `Replacement.source`.
    fill
        What new connections start with: one number (RigL: 0), or ``(grown,)`` in their order.

    Raises
    ------
    ShapeError
        If `array` is not as long as the pattern.

    Examples
    --------
    >>> carry(np.array([1.5, 2.5, 3.5]), np.array([1, -1, 2])).tolist()
    [2.5, 0.0, 3.5]
    """
    if array.shape != source.shape:
        raise ShapeError(
            f"an array of shape {array.shape} does not belong to {source.size} connections"
        )
    moved = array[source]  # -1 takes the last entry, which is overwritten below
    moved[source < 0] = fill
    return moved


@dataclass(frozen=True)
class Drift:
    """How far a pattern has gone from the one that its partition was made for.

    Connections never leave their rank, so the balance stays as it was, and words tell it all.

    Attributes
    ----------
    words_at_start, words_now
        Words that one image costs in a forward pass, with the first pattern and the present one.
    """

    words_at_start: int
    words_now: int

    @property
    def ratio(self) -> float:
        """Words now over words at the start; infinite if there were none, 1 if that is still so.

        >>> Drift(100, 134).ratio
        1.34
        """
        if self.words_at_start == 0:
            return math.inf if self.words_now else 1.0
        return self.words_now / self.words_at_start


def _largest(sizes: NDArray[np.floating[Any]], count: int) -> NDArray[np.bool_]:
    """Mark the `count` largest of `sizes` ``(n,)``; of equal ones the earlier. No NaN."""
    if count >= sizes.size:
        return np.ones(sizes.size, np.bool_)
    if count == 0:
        return np.zeros(sizes.size, np.bool_)
    threshold = np.partition(sizes, sizes.size - count)[sizes.size - count]
    marked: NDArray[np.bool_] = sizes > threshold
    ties = count - int(np.count_nonzero(marked))
    marked[np.flatnonzero(sizes == threshold)[:ties]] = True
    return marked


def _at_random(
    kept: NDArray[np.int64], total: int, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw `count` distinct positions below `total` that are not `kept`; both ascending.

    At least ``2 · count`` positions are not kept.
    """
    if total <= 2 * (kept.size + count):  # no more than twice the connections: list what is free
        free = np.ones(total, np.bool_)
        free[kept] = False
        candidates = np.flatnonzero(free)
        at = rng.choice(candidates.size, count, replace=False, shuffle=False)
        return np.sort(candidates[at])
    # Each round draws no more than are missing, so nothing that was accepted is thrown away: all
    # free positions are alike in this, hence all sets of them equally likely. Less than half of
    # all positions is taken at any time, so few rounds are needed.
    chosen = np.empty(0, np.int64)
    while chosen.size < count:
        drawn = np.sort(rng.integers(0, total, count - chosen.size))
        chosen = np.sort(np.concatenate((chosen, drawn[~_contains(kept, drawn)])))
        # Not np.unique: it hashes (NumPy 2.4), 4 s for 3 million positions, sorting 0.03 s.
        chosen = chosen[np.append(True, chosen[1:] != chosen[:-1])[: chosen.size]]
    return chosen


def _contains(ascending: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mark which of `wanted` are in `ascending`."""
    if ascending.size == 0:
        return np.zeros(wanted.size, np.bool_)
    at = np.minimum(np.searchsorted(ascending, wanted), ascending.size - 1)
    found: NDArray[np.bool_] = ascending[at] == wanted
    return found


def _by_scores(
    kept: NDArray[np.int64], rows: int, n_in: int, count: int, scores: Scores
) -> NDArray[np.int64]:
    """Take the `count` positions of the largest gradients that are not `kept`; both ascending."""
    step = max(1, _BLOCK_BYTES // (4 * n_in))
    sizes = np.empty(0, np.float32)  # the best so far
    positions = np.empty(0, np.int64)
    threshold = -1.0
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = scores(first, last)
        if block.shape != (last - first, n_in):
            raise ShapeError(
                f"gradients of rows {first} to {last} have shape {block.shape}, "
                f"expected {(last - first, n_in)}"
            )
        block = np.abs(block, order="C").reshape(-1)
        if not np.isfinite(block.max()):
            raise InputError("a gradient is NaN or infinite: connections cannot be compared")
        start = first * n_in
        low, high = np.searchsorted(kept, (start, last * n_in))
        block[kept[low:high] - start] = -1  # below every magnitude, and below the threshold
        # Once `count` are found, one that only equals the least of them comes too late.
        better = block > threshold
        if np.count_nonzero(better) > count:
            better = _largest(block, count)
        at = np.flatnonzero(better)
        sizes = np.concatenate((sizes, block[at]))
        positions = np.concatenate((positions, at + start))
        if sizes.size > count:
            best = _largest(sizes, count)
            sizes, positions = sizes[best], positions[best]
        if sizes.size == count:
            threshold = float(sizes.min())
    return positions
