"""Twins of ``updates.cu``; the formulas are those of `sparsednn.training.optimizers`."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.orders import Order, Result
from sparsednn.gpu.twins import Defines, Floats

__all__ = ["add_squares", "squared_norm", "update_adam", "update_sgd"]

_TINY_NORM = 1e-6
_Doubles = NDArray[np.float64]
_Words = NDArray[np.int32]


def squared_norm(defines: Defines, array: Floats, n: np.int64, sums: _Doubles) -> None:
    """Sums of squares of parts; which elements belong together is the kernel's affair."""
    parts = np.array_split(array[: int(n)].astype(np.float64), sums.size)
    sums[:] = [np.square(part).sum() for part in parts]


def add_squares(defines: Defines, sums: _Doubles, n: np.int32, results: _Doubles) -> None:
    """The sum of these sums."""
    results[Result.SQUARED_NORM] = sums[: int(n)].sum()


def _number(orders: _Words, place: Order) -> np.float32:
    return np.float32(orders[place : place + 1].view(np.float32)[0])


def _scale(orders: _Words, results: _Doubles) -> np.float32 | None:
    """What the gradient is multiplied with; None: change nothing."""
    if not np.isfinite(results[Result.LOSS]):
        return None
    scale, clip = _number(orders, Order.SCALE), float(_number(orders, Order.CLIP))
    if clip:
        norm = math.sqrt(results[Result.SQUARED_NORM])
        if not math.isfinite(norm):
            return None
        scale *= np.float32(min(1.0, clip / (norm + _TINY_NORM)))
    return scale


def update_sgd(
    defines: Defines, theta: Floats, gradient: Floats, buffer: Floats | None, orders: _Words,
    results: _Doubles, n: np.int64, decay: np.float32, momentum: np.float32, nesterov: np.int32,
) -> None:  # fmt: skip
    """SGD, with or without momentum."""
    scale = _scale(orders, results)
    if scale is None:
        return
    way = grown = scale * gradient + decay * theta
    if buffer is not None:
        buffer[:] = momentum * buffer + grown
        way = momentum * buffer + grown if nesterov else buffer
    theta -= _number(orders, Order.RATE) * way


def update_adam(
    defines: Defines, theta: Floats, gradient: Floats, first: Floats, second: Floats,
    orders: _Words, results: _Doubles, n: np.int64, decay: np.float32, keep1: np.float32,
    take1: np.float32, keep2: np.float32, take2: np.float32, epsilon: np.float32,
) -> None:  # fmt: skip
    """Adam."""
    scale = _scale(orders, results)
    if scale is None:
        return
    grown = scale * gradient + decay * theta
    first[:] = keep1 * first + take1 * grown
    second[:] = keep2 * second + take2 * (grown * grown)
    correction = _number(orders, Order.CORRECTION)
    theta -= _number(orders, Order.RATE) * (first / (np.sqrt(second) / correction + epsilon))
