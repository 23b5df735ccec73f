"""Compiled: one layer's blocks and messages for all ranks, counted in one walk over its entries.

What `kernels.packing` and `distributed.plan` make for each rank, this only counts: groups of rows
(or, transposed, of columns) with equal patterns after the split into owned and received columns,
the blocks that they are cut into, and the words between each two ranks. Patterns are compared by
the sum of 64-bit random keys of their members, so two different ones count as equal with a
probability of about 10^-19 for each pair.

Must not know: networks, platforms, seconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.kernels.microkernel import MAX_ROWS

__all__ = ["FIGURES", "count_layer"]

#: What is counted of a part: blocks of 1, 2, 4, 8 rows; the sums of their pattern lengths; groups;
#: the sum of the groups' pattern lengths.
FIGURES = 10
_BLOCKS, _LENGTHS, _GROUPS, _PATTERN = 0, 4, 8, 9


@jit
def _tally(
    hashes: NDArray[np.uint64],
    lengths: NDArray[np.int64],
    count: int,
    figures: NDArray[np.int64],
) -> None:
    """Add the groups of `count` lines, by the hashes and lengths of their patterns, to `figures`.

    A group is cut into blocks of MAX_ROWS, the rest by its bits (`packing._block_sizes`).
    """
    if count == 0:
        return
    order = np.argsort(hashes[:count])
    at = 0
    while at < count:
        first = order[at]
        end = at + 1
        while end < count and hashes[order[end]] == hashes[first]:
            end += 1
        length = lengths[first]
        whole, rest = divmod(end - at, MAX_ROWS)
        size, place = 1, 0
        while size < MAX_ROWS:
            if rest & size:
                figures[_BLOCKS + place] += 1
                figures[_LENGTHS + place] += length
            size *= 2
            place += 1
        figures[_BLOCKS + place] += whole
        figures[_LENGTHS + place] += whole * length
        figures[_GROUPS] += 1
        figures[_PATTERN] += length
        at = end


@jit
def count_layer(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    before: NDArray[np.int32],
    after: NDArray[np.int32],
    row_order: NDArray[np.int64],
    row_first: NDArray[np.int64],
    column_order: NDArray[np.int64],
    column_first: NDArray[np.int64],
    row_keys: NDArray[np.uint64],
    column_keys: NDArray[np.uint64],
    transposed: int,
    forward: NDArray[np.int64],
    backward: NDArray[np.int64],
    source: NDArray[np.int32],
    target: NDArray[np.int32],
    words: NDArray[np.int32],
) -> int:
    """Count one layer; returns the number of messages.

    Parameters
    ----------
    indptr, indices
        The layer's rows, CSR.
    before, after
        ``(n_in,)`` and ``(n_out,)``: who owns its inputs and its rows.
    row_order, row_first
        Rows by owner: those of rank r are ``row_order[row_first[r]:row_first[r+1]]``; the same for
        the columns.
    row_keys, column_keys
        Random numbers, one for each row and column.
    transposed
        Whether `backward` is wanted (1).
    forward
        ``(ranks, 3, FIGURES)``, zeros: filled with what each part of each rank has.
    backward
        ``(ranks, 2, FIGURES)``, zeros: the same of the transposed packing.
    source, target, words
        Room for the messages, which are written by target, each target's by source.
    """
    ranks = row_first.size - 1
    n_out, n_in = after.size, before.size
    inner, inner_length = np.empty(n_out, np.uint64), np.empty(n_out, np.int64)
    owned, owned_length = np.empty(n_out, np.uint64), np.empty(n_out, np.int64)
    received, received_length = np.empty(n_out, np.uint64), np.empty(n_out, np.int64)
    # Per column, of the rank at hand: `seen` says whether what stands there is of this rank.
    seen = np.full(n_in, -1, np.int32)
    sums = np.zeros(n_in, np.uint64)
    counts = np.zeros(n_in, np.int64)
    wanted = np.empty(n_in, np.int32)
    line_hash, line_length = np.empty(n_in, np.uint64), np.empty(n_in, np.int64)
    owed = np.zeros(ranks, np.int32)
    messages = 0
    for rank in range(ranks):
        inside, outside, columns = 0, 0, 0
        for k in range(row_first[rank], row_first[rank + 1]):
            row = row_order[k]
            mine, theirs = np.uint64(0), np.uint64(0)
            mine_count, theirs_count = 0, 0
            for e in range(indptr[row], indptr[row + 1]):
                column = indices[e]
                if before[column] == rank:
                    mine += column_keys[column]
                    mine_count += 1
                else:
                    theirs += column_keys[column]
                    theirs_count += 1
                if seen[column] != rank:
                    seen[column] = rank
                    sums[column] = np.uint64(0)
                    counts[column] = 0
                    if before[column] != rank:
                        owed[before[column]] += 1
                        wanted[columns] = column
                        columns += 1
                sums[column] += row_keys[row]
                counts[column] += 1
            if theirs_count == 0:
                inner[inside], inner_length[inside] = mine, mine_count
                inside += 1
            else:
                owned[outside], owned_length[outside] = mine, mine_count
                received[outside], received_length[outside] = theirs, theirs_count
                outside += 1
        _tally(inner, inner_length, inside, forward[rank, 0])
        _tally(owned, owned_length, outside, forward[rank, 1])
        _tally(received, received_length, outside, forward[rank, 2])
        for other in range(ranks):
            if owed[other]:
                source[messages], target[messages], words[messages] = other, rank, owed[other]
                owed[other] = 0
                messages += 1
        if transposed:
            for k in range(columns):
                line_hash[k], line_length[k] = sums[wanted[k]], counts[wanted[k]]
            _tally(line_hash, line_length, columns, backward[rank, 0])
            lines = 0
            for k in range(column_first[rank], column_first[rank + 1]):
                column = column_order[k]
                found = seen[column] == rank
                line_hash[lines] = sums[column] if found else np.uint64(0)
                line_length[lines] = counts[column] if found else 0
                lines += 1
            _tally(line_hash, line_length, lines, backward[rank, 1])
    return messages
