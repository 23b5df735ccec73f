"""Losses of a batch whose output neurons are divided among ranks, and their gradients.

A rank has its own rows of the outputs, so every sum over the outputs of an image is an allreduce.
The conventions are PyTorch's (``cross_entropy``, ``mse_loss``), but for one: a network whose last
activation is softmax is trained on its logits, so that cross-entropy does not take softmax twice.
Must not know: how the outputs were computed, and who owns the other rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.errors import ShapeError, UsageError

__all__ = ["LOSSES", "Group", "Score", "Targets", "derivative", "loss_gradient", "score"]

#: Names that `loss_gradient` and `score` know, the default first.
LOSSES = ("cross-entropy", "mse")

_Floats = NDArray[np.floating[Any]]


class Group(Protocol):
    """What is needed of the ranks that share the neurons; `Communicator` and `Alone` have it."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def allreduce(self, array: NDArray[Any], op: str = "sum") -> None:
        """Combine the arrays of all ranks ("sum" or "max"), in place."""


class Targets(NamedTuple):
    """What a batch of B images should give, as a rank needs it: exactly one of both.

    Attributes
    ----------
    labels
        ``(B,)`` int64: the class of an image, which is a global number of an output neuron. The
        same on all ranks of the group. Whether they are in range is not checked here.
    values
        ``(own rows, B)``: the outputs that are wanted of this rank's rows; for cross-entropy the
        probabilities of the classes.
    """

    labels: NDArray[np.int64] | None
    values: _Floats | None


@dataclass(frozen=True, slots=True)
class Score:
    """How well some images went; scores of batches add up.

    Attributes
    ----------
    loss
        Summed over the images (not averaged), in float64.
    correct
        Images whose largest output is the label's; the lowest neuron if several are largest, and
        none where the loss is NaN. 0 if there are no labels.
    images
        How many.
    """

    loss: float = 0.0
    correct: int = 0
    images: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.loss + other.loss, self.correct + other.correct, self.images + other.images
        )


def loss_gradient(
    loss: str,
    activation: Activation,
    y: _Floats,
    targets: Targets,
    rows: NDArray[np.int32],
    n_out: int,
    images: int,
    group: Group,
) -> tuple[Score, _Floats]:
    """Loss of some columns, and its gradient with respect to z, before the last activation.

    Parameters
    ----------
    loss
        ``cross-entropy``: mean over images of -log softmax(outputs)[label], where the outputs are
        taken as logits; or, with dense targets t, of -sum t log softmax(outputs). ``mse``: mean
        over images and outputs of (output - target)²; a label is a one-hot target.
    activation
        Of the last layer.
    y
        ``(own rows, B)``, float32 or float64, C-contiguous or not: outputs of the last layer,
        after its activation; where that is softmax, the logits before it. Not changed.
    targets
        Of these B columns.
    rows
        ``(own rows,)`` int32, ascending: global numbers of this rank's output neurons.
    n_out
        Output neurons of all ranks.
    images
        Of how many images the mean is taken, at least B: a batch may be cut into tiles, or divided
        among data groups. The gradients of its parts add up to that of the batch.
    group
        The ranks that share the neurons. All call this, those without rows too.

    Returns
    -------
    Score, gradient
        The score of these columns, the same on all ranks. The gradient of the mean, like `y`,
        which the caller owns.

    Raises
    ------
    UsageError
        For an unknown loss, for targets that are none or two, or if `images` is below B or 1.
    ShapeError
        If rows, columns and targets do not fit.

    Notes
    -----
    Allreduces, none of them for one rank: cross-entropy has 2, a maximum of B elements and sums of
    3B float64. mse has 1 of 2B sums, and a maximum of B elements before it if there are labels;
    with softmax it has 3: that maximum, sums of B float64, and sums of 3B.

    The gradient is computed in the dtype of `y` with sums over outputs in float64. A NaN output
    makes the loss NaN on every rank, and raises no warning.
    """
    if images < max(1, y.shape[-1]):
        raise UsageError(f"a mean over {images} images, with {y.shape[-1]} of them given")
    factor = 2.0 / (n_out * images) if loss == "mse" else 1.0 / images
    result, gradient = _evaluate(loss, activation, y, targets, rows, n_out, group, factor)
    with np.errstate(all="ignore"):
        if activation.kind not in ("identity", "softmax"):
            gradient *= derivative(activation, y)
    return result, gradient


