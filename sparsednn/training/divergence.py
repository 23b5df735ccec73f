"""When training has come to numbers that are none: what is told, and how gradients are kept short.

Knows nothing of networks and ranks.
"""

from __future__ import annotations

from sparsednn.errors import InputError

__all__ = ["DivergenceError", "clip_scale", "divergence"]

#: Added to the norm, as PyTorch's ``clip_grad_norm_`` does, so that results can be compared.
_TINY_NORM = 1e-6


class DivergenceError(InputError):
    """The loss or the gradient is no number any more; raised on all ranks alike."""


def divergence(
    step: int, what: str, value: float, where: str, rate: float, *, clipped: bool
) -> DivergenceError:
    """Return the error to raise, on all ranks alike.

    Parameters
    ----------
    step
        Which one, from 1 on.
    what, value
        What is no number (``the loss``), and what it is.
    where
        What is known of the reason; "" for nothing.
    rate, clipped
        The learning rate; whether gradients are shortened.
    """
    known = f"; {where}" if where else ""
    hint = "" if clipped else ", or shorten gradients with --clip 1"
    error = DivergenceError(
        f"step {step}: {what} is {value}{known}: try a lower --lr (now {rate:g}){hint}"
    )
    error.everywhere = True
    return error


def clip_scale(norm: float, clip: float) -> float:
    """Return what a gradient of this norm is multiplied with, so that it is not longer than `clip`.

    >>> clip_scale(0.5, 1.0)
    1.0
    >>> round(clip_scale(4.0, 1.0), 6)
    0.25
    """
    return min(1.0, clip / (norm + _TINY_NORM))
