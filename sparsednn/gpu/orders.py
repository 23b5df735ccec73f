"""What a step of training tells its kernels, and what they tell back: places in two small arrays.

The same numbers as in ``sources/orders.cuh``. Orders are 32-bit words, of which some are the bits
of a float32; results are float64.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Order", "Result"]


class Order(IntEnum):
    """Words of the orders, int32."""

    COUNT = 0  # columns of this piece of the batch
    ADD_PIECE = 1  # add gradients and scores to what is there
    FACTOR = 2  # float32: of the gradient of the loss
    RATE = 3  # float32: the learning rate, with Adam's first correction
    CORRECTION = 4  # float32: Adam's second
    SCALE = 5  # float32: what the gradient is multiplied with
    CLIP = 6  # float32: the norm to which it is shortened then; 0: it is not
    FIRST_PICK = 8  # numbers of the images


class Result(IntEnum):
    """Numbers of the results, float64: sums over the pieces of a step."""

    LOSS = 0
    CORRECT = 1
    SQUARED_NORM = 2
    SIZE = 4