def score(
    loss: str,
    activation: Activation,
    y: _Floats,
    targets: Targets,
    rows: NDArray[np.int32],
    n_out: int,
    group: Group,
) -> Score:
    """Loss and correct images of some columns; parameters and errors as of `loss_gradient`."""
    return _evaluate(loss, activation, y, targets, rows, n_out, group, None)[0]


def derivative(activation: Activation, y: _Floats) -> _Floats:
    """f'(z) of an activation y = f(z), written in terms of y; a new array like `y`.

    At the kinks of relu and clamped_relu it is zero, as in PyTorch (``relu``, ``hardtanh``).

    Raises
    ------
    UsageError
        For softmax, whose derivative is no array like `y`: an output depends on all others.
    """
    match activation.kind:
        case "identity":
            return np.ones_like(y)
        case "relu":
            return (y > 0).astype(y.dtype)
        case "clamped_relu":
            return ((y > 0) & (y < y.dtype.type(activation.limit))).astype(y.dtype)
        case "sigmoid":
            return y * (1 - y)
        case "tanh":
            return 1 - y * y
        case _:
            raise UsageError(f"{activation} has no derivative element by element")


def _evaluate(
    loss: str,
    activation: Activation,
    y: _Floats,
    targets: Targets,
    rows: NDArray[np.int32],
    n_out: int,
    group: Group,
    factor: float | None,
) -> tuple[Score, _Floats]:
    """Return the score, and `factor` times the gradient (of no use if there is no factor).

    With respect to the outputs; with respect to the logits where the last activation is softmax.
    """
    _check(loss, y, targets, rows)
    # NaN and infinity show in the loss, and training stops there with a reason.
    with np.errstate(all="ignore"):
        if loss == "cross-entropy":
            losses, correct, gradient = _cross_entropy(y, targets, rows, group, factor)
        else:
            softmax = activation.kind == "softmax"
            losses, correct, gradient = _squares(y, targets, rows, group, softmax, factor)
            losses /= n_out
        return Score(float(losses.sum()), correct, y.shape[1]), gradient


def _cross_entropy(
    y: _Floats, targets: Targets, rows: NDArray[np.int32], group: Group, factor: float | None
) -> tuple[NDArray[np.float64], int, _Floats]:
    """Loss of each image; how many are correct; softmax times the targets' sum, less targets."""
    from sparsednn.kernels.columns import scale_columns, subtract_from_columns

    labels, values = targets
    gradient = np.array(y, order="C")
    # Softmax does not change if all logits of an image are shifted: by the largest, exp is at most
    # 1, and the sum at least 1.
    largest = _largest(gradient, group)
    sums = np.zeros((3, y.shape[1]))  # of exp(shifted); target * shifted; misses or targets
    if labels is not None:
        sums[2] = _misses(gradient, largest, labels, rows)
    subtract_from_columns(gradient, largest)
    if labels is not None:
        own, columns = _own_labels(labels, rows)
        sums[1, columns] = gradient[own, columns]
    elif values is not None:
        np.sum(values * gradient, axis=0, dtype=np.float64, out=sums[1])
        np.sum(values, axis=0, dtype=np.float64, out=sums[2])
    np.exp(gradient, out=gradient)
    sums[0] = _column_sums(gradient)
    _allreduce(sums, "sum", group)

    weight = np.ones_like(sums[2]) if labels is not None else sums[2]
    losses: NDArray[np.float64] = weight * np.log(sums[0]) - sums[1]
    correct = 0 if labels is None else _count_correct(losses, sums[2])
    if factor is not None:
        scale_columns(gradient, (factor * weight / sums[0]).astype(y.dtype))
        _subtract_targets(gradient, targets, rows, factor)
    return losses, correct, gradient


