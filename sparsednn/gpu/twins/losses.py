"""Twins of ``losses.cu``: the formulas of `sparsednn.training.losses`, tile by tile."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.orders import Order, Result
from sparsednn.gpu.twins import TILE, Defines, Floats, tiles_of
from sparsednn.gpu.twins.training import derivative

__all__ = ["add_scores", "cross_entropy", "squares"]

_Doubles = NDArray[np.float64]


class _Batch(NamedTuple):
    """Outputs ``(n_out, columns)``, with the columns beyond the count."""

    y: Floats
    inside: NDArray[np.bool_]
    labels: NDArray[np.int64] | None  # 0 beyond the count
    values: Floats | None  # zero beyond the count
    factor: np.float32


def _batch(
    y: Floats, labels: NDArray[np.int32] | None, values: Floats | None,
    orders: NDArray[np.int32], n_out: int, y_lines: int,
) -> _Batch:  # fmt: skip
    count = int(orders[Order.COUNT])
    tiles = -(-count // TILE)
    columns = tiles * TILE
    outputs = tiles_of(y, tiles, y_lines)[:, :n_out].transpose(1, 0, 2).reshape(n_out, columns)
    picks = orders[Order.FIRST_PICK : Order.FIRST_PICK + count].astype(np.int64)
    label = target = None
    if labels is not None:
        label = np.zeros(columns, np.int64)
        label[:count] = labels[picks]
    else:
        assert values is not None
        target = np.zeros((n_out, columns), np.float32)
        target[:, :count] = values.reshape(-1, n_out)[picks].T
    factor = orders[Order.FACTOR : Order.FACTOR + 1].view(np.float32)[0]
    return _Batch(outputs, np.arange(columns) < count, label, target, factor)


def _largest(y: Floats) -> Floats:
    return np.asarray(np.fmax.reduce(y, axis=0, initial=-np.inf))


def _misses(batch: _Batch, largest: Floats) -> NDArray[np.bool_]:
    """Whether the label is not the first of the largest outputs."""
    if batch.labels is None:
        return np.ones(batch.inside.size, np.bool_)
    row = np.arange(batch.y.shape[0])[:, None]
    first = (row < batch.labels) & (batch.y == largest)
    return np.asarray((first | ((row == batch.labels) & (batch.y != largest))).any(axis=0))


def _targets(batch: _Batch) -> Floats:
    if batch.values is not None:
        return batch.values
    row = np.arange(batch.y.shape[0])[:, None]
    return np.asarray(row == batch.labels, np.float32)


def _tell(scores: _Doubles, batch: _Batch, losses: _Doubles, misses: NDArray[np.bool_]) -> None:
    correct = ~misses & ~np.isnan(losses) & batch.inside
    both = np.stack([np.where(batch.inside, losses, 0), correct.astype(np.float64)], axis=1)
    tiles = batch.inside.size // TILE
    scores.reshape(-1, 2)[:tiles] = both.reshape(tiles, TILE, 2).sum(axis=1)


def _store(delta: Floats, batch: _Batch, gradient: Floats, d_lines: int, act: Any) -> None:
    """Times the last activation's derivative, zero beyond the count, into tiles."""
    found = np.where(batch.inside, gradient * derivative(batch.y, *act), np.float32(0))
    n_out, tiles = batch.y.shape[0], batch.inside.size // TILE
    here = tiles_of(delta, tiles, d_lines)[:, :n_out]
    here[...] = found.reshape(n_out, tiles, TILE).transpose(1, 0, 2)


def cross_entropy(
    defines: Defines, y: Floats, delta: Floats | None, labels: NDArray[np.int32] | None,
    values: Floats | None, orders: NDArray[np.int32], n_out: np.int32, y_lines: np.int32,
    d_lines: np.int32, code: np.int32, low: np.float32, high: np.float32, scores: _Doubles,
) -> None:  # fmt: skip
    """Cross-entropy of the outputs, taken as logits."""
    batch = _batch(y, labels, values, orders, int(n_out), int(y_lines))
    largest = _largest(batch.y)
    shifted = batch.y - largest
    exps = np.exp(shifted)
    sums = exps.sum(axis=0, dtype=np.float64)
    targets = _targets(batch)
    # 0 · -inf is no number: of a one-hot target only the label's output counts.
    terms = (
        np.where(targets != 0, targets * shifted, 0) if labels is not None else targets * shifted
    )
    weight = targets.sum(axis=0, dtype=np.float64)
    losses = weight * np.log(sums) - terms.sum(axis=0, dtype=np.float64)
    _tell(scores, batch, losses, _misses(batch, largest))
    if delta is not None:
        scale = (np.float64(batch.factor) * weight / sums).astype(np.float32)
        gradient = exps * scale - batch.factor * targets
        _store(delta, batch, gradient, int(d_lines), (int(code), low, high))


def squares(
    defines: Defines, y: Floats, delta: Floats | None, labels: NDArray[np.int32] | None,
    values: Floats | None, orders: NDArray[np.int32], n_out: np.int32, y_lines: np.int32,
    d_lines: np.int32, code: np.int32, low: np.float32, high: np.float32, softmax: np.int32,
    scores: _Doubles,
) -> None:  # fmt: skip
    """Mean squared error of the outputs, or of their softmax."""
    batch = _batch(y, labels, values, orders, int(n_out), int(y_lines))
    largest = _largest(batch.y)
    outputs = batch.y
    if softmax:
        outputs = np.exp(batch.y - largest)
        outputs = outputs / outputs.sum(axis=0, dtype=np.float64).astype(np.float32)
    error = outputs - _targets(batch)
    losses = np.square(error, dtype=np.float64).sum(axis=0) / int(n_out)
    _tell(scores, batch, losses, _misses(batch, largest))
    if delta is not None:
        if softmax:
            dot = (error * outputs).sum(axis=0, dtype=np.float64).astype(np.float32)
            error = (error - dot) * outputs
        _store(delta, batch, error * batch.factor, int(d_lines), (int(code), low, high))


def add_scores(
    defines: Defines, scores: _Doubles, orders: NDArray[np.int32], results: _Doubles
) -> None:
    """Loss and correct images of all tiles."""
    tiles = -(-int(orders[Order.COUNT]) // TILE)
    found = scores.reshape(-1, 2)[:tiles].sum(axis=0)
    both = slice(Result.LOSS, Result.CORRECT + 1)
    results[both] = found + (results[both] if orders[Order.ADD_PIECE] else 0)
