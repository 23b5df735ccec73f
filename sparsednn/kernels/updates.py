"""Compiled loops over flat float32 arrays of parameters: optimizers' steps, a norm, a check.

All but the norm work element by element, so cutting an array into slices for threads does not
change a bit of the result; the norm has fixed blocks. The formulas, and their twins in NumPy, are
in `sparsednn.training.optimizers`, which checks the arrays: here they are taken as they come.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit, read_only
from sparsednn.kernels.cpu import in_threads

__all__ = ["adam", "first_bad", "momentum_sgd", "plain_sgd", "squared_norm"]

_F32 = NDArray[np.float32]
_LARGE = 1 << 21  # elements; below, starting a thread costs more than the work
_LINE = 16  # float32 of a cache line: no two threads write to the same
_BLOCK = 1 << 14  # elements summed in one go; a part of the definition of `squared_norm`
_CHECKED = 1 << 12  # elements that `first_bad` looks at before it decides


def plain_sgd(
    theta: _F32, gradient: _F32, *, scale: float, decay: float, rate: float, threads: int
) -> None:
    """One step without momentum, `theta` in place."""
    gradient = read_only(gradient)
    # With a float64 among the constants, the loops would compute in float64.
    scale32, decay32, rate32 = np.float32(scale), np.float32(decay), np.float32(rate)

    def step(first: int, last: int) -> None:
        _plain_sgd(theta[first:last], gradient[first:last], scale32, decay32, rate32)

    _in_slices(step, theta.size, threads)


def momentum_sgd(
    theta: _F32,
    gradient: _F32,
    buffer: _F32,
    *,
    scale: float,
    decay: float,
    momentum: float,
    nesterov: bool,
    rate: float,
    threads: int,
) -> None:
    """One step with momentum, `theta` and `buffer` in place."""
    gradient = read_only(gradient)
    constants = [np.float32(number) for number in (scale, decay, momentum, rate)]

    def step(first: int, last: int) -> None:
        part = slice(first, last)
        _momentum_sgd(nesterov, theta[part], gradient[part], buffer[part], *constants)

    _in_slices(step, theta.size, threads)


def adam(
    theta: _F32,
    gradient: _F32,
    first_moment: _F32,
    second_moment: _F32,
    *,
    scale: float,
    decay: float,
    beta1: float,
    beta2: float,
    correction: float,
    epsilon: float,
    size: float,
    threads: int,
) -> None:
    """One step of Adam, all but `gradient` in place.

    Corrections of bias are in two numbers: `size` is rate / (1 - beta1^step), and `correction` is
    the square root of 1 - beta2^step.
    """
    gradient = read_only(gradient)
    numbers = (scale, decay, beta1, 1 - beta1, beta2, 1 - beta2, correction, epsilon, size)
    constants = [np.float32(number) for number in numbers]

    def step(first: int, last: int) -> None:
        part = slice(first, last)
        _adam(theta[part], gradient[part], first_moment[part], second_moment[part], *constants)

    _in_slices(step, theta.size, threads)


def squared_norm(array: NDArray[np.floating], threads: int = 1) -> float:
    """Sum of squares of a flat array (float32 or float64), in float64.

    Sums of fixed blocks are added exactly, so the result is the same for any number of threads.
    NaN if an element is; infinite if the sum is beyond float64 or an element is infinite.
    """
    array = read_only(np.ascontiguousarray(array))
    blocks = -(-array.size // _BLOCK)
    sums = np.empty(blocks)

    def step(first: int, last: int) -> None:
        last_element = min(last * _BLOCK, array.size)
        _sums_of_squares(array[first * _BLOCK : last_element], sums[first:last])

    _in_slices(step, blocks, threads if array.size > _LARGE else 1, large=0, multiple=1)
    try:
        return math.fsum(sums)
    except OverflowError:  # of finite sums
        return math.inf


def first_bad(array: NDArray[np.floating]) -> int:
    """Index of the first NaN or infinity in a flat array (float32 or float64), or -1."""
    return int(_first_bad(read_only(np.ascontiguousarray(array))))


def _in_slices(
    step: Callable[[int, int], None],
    size: int,
    threads: int,
    *,
    large: int = _LARGE,
    multiple: int = _LINE,
) -> None:
    """Call ``step(first, last)`` on slices of ``range(size)``, one for each thread."""
    if threads == 1 or size <= large:
        step(0, size)
        return
    length = -(-size // (threads * multiple)) * multiple
    slices = [(first, min(first + length, size)) for first in range(0, size, length)]
    # As many threads as slices, so each pops one; list.pop is atomic.
    in_threads(lambda: step(*slices.pop()), len(slices))


@jit
def _plain_sgd(
    theta: _F32, gradient: _F32, scale: np.float32, decay: np.float32, rate: np.float32
) -> None:
    for i in range(theta.size):
        theta[i] -= rate * (scale * gradient[i] + decay * theta[i])


@jit
def _momentum_sgd(
    nesterov: bool,
    theta: _F32,
    gradient: _F32,
    buffer: _F32,
    scale: np.float32,
    decay: np.float32,
    momentum: np.float32,
    rate: np.float32,
) -> None:
    for i in range(theta.size):
        g = scale * gradient[i] + decay * theta[i]
        direction = momentum * buffer[i] + g
        buffer[i] = direction
        if nesterov:
            direction = momentum * direction + g
        theta[i] -= rate * direction


@jit
def _adam(
    theta: _F32,
    gradient: _F32,
    first: _F32,
    second: _F32,
    scale: np.float32,
    decay: np.float32,
    keep1: np.float32,
    take1: np.float32,
    keep2: np.float32,
    take2: np.float32,
    correction: np.float32,
    epsilon: np.float32,
    size: np.float32,
) -> None:
    for i in range(theta.size):
        g = scale * gradient[i] + decay * theta[i]
        m = keep1 * first[i] + take1 * g
        v = keep2 * second[i] + take2 * (g * g)
        first[i] = m
        second[i] = v
        theta[i] -= size * (m / (np.sqrt(v) / correction + epsilon))


@jit
def _sums_of_squares(array: NDArray[np.floating], sums: NDArray[np.float64]) -> None:
    """One sum for each `_BLOCK` elements."""
    for block in range(sums.size):
        start = block * _BLOCK
        part = array[start : min(start + _BLOCK, array.size)]
        # Eight sums side by side fill the registers; one alone would wait for each addition.
        s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
        whole = part.size // 8 * 8
        for i in range(0, whole, 8):
            s0 += np.float64(part[i]) * np.float64(part[i])
            s1 += np.float64(part[i + 1]) * np.float64(part[i + 1])
            s2 += np.float64(part[i + 2]) * np.float64(part[i + 2])
            s3 += np.float64(part[i + 3]) * np.float64(part[i + 3])
            s4 += np.float64(part[i + 4]) * np.float64(part[i + 4])
            s5 += np.float64(part[i + 5]) * np.float64(part[i + 5])
            s6 += np.float64(part[i + 6]) * np.float64(part[i + 6])
            s7 += np.float64(part[i + 7]) * np.float64(part[i + 7])
        for i in range(whole, part.size):
            s0 += np.float64(part[i]) * np.float64(part[i])
        sums[block] = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@jit
def _first_bad(array: NDArray[np.floating]) -> int:
    for start in range(0, array.size, _CHECKED):
        part = array[start : min(start + _CHECKED, array.size)]
        bad = 0
        for i in range(part.size):  # no way out of this loop, so that it is vectorised
            bad |= part[i] - part[i] != 0  # true of NaN and infinity alone
        if bad:
            for i in range(part.size):
                if part[i] - part[i] != 0:
                    return start + i
    return -1