def _squares(
    y: _Floats,
    targets: Targets,
    rows: NDArray[np.int32],
    group: Group,
    softmax: bool,
    factor: float | None,
) -> tuple[NDArray[np.float64], int, _Floats]:
    """Sum of squared errors of each image; how many are correct; factor times half the gradient."""
    labels = targets.labels
    sums = np.zeros((3 if softmax else 2, y.shape[1]))  # of squares; misses; error * output
    outputs = np.array(y, order="C")
    if labels is not None or softmax:
        largest = _largest(outputs, group)
        if labels is not None:
            sums[1] = _misses(outputs, largest, labels, rows)
        if softmax:
            outputs = np.exp(outputs - largest)
            totals = _column_sums(outputs)
            _allreduce(totals, "sum", group)
            outputs /= totals.astype(y.dtype)
    error = outputs.copy()
    _subtract_targets(error, targets, rows, 1.0)
    np.sum(np.square(error, dtype=np.float64), axis=0, out=sums[0])
    if softmax:
        np.sum(error * outputs, axis=0, dtype=np.float64, out=sums[2])
    _allreduce(sums, "sum", group)

    correct = 0 if labels is None else _count_correct(sums[0], sums[1])
    if factor is not None and softmax:
        # The Jacobian of softmax p: dp_j / dz_k = p_k ((j == k) - p_j).
        error -= sums[2].astype(y.dtype)
        error *= outputs
    if factor is not None:
        error *= y.dtype.type(factor)
    return sums[0], correct, error


def _largest(y: _Floats, group: Group) -> _Floats:
    """Return the largest output of each image, ``(B,)``, over all ranks."""
    from sparsednn.kernels.columns import raise_to

    largest = np.full(y.shape[1], -np.inf, y.dtype)
    raise_to(largest, y)
    _allreduce(largest, "max", group)
    return largest


def _column_sums(array: _Floats) -> NDArray[np.float64]:
    """Sums over the rows, ``(B,)``."""
    from sparsednn.kernels.columns import add_column_sums

    sums = np.zeros(array.shape[1])
    add_column_sums(sums, array)
    return sums


def _own_labels(
    labels: NDArray[np.int64], rows: NDArray[np.int32]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where labels are this rank's own: row of `y` and column, each once per such image."""
    at = np.searchsorted(rows, labels)
    columns = np.flatnonzero(at < rows.size)
    columns = columns[rows[at[columns]] == labels[columns]]
    return at[columns], columns


def _misses(
    y: _Floats,
    largest: _Floats,
    labels: NDArray[np.int64],
    rows: NDArray[np.int32],
) -> NDArray[np.float64]:
    """Reasons on this rank, by image, why the label is not the first of the largest outputs.

    A row before the label's is as large as the largest, or the label's own row is not: so a sum
    tells what would otherwise take an argmax over ranks. An image is correct if no rank has one.
    """
    from sparsednn.kernels.columns import count_misses

    misses = np.zeros(labels.size)
    count_misses(misses, y, largest, rows, labels)
    own, columns = _own_labels(labels, rows)
    misses[columns] += y[own, columns] != largest[columns]
    return misses


def _count_correct(losses: NDArray[np.float64], misses: NDArray[np.float64]) -> int:
    # A maximum over ranks may lose a NaN; a loss does not.
    return int(np.count_nonzero((misses == 0) & ~np.isnan(losses)))


def _subtract_targets(
    outputs: _Floats, targets: Targets, rows: NDArray[np.int32], factor: float
) -> None:
    """Subtract `factor` times this rank's targets, one-hot for labels, in place."""
    if targets.labels is not None:
        outputs[_own_labels(targets.labels, rows)] -= outputs.dtype.type(factor)
    elif targets.values is not None:
        outputs -= outputs.dtype.type(factor) * targets.values.astype(outputs.dtype, copy=False)


def _allreduce(array: _Floats, op: str, group: Group) -> None:
    if group.size > 1:
        group.allreduce(array, op)


def _check(loss: str, y: _Floats, targets: Targets, rows: NDArray[np.int32]) -> None:
    if loss not in LOSSES:
        raise UsageError(f"--loss: unknown loss '{loss}': known are {', '.join(LOSSES)}")
    labels, values = targets
    if (labels is None) == (values is None):
        raise UsageError("targets are labels or values: exactly one of both")
    if y.ndim != 2 or y.shape[0] != rows.size:
        raise ShapeError(f"outputs have shape {y.shape}, expected ({rows.size}, batch)")
    if labels is not None and labels.shape != y.shape[1:]:
        raise ShapeError(f"labels have shape {labels.shape}, expected {y.shape[1:]}")
    if values is not None and values.shape != y.shape:
        raise ShapeError(f"target values have shape {values.shape}, expected {y.shape}")
